"""`tailor demo`: the main job on this machine, end to end, with nothing to install.

It does what a person would do: start the API, a worker and an agent, enrol, measure, ask
for a preflight, search, download. Everything it does beyond starting the three processes
goes through the public HTTP API.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from service.cli.connection import EXIT_STATUS, key_path, ms, print_json, saved_key
from service.cli.progress import (
    PhaseLines,
    duration,
    follow_events,
    result_table,
    taken_seconds,
)
from service.client.client import Client
from service.client.errors import ApiError, TailorClientError
from service.latency_models.schemas import LatencyModelRead
from service.searches.schemas import SearchRead
from service.settings import Settings

_SPACE = "micro"
_BUDGET_IN_BAND = 0.5
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.2
_CALIBRATION_SECONDS = 180.0


class DemoError(TailorClientError):
    """The demo cannot go on; the message says where to look."""


def demo(
    budget_ms: Annotated[
        float | None, typer.Option(min=0.0, help="Latency budget; default: mid-band.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides every random draw.")] = 0,
    epochs: Annotated[int, typer.Option(min=4, help="Search and training together.")] = 24,
    json: Annotated[
        bool, typer.Option("--json", help="Print the final document alone on standard output.")
    ] = False,
) -> None:
    """Find a network for this machine's CPU under a latency budget, in a few minutes."""
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # clean up first
    console = Console(stderr=json)
    lines = PhaseLines(console)
    try:
        found = _run(Settings(), lines, budget_ms, {"seed": seed, "epochs": epochs})
    except TailorClientError as error:
        lines.close()
        problem = error.problem if isinstance(error, ApiError) else {"detail": str(error)}
        if json:
            print_json({"status": "error", **problem})
        console.print(f"[red]error[/red] {error}", soft_wrap=True)
        refused = problem.get("code") == "budget_unreachable"
        raise typer.Exit(EXIT_STATUS["infeasible" if refused else "failed"]) from error
    finally:
        lines.close()
    seconds = time.monotonic() - began
    if json:
        print_json(_document(found, seconds))
    else:
        console.print(result_table(found.search))
        if found.files:
            folder = Path(found.files[0]).parent
            console.print(f"Files, with their hashes in the manifest: {folder}", soft_wrap=True)
        if found.search.feasibility is not None and found.search.feasibility.effort is not None:
            predicted = found.search.feasibility.effort.seconds
            console.print(
                f"The search took {taken_seconds(found.search):.0f} s; "
                f"{predicted:.0f} s were predicted before it started."
            )
        console.print(f"Done in {seconds:.0f} s; nothing is left running.")
    raise typer.Exit(EXIT_STATUS[found.search.status])


@dataclass(frozen=True)
class _Found:
    search: SearchRead
    model: LatencyModelRead
    files: list[str]


def _run(
    settings: Settings, lines: PhaseLines, budget_ms: float | None, options: dict[str, int]
) -> _Found:
    """The road itself: measure, ask, search, download."""
    with _installation(settings, lines) as (client, target, check):
        model = _measure(client, target, lines, check)
        middle_ms = model.fastest_ms + _BUDGET_IN_BAND * (model.slowest_ms - model.fastest_ms)
        spec: dict[str, Any] = {
            "target": target,
            "latency_budget_ms": round(middle_ms, 4) if budget_ms is None else budget_ms,
            "search_space": _SPACE,
            **options,
        }
        lines.begin("asking what the CPU can do")
        feasible = client.preflight(**spec)
        effort = f", {duration(feasible.effort.seconds)}" if feasible.effort else ""
        lines.end(f"{feasible.fastest_ms:.4f}-{ms(feasible.slowest_ms)}{effort}")
        search_id = client.create_search(**spec).id
        follow_events(client, search_id, lines, on_quiet=check)
        search = client.search(search_id)
        files: list[str] = []
        if search.status == "succeeded":
            lines.begin("downloading the files")
            files = _download(client, search_id, settings.home.resolve() / "results" / search_id)
            lines.end(f"{len(files)} files")
        return _Found(search, model, files)


@contextmanager
def _installation(
    settings: Settings, lines: PhaseLines
) -> Iterator[tuple[Client, str, Callable[[], None]]]:
    """API, worker and agent as processes of this machine; all are gone afterwards.

    Yields:
        A client, the id of this machine's target, and a check that raises when a process
        has died.
    """
    home = settings.home.resolve()
    logs = home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "TAILOR_HOME": str(home),
        "TAILOR_DATABASE_URL": settings.resolved_database_url,
        "TAILOR_ARTIFACTS_URL": settings.resolved_artifacts_url,
        # networks this small gain nothing from a second thread, and lose on a busy machine
        "TAILOR_ATTEMPT_THREADS": str(settings.attempt_threads or 1),
    }
    processes: dict[str, subprocess.Popen[bytes]] = {}

    def check() -> None:
        for name in ("api", "worker", "agent"):
            if name in processes and processes[name].poll() is not None:
                raise DemoError(f"the {name} has died; see {logs / name}.log")

    def spawn(name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if name == "api" else log,
                stderr=log,
                env=environment,
            )
        processes[name] = process
        return process

    agent_id = None
    client = None
    try:
        lines.begin("starting API and worker")
        url, key = _address(spawn("api", "api", "--port", "0"), logs / "api.log", home)
        client = Client(url, key)
        spawned_at = datetime.now(UTC)
        spawn("worker", "worker")
        lines.end(url)
        if settings.calibrate:  # before there is an agent: each would disturb the other
            _await_calibration(client, spawned_at, lines, check)
        lines.begin("starting the agent")
        code = client.create_enrolment_code().code
        state = str(home / "agent")
        enrolled = spawn("enrol", "agent", "enrol", code, "--url", url, "--state", state, "--json")
        if enrolled.wait(_START_SECONDS):
            raise DemoError(f"the agent could not enrol; see {logs / 'enrol.log'}")
        agent = client.agents()[0]
        agent_id = agent.id
        spawn("agent", "agent", "run", "--state", state)
        lines.end()
        yield client, agent.target_ids[0], check
    finally:
        if client is not None:
            if agent_id is not None:
                client.revoke_agent(agent_id)
            client.close()
        _stop(list(processes.values()))


def _await_calibration(
    client: Client, since: datetime, lines: PhaseLines, check: Callable[[], None]
) -> None:
    """Wait until the worker has made its machine known, or go on without."""
    lines.begin("timing this worker's training")
    deadline = time.monotonic() + _CALIBRATION_SECONDS
    while time.monotonic() < deadline:
        check()
        known = [machine for machine in client.machines() if machine.seen_at >= since]
        if known:
            lines.end(f"{known[0].threads} thread(s), {known[0].error:.0%} error a block")
            return
        time.sleep(_POLL_SECONDS)
    lines.end("no answer; see the worker's log")


def _address(process: subprocess.Popen[bytes], log: Path, home: Path) -> tuple[str, str]:
    """The API's URL and a key: the one its first start shows, or the one kept then."""
    assert process.stdout is not None
    url, key = None, saved_key(home)
    for line in process.stdout:  # ends when the API dies
        name, _, value = line.decode().strip().partition("=")
        if name == "TAILOR_API_KEY":
            key = value
            descriptor = os.open(key_path(home), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(key)
        elif name == "TAILOR_URL":
            url = value
        elif name == "TAILOR_READY":
            break
    if url is None or process.poll() is not None:
        raise DemoError(f"the API did not start; see {log}")
    if key is None:
        raise DemoError(
            f"the store in {home} has API keys, but {key_path(home)} is missing; put a key "
            "there, or set TAILOR_HOME to an empty folder"
        )
    return url, key


def _measure(
    client: Client, target: str, lines: PhaseLines, check: Callable[[], None]
) -> LatencyModelRead:
    """Have the space measured on the target and wait for its latency model."""
    kit = client.create_kit(target, _SPACE)
    lines.begin("measuring blocks and networks")
    while kit.status == "measuring":
        lines.update(kit.completed, kit.total, f"{kit.completed} of {kit.total}")
        check()
        time.sleep(_POLL_SECONDS)
        kit = client.kit(kit.id)
    lines.end(f"{kit.completed} of {kit.total}")
    if kit.status == "incomplete":
        raise DemoError(
            f"{kit.failed} of {kit.total} could not be measured; the agent's log says why. "
            "A busy machine is the usual reason: quiet it and run the demo again with another "
            "TAILOR_HOME"
        )
    lines.begin("fitting the latency model")
    while (model := client.active_latency_model(target, _SPACE)) is None:
        check()
        time.sleep(_POLL_SECONDS)
    lines.end(f"{model.left_out_error:.1%} error on left-out nets")
    return model


def _download(client: Client, search_id: str, folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for artifact in client.artifacts(search_id).items:
        path = folder / artifact.name
        path.write_bytes(client.download(search_id, artifact.name))
        paths.append(str(path))
    return paths


def _document(found: _Found, seconds: float) -> dict[str, Any]:
    """The final document of `--json`."""
    search, model = found.search, found.model
    result = search.result
    network = result.network if result else None
    baseline = result.random_baseline if result else None
    effort = search.feasibility.effort if search.feasibility else None
    return {
        "status": search.status,
        "budget_ms": search.spec.latency_budget_ms,
        "measured_ms": network.measured.median_ms if network and network.measured else None,
        "predicted_ms": network.predicted_ms if network else None,
        "test_accuracy": network.test_accuracy if network else None,
        "random_baseline_accuracy": baseline.test_accuracy if baseline else None,
        "architecture": network.architecture if network else None,
        "seconds": round(seconds, 1),
        "fastest_ms": model.fastest_ms,
        "slowest_ms": model.slowest_ms,
        "seconds_by_phase": search.seconds_by_phase,
        "predicted_seconds": effort.seconds if effort else None,
        "predicted_seconds_by_phase": effort.seconds_by_phase if effort else None,
        "files": found.files,
        "search": search.model_dump(mode="json"),
    }


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask the newest first, the API last; kill what does not leave in time."""
    for process in reversed(processes):
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + _STOP_SECONDS
    for process in reversed(processes):
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
