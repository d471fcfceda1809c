"""`tailor`: the command line. Commands talk HTTP; a few are a process or work offline."""

import sys

import typer
from rich.console import Console

from service.cli import (
    agent,
    arch,
    demo,
    keys,
    machines,
    models,
    predict,
    processes,
    search,
    targets,
)
from service.cli.connection import EXIT_STATUS, EXIT_USAGE
from service.client.errors import ApiError, ApiUnreachableError
from service.version import VERSION

app = typer.Typer(
    help="Give a device and a latency budget; get a network measured on it to be under it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(search.app, name="search")
app.add_typer(targets.app, name="targets")
app.add_typer(models.app, name="models")
app.add_typer(machines.app, name="machines")
app.add_typer(arch.app, name="arch")
app.add_typer(agent.app, name="agent")
app.add_typer(keys.app, name="keys")
app.command("measure")(targets.measure)
app.command("predict")(predict.predict)
app.command("spaces")(targets.spaces)
app.command("api")(processes.api)
app.command("worker")(processes.worker)
app.command("demo")(demo.demo)


@app.command()
def version() -> None:
    """Print the installed version."""
    Console().print(VERSION)


def main() -> None:
    """Run a command; an API problem becomes one readable line and an exit status."""
    try:
        app()
    except ApiError as error:
        Console(stderr=True).print(f"[red]error[/red] {error.code}: {error}", soft_wrap=True)
        sys.exit(EXIT_STATUS["infeasible"] if error.code == "budget_unreachable" else EXIT_USAGE)
    except ApiUnreachableError as error:
        Console(stderr=True).print(f"[red]error[/red] {error}", soft_wrap=True)
        sys.exit(EXIT_USAGE)
