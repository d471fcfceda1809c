"""What to say when a training step does not fit into memory."""

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from traceback import clear_frames

import torch

from search_core.data.dataset import Dataset
from search_core.errors import OutOfMemoryError
from search_core.estimators.base import Estimator, one_hot
from search_core.nn.supernet import ALL, Supernet
from search_core.randomness import stream

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3)

_SIGNS = (
    "can't allocate memory",
    "bad_alloc",
    "could not create a primitive",  # all that oneDNN says of its own scratch memory
)


def keep_freed_memory() -> bool:
    """Have the C library keep what this process frees, for what it allocates next.

    By its own rule glibc gives every block above 32 MiB back to the system at once, and takes
    it anew, page by page, in the next step: on CIFAR-10 at batch 64 that made training 1.3 to
    1.7 times slower. It is a policy of the whole process, so only programs set it, before they
    train on a CPU.

    Returns:
        Whether it could be set; elsewhere than on glibc it cannot.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, -1) and mallopt(_M_MMAP_MAX, 0))


@contextmanager
def explain_out_of_memory(batch_size: int, rehearse: Callable[[int], object]) -> Iterator[None]:
    """Turn an allocation failure inside it into an error that names a batch size that fits.

    Args:
        batch_size: of the step inside it.
        rehearse: takes a step of a batch size as dear in memory as any; it is tried at half of
            `batch_size`, a quarter, ... until it succeeds.

    Raises:
        OutOfMemoryError: in place of the allocator's own error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_allocation_failure(error):
            raise
        reason = str(error).partition("\n")[0] or "MemoryError"
        clear_frames(error.__traceback__)  # they hold what the step had allocated
    else:
        return
    raise OutOfMemoryError(batch_size, _largest_fitting(batch_size, rehearse), reason)


def with_room(batch_size: int, n_images: int) -> int:
    """How many of `n_images` to rehearse a batch with: a sixteenth more.

    What the allocator wastes differs from one step to the next.
    """
    return min(n_images, batch_size + batch_size // 16)


def _is_allocation_failure(error: RuntimeError | MemoryError) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(sign in str(error) for sign in _SIGNS)


def _largest_fitting(batch_size: int, rehearse: Callable[[int], object]) -> int | None:
    while batch_size > 1:
        batch_size //= 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            rehearse(batch_size)
        except (RuntimeError, MemoryError) as error:
            if not _is_allocation_failure(error):
                raise
            clear_frames(error.__traceback__)
        else:
            return batch_size
    return None


@dataclass(frozen=True)
class Rehearsal:
    """Takes the steps of a search that need most memory, and spoils its state.

    Attributes:
        together: whether a slot may run all of its candidates at once.
    """

    supernet: Supernet
    estimator: Estimator
    data: Dataset
    together: bool

    def __call__(self, batch_size: int) -> None:
        """One step of the weights and one of the logits on the path that keeps most scalars."""
        space = self.supernet.space
        _, kept = space.slot_costs(lambda block: sum(step.out_elements for step in block.steps))
        path = [row.index(max(row)) for row in kept]
        p = torch.zeros(len(kept), space.n_candidates, dtype=torch.float64)
        for slot, row in enumerate(kept):
            p[slot, : len(row)] = 1e-9  # nothing is decided, but this path is sure to be drawn
        p = torch.maximum(p, one_hot(path, p))
        p /= p.sum(dim=1, keepdim=True)

        batch = self.data.plain_batch(0, 0, with_room(batch_size, self.data.n_train))
        self.supernet.zero_grad()
        choices = [ALL] * len(path) if self.together else path
        batch.loss(self.supernet(batch.images, choices)).backward()  # type: ignore[no-untyped-call]
        self.supernet.zero_grad()
        self.estimator.estimate(self.supernet, p, batch, 0.0, stream(0, "rehearsal"))
