"""The tree space: its shape, its published network, and one block counted by hand."""

import random
from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from search_core.errors import ArchitectureSyntaxError
from search_core.export import onnx_bytes, onnx_parity
from search_core.nn.network import Network
from search_core.nn.supernet import Supernet
from search_core.randomness import stream
from search_core.space.blocks import BlockKind
from search_core.space.presets import get_space
from search_core.space.proxyless_tree import proxyless_cifar_tree
from search_core.space.published import published_network

SPACE = get_space("proxyless_cifar_tree")
SMALL = get_space("proxyless_cifar_tree_b1_f20")


def blocks_of(space, kind):
    return [layer.blocks[0] for layer in space.layers if layer.blocks[0].kind is kind]


def test_the_space_has_twelve_decisions_in_each_of_54_blocks():
    assert len(SPACE.slots) == 54 * 12
    assert {len(slot.candidates) for slot in SPACE.slots} == {7}
    assert SPACE.size == 7**648


def test_the_backbone_grows_to_400_channels_and_halves_twice():
    widened = [block.out_channels for block in blocks_of(SPACE, BlockKind.PREACT_CONV)]
    assert widened[:7] == [72, 72, 80, 88, 96, 96, 104]
    assert widened[-2:] == [392, 400]
    assert all(channels % 8 == 0 for channels in widened)
    roots = blocks_of(SPACE, BlockKind.GROUP_CONV)
    assert [index + 1 for index, root in enumerate(roots) if root.stride == 2] == [19, 37]
    assert [root.out_channels * 2 for root in roots] == widened
    assert SPACE.layers[-1].blocks[0].resolution_px == 8


def test_the_published_network_has_its_published_parameters():
    """Recounted in torch as well."""
    graph = published_network("proxyless_cifar")
    with torch.device("meta"):
        network = Network(graph)
    assert graph.parameters == sum(p.numel() for p in network.parameters()) == 5_731_530


def test_macs_of_a_network_equal_the_flops_torch_counts():
    graph = SMALL.graph(SMALL.sample(random.Random(0)))
    with torch.device("meta"):
        network = Network(graph).eval()
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, 32, 32, device="meta"))
    assert graph.macs == counter.get_total_flops() / 2


def test_one_block_counted_by_hand():
    """Width 20, its trees of identities but for one 5x5 and one dilated 3x3 convolution."""
    space = proxyless_cifar_tree(1, 20)
    plain = space.architecture([0] * 36)
    words = ["iiiiiiiiiiii", "iiiiiiiiiiii", "5iiiiiiiidii"]
    assert space.format(plain) == "-".join(["i" * 12] * 3)
    narrow, wide, previous = 20, 80, 72
    bottleneck = 2 * previous + previous * narrow
    root = 2 * narrow + 9 * (narrow // 2) * (2 * narrow)
    branches = 2 * 2 * narrow
    widening = 2 * narrow + narrow * wide + 2 * wide
    third = [block for block in space.blocks(plain) if block.in_channels == previous]
    assert third[0].parameters == bottleneck
    by_kind = {b.kind: b.parameters for b in space.blocks(plain) if b.in_channels == narrow}
    assert by_kind[BlockKind.GROUP_CONV] == root
    assert by_kind[BlockKind.PREACT_CONV] == widening
    assert 2 * by_kind[BlockKind.BN] == branches
    operations = sum(2 * narrow + k * k * narrow + narrow * narrow for k in (5, 3))
    chosen = space.parse("-".join(words))
    assert space.parameters(chosen) == space.parameters(plain) + operations


def test_twelve_letters_stand_for_the_edges_of_the_two_trees():
    space = proxyless_cifar_tree(1, 20)
    graph = space.graph(space.parse("-".join(["iam357diam35", "i" * 12, "i" * 12])))
    first = [
        (str(block.kind), block.kernel, edge)
        for block, edge in zip(graph.blocks, graph.edges, strict=True)
    ][3:11]
    trunk, left, right, summed, merged = 4, 5, 6, 7, 12
    assert first == [
        ("firsthalf", 1, (3, trunk)),
        ("skip", 1, (trunk, left)),
        ("avgpool", 3, (trunk, right)),
        ("maxpool", 3, (left, summed)),
        ("sepconv", 3, (left, summed)),
        ("sepconv", 5, (right, summed)),
        ("sepconv", 7, (right, summed)),
        ("bn", 1, (summed, merged)),
    ]


def test_the_shortcut_pools_and_pads_where_the_shape_changes():
    shortcuts = Counter(
        (block.stride, block.out_channels > block.in_channels)
        for block in blocks_of(SPACE, BlockKind.PADDED)
    )
    assert shortcuts[2, True] == 2
    assert set(shortcuts) == {(1, True), (2, True)}


@pytest.mark.parametrize("text", ["", "i" * 12, "-".join(["i" * 12] * 2), "-".join(["i" * 11] * 3)])
def test_another_number_of_letters_is_refused(text):
    with pytest.raises(ArchitectureSyntaxError, match="writes an architecture as 'iiiiiiiiiiii-i"):
        SMALL.parse(text)


def test_an_unknown_letter_names_its_edge():
    with pytest.raises(
        ArchitectureSyntaxError, match=r"slot 2\.last\.bb knows i, a, m, 3, 5, 7, d"
    ):
        SMALL.parse("-".join(["i" * 12, "i" * 11 + "x", "i" * 12]))


def test_path_derived_network_and_onnx_give_the_same_scores():
    images = torch.randn(4, 3, 32, 32, generator=stream(0, "images"))
    supernet = Supernet(SMALL, stream(0, "weights"))
    rng = random.Random(0)
    architectures = [SMALL.sample(rng) for _ in range(3)]
    for architecture in architectures:
        supernet(images, architecture.choices)  # give the statistics something to say
    supernet.eval()
    for architecture in architectures:
        network = supernet.derive(architecture).eval()
        with torch.no_grad():
            assert torch.equal(supernet(images, architecture.choices), network(images))
        assert onnx_parity(network, onnx_bytes(network), images) < 1e-4
