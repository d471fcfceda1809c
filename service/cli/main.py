"""`tailor`: the command line. Commands talk HTTP; a few are a process or work offline."""

import sys

import typer
from rich.console import Console

from service.cli import (
    admin,
    agent,
    arch,
    audit,
    datasets,
    demo,
    events,
    keys,
    machines,
    models,
    predict,
    processes,
    search,
    search_family,
    targets,
    webhooks,
    workers,
)
from service.cli.connection import EXIT_STATUS, EXIT_TIMEOUT, EXIT_USAGE
from service.client.errors import ApiError, ApiUnreachableError, SearchTimeoutError
from service.version import VERSION

_OURS = {"service", "predictor", "search_core"}

app = typer.Typer(
    help="Give a device and a latency budget; get a network measured on it to be under it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(search.app, name="search")
app.add_typer(targets.app, name="targets")
app.add_typer(models.app, name="models")
app.add_typer(machines.app, name="machines")
app.add_typer(workers.app, name="worker")
app.add_typer(datasets.app, name="datasets")
app.add_typer(arch.app, name="arch")
app.add_typer(agent.app, name="agent")
app.add_typer(keys.app, name="keys")
app.add_typer(webhooks.app, name="webhooks")
for command in search_family.COMMANDS:
    search.app.command()(command)
search.app.command("events")(events.events)
search.app.command("metrics")(events.metrics)
app.add_typer(admin.app, name="admin")
app.command("whoami")(keys.whoami)
app.command("audit")(audit.audit)
app.command("measure")(targets.measure)
app.command("predict")(predict.predict)
app.command("spaces")(targets.spaces)
app.command("api")(processes.api)
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
    except SearchTimeoutError as error:
        Console(stderr=True).print(f"[red]error[/red] {error}", soft_wrap=True)
        sys.exit(EXIT_TIMEOUT)
    except ApiUnreachableError as error:
        Console(stderr=True).print(f"[red]error[/red] {error}", soft_wrap=True)
        sys.exit(EXIT_USAGE)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _OURS:
            raise
        text = (
            f"{error.name} is not installed here; this command needs "
            "the extra api, worker or agent of tailor-nas"
        )
        Console(stderr=True).print(f"[red]error[/red] {text}", soft_wrap=True)
        sys.exit(EXIT_USAGE)
