"""`tailor machines`."""

import typer

from service.cli.connection import DEFAULT_URL, Json, Key, Url, connect, print_json, print_table

app = typer.Typer(help="The machines that train.", no_args_is_help=True)


@app.command("list")
def list_machines(url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """List the machines that have run workers; preflight reckons with the one seen last."""
    with connect(url, api_key) as client:
        machines = client.machines()
    if json:
        return print_json(machines)
    print_table(
        ["id", "host", "processor", "device", "threads", "torch", "left-out error", "seen"],
        [
            (m.id, m.host, m.name, m.device, m.threads, m.torch, f"{m.error:.0%}", m.seen_at)
            for m in machines
        ],
    )
    return None
