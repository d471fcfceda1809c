"""Who could serve a job, and what everybody else lacks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy.orm import Session

from service.jobs.needs import Needs, Offer
from service.workers.models import WorkerRow
from service.workers.repository import workers_taking_work

_NAMED = 3
"""Workers that a text speaks of, at most."""


@dataclass(frozen=True)
class Verdict:
    """Whether anybody who is there could ever serve.

    Attributes:
        able: names of the workers that could, once they are free.
        lacking: what each of the others lacks, in words, by its name.
    """

    able: tuple[str, ...]
    lacking: Mapping[str, str]

    @property
    def code(self) -> Literal["queue_position", "no_worker_online", "no_worker_can_serve"]:
        """Why a job that waits does so."""
        if self.able:
            return "queue_position"
        return "no_worker_can_serve" if self.lacking else "no_worker_online"

    @property
    def text(self) -> str:
        """The same for people, with what to do about it."""
        if self.able:
            return f"Waiting for a free place on {_some(list(self.able), 'or')}."
        if not self.lacking:
            return "No worker is online; start one with `tailor worker`."
        said = _some([f"{name} ({what})" for name, what in self.lacking.items()], "and")
        return (
            f"No worker that is online could ever run it: {said}. Ask for less, or start a "
            "worker that has it."
        )


def who_could_serve(session: Session, needs: Needs, online_seconds: float) -> Verdict:
    """The verdict on the workers that are online and take new work.

    Args:
        online_seconds: within which an online worker was seen.
    """
    return verdict_on(workers_taking_work(session, online_seconds), needs)


def verdict_on(workers: Sequence[WorkerRow], needs: Needs) -> Verdict:
    """The verdict on these workers."""
    lacking = {worker.name: needs.lacking(_offer(worker)) for worker in workers}
    return Verdict(
        able=tuple(name for name, what in lacking.items() if not what),
        lacking={name: "; ".join(what) for name, what in lacking.items() if what},
    )


def _offer(worker: WorkerRow) -> Offer:
    resources = worker.resources
    return Offer(len(resources["gpus"]), resources["memory_bytes"], worker.labels)


def _some(words: list[str], last: str) -> str:
    named = words[:_NAMED]
    if len(words) > _NAMED:
        named.append(f"{len(words) - _NAMED} more")
    return ", ".join(named[:-1]) + (f" {last} " if len(named) > 1 else "") + named[-1]
