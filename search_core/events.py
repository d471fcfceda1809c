"""What a running search tells the outside."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from search_core.checkpoints import Checkpoint


@dataclass(frozen=True)
class Progress:
    """How far a phase is, and its latest metrics.

    Attributes:
        phase: ``searching`` or ``training``.
        completed, total: in steps.
        metrics: name -> value; units are in the names.
    """

    phase: str
    completed: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointReady:
    """A checkpoint the receiver may store; it is valid until `report` returns."""

    checkpoint: Checkpoint


SearchEvent = Progress | CheckpointReady
Report = Callable[[SearchEvent], None]
ShouldStop = Callable[[], bool]


def ignore(event: SearchEvent) -> None:
    """A `Report` for callers who do not listen."""


def never() -> bool:
    """A `ShouldStop` that lets a run finish."""
    return False
