"""Gate gradients without gates: from the weights, and from the input of a proportional layer."""

import pytest
import torch
from torch import nn

from search_core.nn.gates import gate_gradients
from search_core.nn.ops import PROPORTIONAL, build_operation
from search_core.nn.supernet import Supernet
from search_core.randomness import stream
from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.nasbench201 import nasbench201
from search_core.space.space import Layer, SearchSpace, Slot

CHANNELS, SIDE_PX = 8, 6
GATED_BY_HAND = {BlockKind.CONV}  # a ReLU6 clips: what comes out is proportional to nothing
NOTHING = {BlockKind.NONE, BlockKind.ZERO}
HEADS = {BlockKind.CLASSIFIER, BlockKind.FC, BlockKind.REDUCTION}  # are never decided by a slot


def block(kind, stride=1):
    expansion = 3 if kind is BlockKind.MBCONV else 1
    halves = (BlockKind.FIRST_HALF, BlockKind.LAST_HALF)
    out = CHANNELS // 2 if kind in halves else 2 * CHANNELS if stride > 1 else CHANNELS
    return BlockSpec(kind, 3, expansion, stride, CHANNELS, out, SIDE_PX)


def operation(spec):
    made = build_operation(spec, 1e-2).double()
    generator = stream(0, "operation")
    for parameter in made.parameters():  # scales other than 1 and shifts other than 0
        nn.init.normal_(parameter, 0.3, 1.0, generator=generator)
    return made


def features():
    shape = (5, CHANNELS, SIDE_PX, SIDE_PX)
    return torch.randn(shape, generator=stream(0, "features"), dtype=torch.float64)


def loss_of(output):
    """Neither linear nor homogeneous in `output`."""
    slopes = torch.randn(output.shape, generator=stream(0, "slopes"), dtype=torch.float64)
    return (slopes * output).sum() + (0.1 * output).exp().sum()


SEARCHED = [k for k in BlockKind if k not in NOTHING | HEADS]


STRIDED = [BlockKind.MBCONV, BlockKind.SHUFFLE, BlockKind.XCEPTION]


@pytest.mark.parametrize(("kind", "stride"), [(k, 1) for k in SEARCHED] + [(k, 2) for k in STRIDED])
def test_what_is_told_without_a_gate_is_what_the_gate_would_tell(kind, stride):
    op, x = operation(block(kind, stride)), features().requires_grad_()
    output = op(x)
    output.retain_grad()
    loss_of(output).backward()
    made = output.detach()
    if kind in (BlockKind.SHUFFLE, BlockKind.XCEPTION) and stride == 1:
        made = torch.cat([torch.zeros_like(x[:, 0::2]), made[:, CHANNELS // 2 :]], dim=1)
    gate = (output.grad * made).sum()  # of the part that the operation makes

    parameters = getattr(op, "output_parameters", ())
    told = torch.zeros(1, dtype=torch.float64)
    if parameters:
        gradients = [p.grad for p in parameters]
        gate_gradients(parameters, gradients, [0] * len(parameters), out=told)
    elif isinstance(op, PROPORTIONAL):
        told += (x.grad * x.detach()).sum()
    else:
        assert kind in GATED_BY_HAND or kind is BlockKind.BN
        return
    assert gate.abs() > 1e-3
    torch.testing.assert_close(told[0], gate, rtol=1e-9, atol=1e-9)


def test_a_missing_gradient_counts_as_nothing_and_slots_add_up():
    weights = [torch.tensor([2.0, 3.0]), torch.tensor([[5.0]]), torch.tensor([7.0])]
    slopes = [torch.tensor([1.0, -1.0]), torch.tensor([[2.0]]), None]
    out = torch.tensor([0.0, 1.0, 0.0])
    gate_gradients(weights, slopes, [1, 1, 2], out=out)
    assert out.tolist() == [0.0, 1.0 + 2.0 - 3.0 + 10.0, 0.0]
    gate_gradients(weights[2:], slopes[2:], [2], out=out)
    assert out[2] == 0.0


def chain(kinds, n_slots=2):
    """Each slot decides one layer between these kinds, all of one shape."""
    candidates = tuple(block(kind) for kind in kinds)
    names = tuple("abcdefgh"[: len(kinds)])
    tail = BlockSpec(BlockKind.FC, 1, 1, 1, CHANNELS, 4, SIDE_PX)
    slots = tuple(Slot(str(i), names) for i in range(n_slots))
    layers = (*(Layer(candidates, i) for i in range(n_slots)), Layer((tail,)))
    return SearchSpace("chain", 1, CHANNELS, SIDE_PX, 4, slots, layers)


@pytest.mark.parametrize(
    ("kind", "n"),
    [
        (BlockKind.MBCONV, 2),
        (BlockKind.RELU_CONV, 2),
        (BlockKind.SEP_CONV, 1),
        (BlockKind.ZERO, 0),
        (BlockKind.SKIP, None),
        (BlockKind.AVG_POOL, None),
        (BlockKind.CONV, None),
    ],
)
def test_a_supernet_says_of_each_slot_what_tells(kind, n):
    supernet = Supernet(chain([kind, BlockKind.MBCONV]), stream(0, "weights"))
    told, other = supernet.output_parameters((0, 1))
    assert (None if told is None else len(told)) == n
    assert len(other) == 2


def test_a_slot_of_many_layers_is_told_by_all_of_them():
    space = nasbench201(channels=4, cells_per_stage=2, resolution_px=8)
    supernet = Supernet(space, stream(0, "weights"))
    told = supernet.output_parameters((3, 2, 0, 1, 4, 3))
    layers = sum(layer.slot == 0 for layer in space.layers)
    assert [None if t is None else len(t) for t in told] == [
        2 * layers,
        2 * layers,
        0,
        None,
        None,
        2 * layers,
    ]
