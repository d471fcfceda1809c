"""Which statistics BatchNorm follows."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def batch_statistics_only(*modules: nn.Module) -> Iterator[None]:
    """Within it BatchNorm uses the statistics of the batch and leaves the running ones alone."""
    norms = [
        m
        for module in modules
        for m in module.modules()
        if isinstance(m, nn.BatchNorm2d) and m.training and m.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
