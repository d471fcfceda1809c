"""The path-level tree space of ProxylessNAS on CIFAR (Cai et al. 2018), on a PyramidNet backbone.

A residual block narrows to a bottleneck, runs a tree cell and widens again:

    x -> BN, 1x1 -> BN, ReLU, 3x3 in two groups, shuffle -> split in two -> tree, tree
      -> sum -> BN, ReLU, 1x1, BN -> + x

A tree adds to its input u the BatchNorm of four paths, each of two operations: two edges leave
u, and two leave each of their ends. An architecture is one word a block, joined by ``-``; its
twelve letters are the operations of the first tree and then of the second: the first pair of
edges, the pair after the first of them, the pair after the second.
"""

from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.naming import variant_name
from search_core.space.space import Layer, SearchSpace, Slot

_OPERATIONS = {
    "i": (BlockKind.SKIP, 1),
    "a": (BlockKind.AVG_POOL, 3),
    "m": (BlockKind.MAX_POOL, 3),
    "3": (BlockKind.SEP_CONV, 3),
    "5": (BlockKind.SEP_CONV, 5),
    "7": (BlockKind.SEP_CONV, 7),
    "d": (BlockKind.DIL_CONV, 3),
}
_STEM_CHANNELS = 16
_GROUPS = 3
_WIDENING = 4  # output channels of a block for each of its bottleneck's


def proxyless_cifar_tree(
    blocks_per_group: int = 18,
    bottleneck: int = 100,
    *,
    resolution_px: int = 32,
    n_classes: int = 10,
) -> SearchSpace:
    """7^648 networks; by default the backbone of the published one: 54 blocks, 400 channels.

    Args:
        blocks_per_group: fewer make a smaller network of the same blocks, to search in; the
            second and the third group begin by halving the resolution.
        bottleneck: width of the last block's; those before it grow linearly from 16.
    """
    n_blocks = _GROUPS * blocks_per_group
    resolution = resolution_px
    stem = BlockSpec(BlockKind.CONV_LINEAR, 3, 1, 1, 3, _STEM_CHANNELS, resolution)
    layers, slots, channels = [Layer((stem,), source=0, target=1)], list[Slot](), _STEM_CHANNELS
    node = 1
    for index in range(n_blocks):
        grown = _STEM_CHANNELS + (bottleneck - _STEM_CHANNELS) * (index + 1) / n_blocks
        width = round(grown) // 2 * 2  # even, for the two groups
        stride = 2 if index and index % blocks_per_group == 0 else 1
        layers += _block(node, len(slots), channels, width, stride, resolution)
        slots += [Slot(f"{index + 1}.{edge}", tuple(_OPERATIONS)) for edge in _EDGE_NAMES]
        channels, resolution = width * _WIDENING, -(-resolution // stride)
        node = layers[-1].target or node
    shape = (channels, channels, resolution)
    tail = (
        BlockSpec(BlockKind.BN_RELU, 1, 1, 1, *shape),
        BlockSpec(BlockKind.CLASSIFIER, 1, 1, 1, channels, n_classes, resolution),
    )
    layers += [
        Layer((block,), source=node + i, target=node + i + 1) for i, block in enumerate(tail)
    ]
    return SearchSpace(
        name=variant_name(
            "proxyless_cifar_tree", {"b": (blocks_per_group, 18), "f": (bottleneck, 100)}
        ),
        version=1,
        in_channels=3,
        resolution_px=resolution_px,
        n_classes=n_classes,
        slots=tuple(slots),
        layers=tuple(layers),
        notation="-".join(["{}" * len(_EDGE_NAMES)] * n_blocks),
    )


_EDGE_NAMES = [
    f"{tree}.{edge}" for tree in ("first", "last") for edge in ("a", "b", "aa", "ab", "ba", "bb")
]


def _block(
    node: int, first_slot: int, channels: int, width: int, stride: int, resolution_px: int
) -> list[Layer]:
    """The layers of a residual block that reads `node`; the last adds the shortcut."""
    narrow, root, merged = node + 1, node + 2, node + 11
    after = -(-resolution_px // stride)
    out_channels = width * _WIDENING

    def fixed(
        kind: BlockKind,
        source: int,
        target: int,
        shape: tuple[int, int, int],
        kernel: int = 1,
        stride: int = 1,
    ) -> Layer:
        block = BlockSpec(kind, kernel, 1, stride, *shape)
        return Layer((block,), source=source, target=target)

    inner = (width, width, after)
    candidates = tuple(
        BlockSpec(kind, kernel, 1, 1, *inner) for kind, kernel in _OPERATIONS.values()
    )
    layers = [
        fixed(BlockKind.BN_CONV, node, narrow, (channels, width, resolution_px)),
        fixed(
            BlockKind.GROUP_CONV,
            narrow,
            root,
            (width, 2 * width, resolution_px),
            kernel=3,
            stride=stride,
        ),
    ]
    for tree, half in enumerate((BlockKind.FIRST_HALF, BlockKind.LAST_HALF)):
        trunk = root + 1 + 4 * tree  # its two inner nodes and its sum follow it
        left, right, summed = trunk + 1, trunk + 2, trunk + 3
        layers.append(fixed(half, root, trunk, (2 * width, width, after)))
        leaves = [(end, summed) for end in (left, left, right, right)]
        edges = [(trunk, left), (trunk, right), *leaves]
        layers += [
            Layer(candidates, first_slot + 6 * tree + i, source=source, target=target)
            for i, (source, target) in enumerate(edges)
        ]
        layers.append(fixed(BlockKind.BN, summed, merged, inner))
        layers.append(fixed(BlockKind.SKIP, trunk, merged, inner))
    out = merged + 1
    changes_shape = stride > 1 or channels != out_channels
    shortcut = BlockKind.PADDED if changes_shape else BlockKind.SKIP
    layers += [
        fixed(BlockKind.PREACT_CONV, merged, out, (width, out_channels, after)),
        fixed(shortcut, node, out, (channels, out_channels, resolution_px), stride=stride),
    ]
    return layers
