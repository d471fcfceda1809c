"""`tailor agent`: enrol this device and measure."""

import platform
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import httpx
import typer
from rich.console import Console

from predictor.measurements import Precision
from service.cli import agent_bundle, agent_doctor
from service.cli.connection import (
    DEFAULT_URL,
    Json,
    Key,
    Url,
    connect,
    ms,
    print_json,
    print_table,
)
from service.settings import Settings

app = typer.Typer(help="The device agent: measures what searches need.", no_args_is_help=True)
app.command("doctor")(agent_doctor.doctor)
app.add_typer(agent_bundle.app, name="bundle")
_stderr = Console(stderr=True)
_ASK_SECONDS = 2.0
_FIT_SECONDS = 60.0  # by then a kit that is incomplete has its model all the same, or has none
_NODE = platform.node()

State = Annotated[
    Path | None,
    typer.Option(help="Folder of the agent's identity and journal; default TAILOR_HOME/agent."),
]
Runtime = Annotated[str, typer.Option(help="What executes models; see docs/howto.")]
Threads = Annotated[list[int], typer.Option(help="Threads of the runtime; repeat for more.")]
Precisions = Annotated[list[str], typer.Option("--precision", help="float32, int8; repeatable.")]
Options = Annotated[
    list[str] | None, typer.Option("--option", help="What the runtime needs besides, NAME=VALUE.")
]
Name = Annotated[str, typer.Option(help="What people call this device.")]


@app.command()
def code(
    space: Annotated[str | None, typer.Option(help="Measured at once on the device.")] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Make a one-time enrolment code for a device, to type or to scan."""
    import segno

    with connect(url, api_key) as client:
        created = client.create_enrolment_code(space)
    page = f"{url.rstrip('/')}{created.measure_path}"
    if json:
        return print_json({**created.model_dump(mode="json"), "measure_url": page})
    minutes = (created.expires_at - datetime.now(UTC)).total_seconds() / 60
    print_table(["code", "valid for"], [(created.code, f"{minutes:.0f} minutes")])
    command = f"tailor agent run --code {created.code} --url {url}"
    _stderr.print(f"On a computer: {command}", soft_wrap=True)
    _stderr.print(f"On a phone, or any device with a browser: {page}", soft_wrap=True)
    segno.make(page, error="m").terminal(out=sys.stderr, compact=True)
    return None


@app.command()
def enrol(
    code: str,
    url: Url = DEFAULT_URL,
    name: Name = _NODE,
    runtime: Runtime = "onnxruntime-cpu",
    threads: Threads = [1],  # noqa: B006 - typer copies it
    precision: Precisions = ["float32"],  # noqa: B006
    batch: Annotated[int, typer.Option(min=1, help="Images in one call.")] = 1,
    option: Options = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Enrol this device with a one-time code; each thread count and precision is a target."""
    identity = _enrol(code, url, name, runtime, threads, precision, batch, option, _state(state))
    if json:
        targets = list(identity.runtimes)
        print_json({"agent": identity.agent_id, "target": targets[0], "targets": targets})
    else:
        print_table(
            ["agent", "target", "runtime", "threads", "precision"],
            [
                (identity.agent_id, target, spec.name, spec.threads, spec.precision)
                for target, spec in identity.runtimes.items()
            ],
        )


@app.command()
def run(
    code: Annotated[str | None, typer.Option(help="Enrol with this code first.")] = None,
    url: Url = DEFAULT_URL,
    name: Name = _NODE,
    runtime: Runtime = "onnxruntime-cpu",
    threads: Threads = [1],  # noqa: B006
    precision: Precisions = ["float32"],  # noqa: B006
    batch: Annotated[int, typer.Option(min=1, help="Images in one call.")] = 1,
    option: Options = None,
    until_measured: Annotated[
        bool, typer.Option(help="Leave when every kit has been measured and fitted.")
    ] = False,
    state: State = None,
) -> None:
    """Measure until stopped (Ctrl-C, SIGTERM); what is measured is uploaded, even later."""
    from predictor.agent.connection import Connection, Identity, ServerRefusedError
    from predictor.agent.journal import Journal
    from predictor.agent.run import Agent
    from predictor.agent.runtimes.registry import make_runtime
    from predictor.agent.sandbox import Sandbox
    from predictor.errors import RuntimeFailedError

    folder = _state(state)
    path = folder / "identity.json"
    if code is not None:
        _enrol(code, url, name, runtime, threads, precision, batch, option, folder)
    if not path.exists():
        _fail(f"{path} is missing; first `tailor agent enrol CODE`")
    identity = Identity.load(path)
    try:
        profiles = {t: make_runtime(spec).profile() for t, spec in identity.runtimes.items()}
    except RuntimeFailedError as error:
        _fail(str(error))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with ExitStack() as stack:
        connection = Connection(
            identity.api_url,
            identity.token,
            signing_key=identity.signing_key,
            models=folder / "models",
        )
        stack.callback(connection.close)
        if {t: p.digest for t, p in profiles.items()} != identity.digests:
            _fail(_tell_change(connection, profiles))
        targets = {
            t: (
                profiles[t],
                stack.enter_context(Sandbox(spec, memory=folder / f"anchors-{t}.json")),
            )
            for t, spec in identity.runtimes.items()
        }
        agent = Agent(
            connection,
            Journal(folder / "journal"),
            targets,
            say=lambda line: _stderr.print(line, soft_wrap=True, highlight=False),
            poll_seconds=2.0,
        )
        should_stop = _measured(connection, stop) if until_measured else stop.is_set
        try:
            agent.run(should_stop)
            if until_measured:
                _reward(connection.itself())
        except ServerRefusedError as error:
            _fail(str(error))


@app.command("list")
def list_agents(url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """List agents."""
    with connect(url, api_key) as client:
        agents = client.agents()
    if json:
        return print_json(agents)
    print_table(
        ["id", "name", "version", "state", "measuring", "accepted", "rejected", "last seen"],
        [
            (
                a.id,
                a.name,
                a.version + (" (too old)" if a.outdated else ""),
                _state_of(a.revoked_at is not None, a.draining, a.online),
                f"{len(a.leased)} leased" if a.leased else None,
                a.accepted,
                a.rejected if not a.reject_rate else f"{a.rejected} ({a.reject_rate:.0%})",
                a.last_seen_at,
            )
            for a in agents
        ],
    )
    return None


@app.command()
def status(state: State = None, json: Json = False) -> None:
    """Show what the service knows of this device: kits, latency models, how good they are."""
    from predictor.agent.connection import Connection, Identity, ServerRefusedError
    from predictor.agent.journal import Journal

    folder = _state(state)
    if not (folder / "identity.json").exists():
        _fail(f"{folder / 'identity.json'} is missing; first `tailor agent enrol CODE`")
    identity = Identity.load(folder / "identity.json")
    connection = Connection(identity.api_url, identity.token)
    try:
        itself = connection.itself()
    except (ServerRefusedError, httpx.HTTPError) as error:
        _fail(f"{identity.api_url}: {error}")
    finally:
        connection.close()
    itself["unsent_batches"] = len(Journal(folder / "journal").pending())
    if json:
        print_json(itself)
    else:
        _reward(itself)


@app.command()
def drain(agent_id: str, url: Url = DEFAULT_URL, api_key: Key = None) -> None:
    """Let an agent finish its current task, upload and leave."""
    with connect(url, api_key) as client:
        client.drain_agent(agent_id)


@app.command()
def resume(agent_id: str, url: Url = DEFAULT_URL, api_key: Key = None) -> None:
    """Let a drained agent have work again, once it is started."""
    with connect(url, api_key) as client:
        client.resume_agent(agent_id)


@app.command()
def revoke(agent_id: str, url: Url = DEFAULT_URL, api_key: Key = None) -> None:
    """Revoke an agent's token at once."""
    with connect(url, api_key) as client:
        client.revoke_agent(agent_id)


def _enrol(
    code: str,
    url: str,
    name: str,
    runtime: str,
    threads: list[int],
    precisions: list[str],
    batch: int,
    options: list[str] | None,
    folder: Path,
) -> Any:
    from predictor.agent.connection import Connection, ServerRefusedError
    from predictor.agent.run import AGENT_VERSION
    from predictor.agent.runtimes.base import RuntimeSpec
    from predictor.agent.runtimes.registry import make_runtime
    from predictor.errors import RuntimeFailedError

    given = dict(o.partition("=")[::2] for o in options or ())
    specs = [
        RuntimeSpec(runtime, n, _precision(p), batch, given)
        for n, p in product(threads, precisions)
    ]
    connection = Connection(url, token=None)
    try:
        targets = [(spec, make_runtime(spec).profile()) for spec in specs]
        identity = connection.enrol(code, name, targets, AGENT_VERSION)
    except RuntimeFailedError as error:
        _fail(str(error))
    except (ServerRefusedError, httpx.HTTPError) as error:
        _fail(f"{url}: {error}")
    finally:
        connection.close()
    identity.save(folder / "identity.json")
    return identity


def _precision(text: str) -> Precision:
    if text not in get_args(Precision):
        raise typer.BadParameter(f"{text!r} is neither float32 nor int8", param_hint="--precision")
    return cast("Precision", text)


def _tell_change(connection: Any, profiles: dict[str, Any]) -> str:
    """Let the service know that this host is another target now; what it says to that."""
    from predictor.agent.connection import ServerRefusedError
    from predictor.agent.run import AGENT_VERSION

    try:
        answer = connection.heartbeat(AGENT_VERSION, "changed", 0, profiles)
        texts = [stale["text"] for stale in answer["stale"]]
    except (ServerRefusedError, httpx.HTTPError) as error:
        texts = [f"and the service could not be told: {error}"]
    return (
        "this host is another target than the one it was enrolled as (processor, kernel or "
        f"runtime has changed); enrol it again. {' '.join(texts)}"
    )


def _measured(connection: Any, stop: threading.Event) -> Callable[[], bool]:
    """Whether to leave: told to, or every kit has its model, or none will come."""
    asked = time.monotonic()
    incomplete_since: dict[str, float] = {}

    def is_settled(kit: dict[str, Any], modelled: set[str]) -> bool:
        if kit["search_space"] in modelled:
            return True
        if kit["status"] == "measuring":
            return False
        since = incomplete_since.setdefault(kit["id"], time.monotonic())
        return kit["status"] == "incomplete" and time.monotonic() - since > _FIT_SECONDS

    def should_stop() -> bool:
        nonlocal asked
        if stop.is_set():
            return True
        if time.monotonic() - asked < _ASK_SECONDS:
            return False
        asked = time.monotonic()
        return all(
            is_settled(kit, {model["search_space"] for model in target["latency_models"]})
            for target in connection.itself()["targets"]
            for kit in target["kits"]
        )

    return should_stop


def _reward(itself: dict[str, Any]) -> None:
    """What this device's measurements gave."""
    rows = []
    for target in itself["targets"]:
        models = {model["search_space"]: model for model in target["latency_models"]}
        for kit in target["kits"]:
            model = models.get(kit["search_space"])
            held_out = (model["report"].get("held_out") or {}) if model else {}
            rows.append(
                (
                    target["id"],
                    kit["search_space"],
                    f"{kit['completed']}/{kit['total']}",
                    kit["flagged"],
                    f"{ms(model['fastest_ms'])} - {ms(model['slowest_ms'])}" if model else None,
                    f"{held_out['mape']:.1%}" if held_out else None,
                    f"{held_out['within_10']:.0%}" if held_out else None,
                )
            )
    print_table(
        ["target", "space", "measured", "flagged", "networks take", "error", "within 10 %"], rows
    )


def _state_of(revoked: bool, draining: bool, online: bool) -> str:
    if revoked:
        return "revoked"
    return ("draining, " if draining else "") + ("online" if online else "offline")


def _state(given: Path | None) -> Path:
    return given or Settings().home / "agent"


def _fail(text: str) -> Any:
    _stderr.print(f"[red]error[/red] {text}", soft_wrap=True)
    raise typer.Exit(2)
