"""What to say when a training step does not fit into memory."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from search_core.data.dataset import Dataset
from search_core.errors import OutOfMemoryError
from search_core.nn.supernet import Supernet


@contextmanager
def explain_out_of_memory(supernet: Supernet, data: Dataset, batch_size: int) -> Iterator[None]:
    """Turn an allocation failure inside it into an error that names a batch size that fits.

    Raises:
        OutOfMemoryError: in place of the allocator's own error.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_allocation_failure(error):
            raise
        reason = str(error).splitlines()[0]
    else:
        return
    fitting = _largest_fitting(supernet, data, batch_size)
    raise OutOfMemoryError(batch_size, fitting, reason)


def _is_allocation_failure(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _largest_fitting(supernet: Supernet, data: Dataset, batch_size: int) -> int | None:
    """The largest half, quarter, ... of `batch_size` whose step on the dearest path fits."""
    _, macs = supernet.space.slot_costs(lambda block: block.macs)
    path = [row.index(max(row)) for row in macs]
    size = batch_size // 2
    while size >= 1:
        supernet.zero_grad()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            batch = data.plain_batch(0, 0, size)
            loss = batch.loss(supernet(batch.images, path))
            loss.backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if not _is_allocation_failure(error):
                raise
            size //= 2
        else:
            supernet.zero_grad()
            return size
    return None
