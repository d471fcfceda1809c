"""`tailor worker`: a worker on this machine, and those there are."""

import signal
import socket
from typing import Annotated

import typer

from service.cli.connection import (
    DEFAULT_URL,
    EXIT_USAGE,
    Json,
    Key,
    Url,
    connect,
    print_json,
    print_table,
)
from service.settings import Settings
from service.workers.schemas import WorkerRead

app = typer.Typer(help="Run a worker on this machine, or see to those there are.")

Slots = Annotated[
    int,
    typer.Option(
        min=0,
        envvar="TAILOR_WORKER_SLOTS",
        help="Attempts side by side; 0: one a GPU, one without GPUs.",
    ),
]
Gpus = Annotated[
    str,
    typer.Option(
        envvar="TAILOR_WORKER_GPUS",
        help="Indices such as 0,1 among the GPUs that are found; all; none.",
    ),
]
Memory = Annotated[
    float | None,
    typer.Option(
        "--memory-gb",
        envvar="TAILOR_WORKER_MEMORY_GB",
        help="GiB for all attempts together; default: nine tenths of what there is.",
    ),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        envvar="TAILOR_WORKER_LABELS",
        help="NAME=VALUE that searches may ask for; may be repeated.",
    ),
]


@app.callback(invoke_without_command=True)
def worker(
    context: typer.Context,
    slots: Slots = 0,
    gpus: Gpus = "all",
    memory_gb: Memory = None,
    label: Labels = None,
) -> None:
    """Without a command, run a worker: see `tailor worker run`."""
    if context.invoked_subcommand is None:
        run(slots, gpus, memory_gb, label)


@app.command()
def run(
    slots: Slots = 0, gpus: Gpus = "all", memory_gb: Memory = None, label: Labels = None
) -> None:
    """Run searches and fits until stopped or drained.

    SIGTERM hands back what is running; a second one kills it.
    """
    from service.db.database import Database
    from service.jobs.launchers.subprocess import SubprocessLauncher
    from service.telemetry import configure_logging
    from service.worker import Worker
    from service.workers.resources import ResourcesError, find_resources

    settings = Settings()
    configure_logging(settings.log_level)
    try:
        resources = find_resources(
            slots=slots, gpus=_indices(gpus), memory_gib=memory_gb, labels=_labels(label or [])
        )
    except ResourcesError as error:
        raise typer.BadParameter(str(error)) from error
    database = Database(settings.resolved_database_url)
    process = Worker(settings, database, SubprocessLauncher(settings), resources)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: process.stop())
    process.run()
    database.dispose()


@app.command("list")
def list_workers(
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
    online: Annotated[bool, typer.Option("--online", help="Only those that are there.")] = False,
) -> None:
    """List the workers, and what runs on them."""
    with connect(url, api_key) as client:
        workers = client.workers(online=online)
    if json:
        return print_json(workers)
    print_table(
        ["id", "name", "state", "slots", "gpus", "memory", "runs", "seen"], [*map(_row, workers)]
    )
    return None


@app.command()
def drain(
    worker_id: Annotated[str | None, typer.Argument(help="wrk_...", show_default=False)] = None,
    here: Annotated[
        bool, typer.Option("--here", help="Every worker of this host instead.")
    ] = False,
    hand_back: Annotated[
        bool,
        typer.Option("--hand-back", help="Checkpoint and hand back what runs, not finish it."),
    ] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Let a worker take no new work, and leave once nothing runs on it."""
    if here == (worker_id is not None):
        raise typer.BadParameter("name a worker, or say --here")
    with connect(url, api_key) as client:
        ids = (
            [worker_id]
            if worker_id is not None
            else [w.id for w in client.workers(online=True) if w.host == socket.gethostname()]
        )
        drained = [client.drain_worker(found, hand_back=hand_back) for found in ids]
    if json:
        print_json(drained)
    else:
        print_table(["id", "name", "state", "slots in use"], [*map(_drained_row, drained)])
    if not drained:
        typer.echo("no worker of this host is online", err=True)
        raise typer.Exit(EXIT_USAGE)


def _indices(gpus: str) -> list[int] | None:
    if gpus == "all":
        return None
    if gpus in ("", "none"):
        return []
    try:
        return [int(index) for index in gpus.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"--gpus is all, none or indices such as 0,1; got {gpus!r}") from (
            error
        )


def _labels(words: list[str]) -> dict[str, str]:
    labels = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise typer.BadParameter(f"--label is NAME=VALUE; got {word!r}")
        labels[name] = value
    return labels


def _row(worker: WorkerRead) -> tuple[object, ...]:
    runs = [attempt.subject or attempt.kind for attempt in worker.attempts]
    return (
        worker.id,
        worker.name,
        worker.state,
        f"{worker.slots_in_use}/{worker.slots}",
        ", ".join(gpu.model for gpu in worker.resources.gpus) or None,
        f"{worker.resources.memory_bytes / 2**30:.1f} GiB",
        ", ".join(runs) or None,
        worker.seen_at,
    )


def _drained_row(worker: WorkerRead) -> tuple[object, ...]:
    return worker.id, worker.name, worker.state, worker.slots_in_use
