"""Checkpoints: plain tensors and values in one file, replaced atomically, never unpickled."""

import os
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from search_core.errors import CheckpointError


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on as if it had never stopped.

    Attributes:
        stage: which loop wrote it, ``search`` or ``train``.
        step: steps completed.
        fingerprint: of the settings that produced it; resuming under others is refused.
        state: state dictionaries and plain values only.
    """

    stage: str
    step: int
    fingerprint: str
    state: dict[str, Any]

    def expect(self, stage: str, fingerprint: str) -> None:
        """Raises CheckpointError unless this was written by that loop under those settings."""
        if (self.stage, self.fingerprint) != (stage, fingerprint):
            raise CheckpointError(
                f"the checkpoint is of {self.stage} run {self.fingerprint[:12]}, "
                f"not of {stage} run {fingerprint[:12]}; start without it"
            )


class KeptCheckpoint:
    """A checkpoint to go back to, in a temporary file, so that memory holds no second copy.

    Args:
        checkpoint: written at once; none of it is kept.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.step = checkpoint.step
        self._file = tempfile.TemporaryFile(prefix="tailor-")  # noqa: SIM115, it lives as long
        weakref.finalize(self, self._file.close)
        _write(checkpoint, self._file)

    def read(self) -> Checkpoint:
        """The checkpoint with its tensors on the CPU, each time a new one."""
        self._file.seek(0)
        return Checkpoint(**torch.load(self._file, map_location="cpu", weights_only=True))


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write to `path` so that a crash leaves the old file or the new one, never a torn one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        _write(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _write(checkpoint: Checkpoint, file: IO[bytes]) -> None:
    torch.save(
        {
            "stage": checkpoint.stage,
            "step": checkpoint.step,
            "fingerprint": checkpoint.fingerprint,
            "state": checkpoint.state,
        },
        file,
    )


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`.

    Raises:
        CheckpointError: the file is damaged or holds something else.
    """
    try:
        return Checkpoint(**torch.load(path, weights_only=True))
    except Exception as error:  # torch raises many types on a damaged archive
        raise CheckpointError(f"{path} is no readable checkpoint: {error}") from error
