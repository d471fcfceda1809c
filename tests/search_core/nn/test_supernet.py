"""The single-path supernet."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from search_core.nn.ops import BN_EPS_SEARCH
from search_core.nn.supernet import ALL, Supernet
from search_core.randomness import stream
from search_core.space.nasbench201 import nasbench201
from search_core.space.space import Layer, Slot
from search_core.train import WeightRecipe


@pytest.fixture
def supernet(tiny):
    return Supernet(tiny, stream(0, "weights"))


@pytest.fixture
def images():
    return torch.randn(6, 1, 8, 8, generator=stream(0, "images"))


def on_path(space, choices):
    """(layer, candidate) of every operation that the path `choices` holds."""
    return {
        (index, 0 if layer.slot is None else choices[layer.slot])
        for index, layer in enumerate(space.layers)
    }


def count_calls(supernet):
    """A counter of (layer, candidate) that every later forward pass fills."""
    calls = Counter()
    for index, candidates in enumerate(supernet.layers):
        for k, operation in enumerate(candidates):
            operation.register_forward_hook(lambda *_, key=(index, k): calls.update([key]))
    return calls


@pytest.mark.parametrize("choices", [(0, 0, 0), (2, 0, 3), (1, 0, 1)])
def test_exactly_one_candidate_a_layer_is_executed(tiny, supernet, images, choices):
    calls = count_calls(supernet)
    supernet(images, choices)
    assert calls == Counter(on_path(tiny, choices))


def test_a_zero_beside_its_shortcut_is_not_even_executed(tiny, supernet, images):
    calls = count_calls(supernet)
    supernet(images, (0, 1, 0))
    assert calls == Counter({(0, 0): 1, (1, 0): 1, (4, 0): 1, (5, 0): 1, (6, 0): 1})


def test_weights_off_the_path_get_no_gradient_and_do_not_move(tiny, supernet, images):
    choices = (2, 0, 1)
    optimizer = WeightRecipe(10, 0, weight_decay=0.1).optimizer(supernet)
    before = {name: p.detach().clone() for name, p in supernet.named_parameters()}
    for path in (choices, choices):  # momentum must not reach them either
        optimizer.zero_grad()
        supernet(images, path).square().sum().backward()
        optimizer.step()
    chosen = on_path(tiny, choices)
    for name, parameter in supernet.named_parameters():
        layer, candidate = map(int, name.split(".")[1:3])
        if (layer, candidate) in chosen:
            assert parameter.grad is not None
            assert not torch.equal(parameter, before[name])
        else:
            assert parameter.grad is None
            assert torch.equal(parameter, before[name])


def test_statistics_off_the_path_do_not_move(tiny, supernet, images):
    before = {name: b.clone() for name, b in supernet.named_buffers()}
    supernet(images, (2, 0, 1))
    chosen = on_path(tiny, (2, 0, 1))
    for name, buffer in supernet.named_buffers():
        layer, candidate = map(int, name.split(".")[1:3])
        assert torch.equal(buffer, before[name]) is ((layer, candidate) not in chosen)


def test_gates_of_one_change_nothing(supernet, images):
    supernet.eval()
    with torch.no_grad():
        assert torch.equal(supernet(images, (1, 0, 2), torch.ones(3)), supernet(images, (1, 0, 2)))


def test_a_gate_scales_the_operation_and_not_the_shortcut(tiny, supernet, images):
    supernet.eval()
    with torch.no_grad():
        gated = supernet(images, (1, 0, 2), torch.tensor([1.0, 0.0, 1.0]))
        assert torch.equal(gated, supernet(images, (1, 1, 2)))  # as if it were Zero


def test_all_candidates_of_a_slot_are_executed_once_and_averaged(tiny, supernet, images):
    supernet.eval()
    calls = count_calls(supernet)
    with torch.no_grad():
        scores = supernet(images, (ALL, 0, 2))
        assert calls == Counter(
            [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (3, 0), (4, 2), (5, 0), (6, 0)]
        )
        features = supernet.layers[0][0](images)
        features = sum(operation(features) for operation in supernet.layers[1]) / 3
        features = features + supernet.layers[2][0](features)
        features = features + supernet.layers[3][0](features)
        for operation in (supernet.layers[4][2], supernet.layers[5][0], supernet.layers[6][0]):
            features = operation(features)
    torch.testing.assert_close(scores, features, rtol=1e-5, atol=1e-6)


def test_a_zero_counts_in_the_average_without_being_executed(supernet, images):
    """Half of the operation beside the whole shortcut, in both layers of the slot."""
    supernet.eval()
    calls = count_calls(supernet)
    with torch.no_grad():
        averaged = supernet(images, (1, ALL, 2))
        halved = supernet(images, (1, 0, 2), torch.tensor([1.0, 0.5, 1.0]))
    assert (2, 1) not in calls
    assert (3, 1) not in calls
    torch.testing.assert_close(averaged, halved, rtol=1e-5, atol=1e-6)


def test_every_candidate_of_an_averaged_slot_learns(tiny, supernet, images):
    supernet(images, (1, 0, ALL)).square().sum().backward()
    chosen = on_path(tiny, (1, 0, 0)) | {(4, k) for k in range(4)}
    for name, parameter in supernet.named_parameters():
        layer, candidate = map(int, name.split(".")[1:3])
        assert (parameter.grad is not None) is ((layer, candidate) in chosen)


def test_in_a_cell_the_average_leaves_the_other_edges_to_their_choices():
    space = nasbench201(channels=4, cells_per_stage=1, resolution_px=8)
    supernet = Supernet(space, stream(0, "weights")).eval()
    images = torch.randn(2, 3, 8, 8, generator=stream(0, "images"))
    calls = count_calls(supernet)
    with torch.no_grad():
        supernet(images, (3, ALL, 1, 0, 4, 2))
    for index, layer in enumerate(space.layers):
        executed = [calls[index, k] for k in range(len(layer.blocks))]
        if layer.slot == 1:
            assert executed == [0, 1, 1, 1, 1]  # all but none
        else:
            assert sum(executed) == (layer.slot != 3)


def test_the_derived_network_gives_the_scores_of_its_path(tiny, supernet, images):
    for _ in range(3):
        supernet(images, (2, 0, 3))  # give the statistics something to say
    network = supernet.derive(tiny.architecture((2, 0, 3)))
    supernet.eval()
    network.eval()
    with torch.no_grad():
        assert torch.equal(network(images), supernet(images, (2, 0, 3)))


def test_the_derived_network_keeps_the_epsilon_of_the_search(tiny, supernet):
    network = supernet.derive(tiny.architecture((0, 0, 0)))
    assert network.layers[0].bn.eps == BN_EPS_SEARCH


def test_the_derived_network_is_a_copy(tiny, supernet, identical):
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    network = supernet.derive(tiny.architecture((0, 0, 0)))
    for tensor in network.state_dict().values():
        tensor.fill_(7)
    assert identical(before, dict(supernet.state_dict()))


def test_layers_that_share_a_slot_have_weights_of_their_own(supernet):
    first, second = supernet.layers[2][0], supernet.layers[3][0]
    assert not torch.equal(first.expand.conv.weight, second.expand.conv.weight)


def test_what_a_step_keeps_for_its_backward_pass_does_not_grow_with_the_candidates(tiny, images):
    def saved_bytes(space):
        held = []
        keep = lambda tensor: held.append(tensor.nbytes) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            Supernet(space, stream(0, "weights"))(images, (0, 0, 0), torch.ones(3))
        return sum(held)

    one = replace(
        tiny,
        slots=tuple(Slot(slot.name, slot.candidates[:1]) for slot in tiny.slots),
        layers=tuple(Layer(layer.blocks[:1], layer.slot) for layer in tiny.layers),
    )
    assert saved_bytes(tiny) == saved_bytes(one) > 0
