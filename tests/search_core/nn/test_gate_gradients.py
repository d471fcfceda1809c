"""The gate gradients of ProxylessNAS: one path forward, every compared candidate in backward."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from search_core.nn.batch_norm import batch_statistics_only
from search_core.nn.ops import Zero
from search_core.nn.supernet import Supernet
from search_core.randomness import stream
from search_core.space.nasbench201 import nasbench201
from search_core.space.space import Layer, Slot

CELL = nasbench201(4, 1, stem_stride=2, resolution_px=8)


@pytest.fixture(params=["tiny", "cell"])
def case(request, tiny):
    """A space, its supernet, images and labels, and paths with and without `Zero`."""
    space = tiny if request.param == "tiny" else CELL
    paths = [(2, 0, 1), (1, 1, 3)] if space is tiny else [(3, 1, 2, 0, 4, 3), (0, 3, 0, 2, 1, 0)]
    side, channels = space.resolution_px, space.in_channels
    images = torch.randn(6, channels, side, side, generator=stream(0, "images"))
    labels = torch.arange(6) % space.n_classes
    return space, Supernet(space, stream(0, "weights")).double(), images.double(), labels, paths


def loss_of(scores, labels):
    return nn.functional.cross_entropy(scores, labels)


def zero_gates(space):
    return torch.zeros(
        len(space.slots), space.n_candidates, dtype=torch.float64, requires_grad=True
    )


def every_candidate(space):
    return [range(len(slot.candidates)) for slot in space.slots]


def explicit_sum(supernet, images, choices, gates):
    """The mixed operation written out: y = sum_k g_k o_k(x), inactive outputs detached."""
    space = supernet.space
    nodes = {0: images}
    for layer, (source, target), candidates in zip(
        space.layers, space.edges, supernet.layers, strict=True
    ):
        features = nodes[source]
        if layer.slot is None:
            chosen, output = layer.blocks[0], candidates[0](features)
        else:
            chosen, output = layer.blocks[choices[layer.slot]], 0.0
            for k, operation in enumerate(candidates):
                if k == choices[layer.slot]:
                    answer = operation(features)
                else:
                    with torch.no_grad(), batch_statistics_only(operation):
                        answer = operation(features)
                output = output + gates[layer.slot, k] * answer
        if chosen.has_shortcut:
            output = output + features
        nodes[target] = nodes[target] + output if target in nodes else output
    return nodes[target]


def gradients(supernet):
    return {name: p.grad.clone() for name, p in supernet.named_parameters() if p.grad is not None}


def one_hot(space, choices):
    gates = torch.zeros(len(space.slots), space.n_candidates, dtype=torch.float64)
    gates[range(len(choices)), choices] = 1.0
    return gates.requires_grad_()


@pytest.mark.parametrize("path", [0, 1])
def test_gradients_are_those_of_the_sum_written_out(case, path):
    space, supernet, images, labels, paths = case
    choices = paths[path]
    gates = zero_gates(space)
    loss_of(supernet(images, choices, gates, every_candidate(space)), labels).backward()
    of_weights = gradients(supernet)
    supernet.zero_grad()
    written_out = one_hot(space, choices)
    loss_of(explicit_sum(supernet, images, choices, written_out), labels).backward()
    torch.testing.assert_close(gates.grad, written_out.grad, rtol=1e-9, atol=1e-12)
    assert gates.grad.abs().sum() > 0
    expected = gradients(supernet)
    assert of_weights.keys() == expected.keys()
    for name, gradient in of_weights.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)


def test_a_zero_has_no_gate_gradient_on_the_path_or_off_it(case):
    space, supernet, images, labels, paths = case
    zeros = {
        (layer.slot, k)
        for layer, candidates in zip(space.layers, supernet.layers, strict=True)
        for k, operation in enumerate(candidates)
        if isinstance(operation, Zero)
    }
    for choices in paths:
        gates = zero_gates(space)
        loss_of(supernet(images, choices, gates, every_candidate(space)), labels).backward()
        assert zeros
        assert all(gates.grad[slot, k] == 0.0 for slot, k in zeros)


def test_only_the_compared_candidates_get_a_gate_gradient(case):
    space, supernet, images, labels, paths = case
    choices = paths[0]
    pairs = [
        {choice, (choice + 1) % len(slot.candidates)}
        for choice, slot in zip(choices, space.slots, strict=True)
    ]
    every, some = zero_gates(space), zero_gates(space)
    loss_of(supernet(images, choices, every, every_candidate(space)), labels).backward()
    loss_of(supernet(images, choices, some, pairs), labels).backward()
    for slot, pair in enumerate(pairs):
        for k in range(space.n_candidates):
            expected = every.grad[slot, k] if k in pair else torch.zeros((), dtype=torch.float64)
            torch.testing.assert_close(some.grad[slot, k], expected)


def test_backward_leaves_every_running_statistic_alone(case):
    space, supernet, images, labels, paths = case
    loss = loss_of(supernet(images, paths[0], zero_gates(space), every_candidate(space)), labels)
    before = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    loss.backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in supernet.named_buffers())


def test_a_candidate_that_is_compared_gets_no_weight_gradient(case):
    space, supernet, images, labels, paths = case
    choices = paths[0]
    gates = zero_gates(space)
    loss_of(supernet(images, choices, gates, every_candidate(space)), labels).backward()
    on_path = {
        (str(index), str(0 if layer.slot is None else choices[layer.slot]))
        for index, layer in enumerate(space.layers)
    }
    touched = {tuple(name.split(".")[1:3]) for name in gradients(supernet)}
    assert touched <= on_path


def test_the_values_of_the_gates_are_not_read(case):
    space, supernet, images, _, paths = case
    supernet.eval()
    with torch.no_grad():
        plain = supernet(images, paths[0])
        gated = supernet(images, paths[0], zero_gates(space), every_candidate(space))
    torch.testing.assert_close(gated, plain, rtol=0, atol=0)


def test_what_is_kept_for_backward_does_not_grow_with_the_candidates(tiny):
    images = torch.randn(6, 1, 8, 8, generator=stream(0, "images"))

    def saved_bytes(space):
        held = []
        keep = lambda tensor: held.append(tensor.nbytes) or tensor  # noqa: E731
        gates = torch.zeros(3, tiny.n_candidates, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            Supernet(space, stream(0, "weights"))(images, (0, 0, 0), gates, every_candidate(space))
        return sum(held)

    one = replace(
        tiny,
        slots=tuple(Slot(slot.name, slot.candidates[:1]) for slot in tiny.slots),
        layers=tuple(Layer(layer.blocks[:1], layer.slot) for layer in tiny.layers),
    )
    assert saved_bytes(tiny) == saved_bytes(one) > 0
