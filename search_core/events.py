"""What a running search tells the outside."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from search_core.checkpoints import Checkpoint


@dataclass(frozen=True)
class Progress:
    """How far a phase is, and its latest metrics.

    Attributes:
        phase: ``searching``, ``playoff`` or ``training``.
        completed, total: in steps; of a playoff, in games.
        metrics: name -> value; units are in the names.
        remaining_seconds: estimated time left in this phase; None before it can be told.
        probabilities: of a search, each slot's row over its candidates, so that the outside can
            ask first for what the search is likely to choose; None elsewhere.
    """

    phase: str
    completed: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    remaining_seconds: float | None = None
    probabilities: Sequence[Sequence[float]] | None = None


@dataclass(frozen=True)
class Notice:
    """Something a person should know: a rollback, a collapse, a dead signal.

    Attributes:
        code: stable, for programs.
        text: what happened and what can be done.
    """

    code: str
    text: str


@dataclass(frozen=True)
class CheckpointReady:
    """A checkpoint the receiver may store; it is valid until `report` returns."""

    checkpoint: Checkpoint


SearchEvent = Progress | Notice | CheckpointReady
Report = Callable[[SearchEvent], None]
ShouldStop = Callable[[], bool]


def remaining_seconds(started: float, first: int, step: int, total: int) -> float | None:
    """Time left at the mean pace since `started`, a `perf_counter` reading at step `first`."""
    if step <= first:
        return None
    return (perf_counter() - started) / (step - first) * (total - step)


def ignore(event: SearchEvent) -> None:
    """A `Report` for callers who do not listen."""


def never() -> bool:
    """A `ShouldStop` that lets a run finish."""
    return False
