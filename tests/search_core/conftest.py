"""Shared parts: one thread, the digits, a space small enough to enumerate, exact comparison."""

import pytest
import torch

from search_core.data.digits import digits
from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.presets import get_space
from search_core.space.space import Layer, SearchSpace, Slot

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data():
    return digits()


@pytest.fixture(scope="session")
def micro():
    return get_space("micro")


@pytest.fixture(scope="session")
def tiny():
    """24 architectures: ragged slots, one shared by two layers, one candidate a Zero."""

    def mbconv(kernel, expansion, stride, in_channels, out_channels):
        shape = (kernel, expansion, stride, in_channels, out_channels, 4)
        return BlockSpec(BlockKind.MBCONV, *shape)

    zero = BlockSpec(BlockKind.ZERO, 1, 1, 1, 12, 12, 4)
    entry = tuple(mbconv(k, e, 1, 8, 12) for k, e in ((3, 1), (3, 2), (5, 2)))
    body = (mbconv(3, 2, 1, 12, 12), zero)
    exit_ = tuple(mbconv(k, e, 2, 12, 16) for k in (3, 5) for e in (1, 2))
    return SearchSpace(
        name="tiny",
        version=1,
        in_channels=1,
        resolution_px=8,
        n_classes=10,
        slots=(
            Slot("entry", ("k3e1", "k3e2", "k5e2")),
            Slot("body", ("k3e2", "zero")),
            Slot("exit", ("k3e1", "k3e2", "k5e1", "k5e2")),
        ),
        layers=(
            Layer((BlockSpec(BlockKind.CONV, 3, 1, 2, 1, 8, 8),)),
            Layer(entry, slot=0),
            Layer(body, slot=1),
            Layer(body, slot=1),
            Layer(exit_, slot=2),
            Layer((BlockSpec(BlockKind.CONV, 1, 1, 1, 16, 24, 2),)),
            Layer((BlockSpec(BlockKind.CLASSIFIER, 1, 1, 1, 24, 10, 2),)),
        ),
    )


@pytest.fixture(scope="session")
def identical():
    """Whether two nested states are equal to the last bit."""

    def compare(a, b):
        if isinstance(a, torch.Tensor):
            return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(compare(a[key], b[key]) for key in a)
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(map(compare, a, b))
        return a == b

    return compare
