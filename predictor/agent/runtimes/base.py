"""What every runtime offers the protocol: load a model, time calls of it."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from predictor.measurements import Precision, TargetProfile


@dataclass(frozen=True)
class RuntimeSpec:
    """How to make a runtime: what an agent enrolled with, kept in its identity.

    Attributes:
        name: a key of `predictor.agent.runtimes.registry.RUNTIMES`.
        threads, precision, batch: as in `TargetProfile`.
        options: what this runtime alone needs, plain values (adb's serial, paths, masks).
    """

    name: str = "onnxruntime-cpu"
    threads: int = 1
    precision: Precision = "float32"
    batch: int = 1
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Calls:
    """What some calls in a row took.

    Attributes:
        wall_ns: wall time of each call.
        thread_cpu_ns: processor time of the measuring thread in each call; None where it
            cannot be told or says nothing (a GPU, a phone, several threads).
    """

    wall_ns: list[int]
    thread_cpu_ns: list[int] | None = None


class LoadedModel(Protocol):
    """One model file, ready to run on fixed random input."""

    @property
    def provider(self) -> str:
        """The execution provider that really runs the model."""
        ...

    def time_calls(self, n: int) -> Calls:
        """Run the model `n` times in a row, each call finished before it counts.

        Raises:
            RuntimeFailedError: the runtime failed or lost its device.
        """
        ...


class Runtime(Protocol):
    """What executes models on this device.

    Attributes:
        slice_seconds: how long one look at the model should last; longer where a look has
            an overhead of its own.
        one_child_per_task: whether each task gets a process of its own; False where making
            one takes seconds (a CUDA context), then a process serves until it fails.
    """

    slice_seconds: float
    one_child_per_task: bool

    def profile(self) -> TargetProfile:
        """The target that this device is when it measures with this runtime."""
        ...

    def load(self, model: bytes) -> LoadedModel:
        """Make `model` ready to run.

        Raises:
            RuntimeFailedError: the runtime refuses the file; `reason` says how.
        """
        ...
