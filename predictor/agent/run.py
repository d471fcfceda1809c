"""The agent's loop: lease, measure, journal, upload. Read this first."""

import random
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any, Protocol

import httpx

from predictor.agent.connection import Connection, LeasedTask, ServerRefusedError
from predictor.agent.journal import Journal, JournalEntry
from predictor.agent.protocol import EFFORTS, Anchor, Run, measure
from predictor.errors import RuntimeFailedError, TooNoisyError
from predictor.measurements import Measurement, TargetProfile

AGENT_VERSION = version("tailor-nas")
TRIES = 4
"""How often a subject that fails a noise gate is measured before it is stored flagged."""

_LEASE_LIMIT = 8


class Runtime(Protocol):
    """What executes models on this device."""

    def profile(self) -> TargetProfile:
        """The target that this host is when it measures with this runtime."""
        ...

    def load(self, model: bytes) -> Run:
        """A call that runs `model` once.

        Raises:
            RuntimeFailedError: the runtime refuses the file.
        """
        ...


def run_agent(
    connection: Connection,
    journal: Journal,
    runtime: Runtime,
    *,
    should_stop: Callable[[], bool],
    say: Callable[[str], None],
    poll_seconds: float = 10.0,
) -> None:
    """Measure what the API leases until `should_stop`; nothing measured is ever lost.

    Args:
        should_stop: asked between two tasks.
        say: hears one line for each task and upload.
        poll_seconds: how long one lease request may wait for work.
    """
    anchors: dict[str, Anchor] = {}
    while True:
        try:
            _upload_pending(connection, journal, say)
            if should_stop():
                return
            batch_id, items = uuid.uuid4().hex, list[dict[str, Any]]()
            tasks = connection.lease(_LEASE_LIMIT, poll_seconds)
            random.shuffle(tasks)  # drift must not line up with the order of a kit
            for task in tasks:
                if should_stop():
                    break
                items.append(_perform(task, connection, runtime, anchors, say))
                journal.add(JournalEntry(batch_id, items))  # kept even if we die now
        except httpx.HTTPError as error:
            say(f"the API is out of reach, trying again: {error}")
            if should_stop():
                return


def _perform(
    task: LeasedTask,
    connection: Connection,
    runtime: Runtime,
    anchors: dict[str, Anchor],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """One task's result, as it is uploaded: a measurement or the reason there is none."""
    result: dict[str, Any] = {"task_id": task.id, "fence": task.fence}
    try:
        if task.anchor_sha256 not in anchors:
            anchors[task.anchor_sha256] = Anchor(
                runtime.load(connection.download(task.anchor_sha256))
            )
        run = runtime.load(connection.download(task.model_sha256))
        measurement = _measure_until_quiet(run, anchors[task.anchor_sha256], task)
    except (RuntimeFailedError, ServerRefusedError) as error:
        say(f"{task.subject}: unsupported: {error}")
        return {**result, "failure": {"code": "unsupported", "detail": str(error)[:500]}}
    except TooNoisyError as error:
        say(f"{task.subject}: too noisy: {error}")
        return {**result, "failure": {"code": "too_noisy", "detail": str(error)[:500]}}
    doubt = f"  flagged: {measurement.note}" if measurement.flagged else ""
    say(f"{task.subject}: {measurement.latency_ms:.4f} ms (n={measurement.n}){doubt}")
    return {**result, "measurement": asdict(measurement)}


def _measure_until_quiet(run: Run, anchor: Anchor, task: LeasedTask) -> Measurement:
    """The first measurement that passes every noise gate, else the best one, flagged.

    Raises:
        TooNoisyError: no try gave a measurement at all.
    """
    tries: list[Measurement] = []
    trouble: TooNoisyError | None = None
    for _ in range(TRIES):
        try:
            measurement = measure(run, anchor, EFFORTS[task.effort])
        except TooNoisyError as error:
            trouble = error
            continue
        if not measurement.note:
            return measurement
        tries.append(measurement)
    if not tries:
        assert trouble is not None
        raise trouble
    return replace(min(tries, key=lambda m: m.latency_ms), flagged=True)


def _upload_pending(connection: Connection, journal: Journal, say: Callable[[str], None]) -> None:
    for entry in journal.pending():
        try:
            report = connection.upload(entry)
        except ServerRefusedError as error:
            say(f"batch {entry.batch_id[:8]} was refused: {error}")
        else:
            for item in report["items"]:
                if not item["accepted"]:
                    say(f"{item['task_id']}: not accepted: {item['reason']}")
        journal.discard(entry.batch_id)
