"""`tailor agent`: enrol this device and measure."""

import platform
import signal
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console

from service.cli.connection import DEFAULT_URL, Json, Key, Url, connect, print_json, print_table
from service.settings import Settings

app = typer.Typer(help="The device agent: measures what searches need.", no_args_is_help=True)
_stderr = Console(stderr=True)

State = Annotated[
    Path | None,
    typer.Option(help="Folder of the agent's identity and journal; default TAILOR_HOME/agent."),
]


@app.command()
def code(url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """Make a one-time enrolment code for a device."""
    with connect(url, api_key) as client:
        created = client.create_enrolment_code()
    if json:
        return print_json(created)
    minutes = (created.expires_at - datetime.now(UTC)).total_seconds() / 60
    print_table(["code", "valid for"], [(created.code, f"{minutes:.0f} minutes")])
    _stderr.print(f"On the device: tailor agent enrol {created.code} --url {url}")
    return None


@app.command()
def enrol(
    code: str,
    url: Url = DEFAULT_URL,
    name: Annotated[str, typer.Option(help="What people call this device.")] = platform.node(),
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    state: State = None,
    json: Json = False,
) -> None:
    """Enrol this device with a one-time code."""
    from predictor.agent.connection import Connection, ServerRefusedError
    from predictor.agent.run import AGENT_VERSION
    from predictor.agent.runtimes.onnxruntime_cpu import OnnxRuntimeCpu

    profile = OnnxRuntimeCpu(threads).profile()
    connection = Connection(url, token=None)
    try:
        identity = connection.enrol(code, name, profile, AGENT_VERSION)
    except (ServerRefusedError, httpx.TransportError) as error:
        _stderr.print(f"[red]error[/red] {url}: {error}", soft_wrap=True)
        raise typer.Exit(2) from error
    finally:
        connection.close()
    identity.save(_state(state) / "identity.json")
    if json:
        print_json({"agent": identity.agent_id, "target": identity.target_id})
    else:
        print_table(["agent", "target"], [(identity.agent_id, identity.target_id)])


@app.command()
def run(state: State = None) -> None:
    """Measure until stopped (Ctrl-C, SIGTERM); what is measured is uploaded, even later."""
    from predictor.agent.connection import Connection, Identity, ServerRefusedError
    from predictor.agent.journal import Journal
    from predictor.agent.run import run_agent
    from predictor.agent.runtimes.onnxruntime_cpu import OnnxRuntimeCpu

    folder = _state(state)
    path = folder / "identity.json"
    if not path.exists():
        _stderr.print(f"[red]error[/red] {path} is missing; first `tailor agent enrol CODE`")
        raise typer.Exit(2)
    identity = Identity.load(path)
    runtime = OnnxRuntimeCpu(identity.threads)
    if runtime.profile().digest != identity.profile_digest:
        _stderr.print(
            "[red]error[/red] this host is another target than the one it was enrolled as "
            "(processor, kernel or runtime has changed); enrol it again"
        )
        raise typer.Exit(2)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    connection = Connection(identity.api_url, identity.token)
    try:
        run_agent(
            connection,
            Journal(folder / "journal"),
            runtime,
            should_stop=stop.is_set,
            say=lambda line: _stderr.print(line, soft_wrap=True, highlight=False),
            poll_seconds=2.0,
        )
    except ServerRefusedError as error:
        _stderr.print(f"[red]error[/red] {error}", soft_wrap=True)
        raise typer.Exit(2) from error
    finally:
        connection.close()


@app.command("list")
def list_agents(url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """List agents."""
    with connect(url, api_key) as client:
        agents = client.agents()
    if json:
        return print_json(agents)
    print_table(
        ["id", "name", "version", "last seen", "revoked"],
        [(a.id, a.name, a.version, a.last_seen_at, a.revoked_at) for a in agents],
    )
    return None


@app.command()
def revoke(agent_id: str, url: Url = DEFAULT_URL, api_key: Key = None) -> None:
    """Revoke an agent's token at once."""
    with connect(url, api_key) as client:
        client.revoke_agent(agent_id)


def _state(given: Path | None) -> Path:
    return given or Settings().home / "agent"
