"""NAS-Bench-201: one cell of six decisions, repeated fifteen times (Dong and Yang 2020).

Node 0 of a cell is its input; nodes 1, 2 and 3 sum one operation on each node before them.
An architecture reads as in the public benchmark:
``|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|+|none~0|nor_conv_1x1~1|avg_pool_3x3~2|``.
"""

from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.naming import variant_name
from search_core.space.space import Layer, SearchSpace, Slot

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""In the order of the public benchmark."""

_EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
_NOTATION = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|"
_STAGES = 3


def nasbench201(
    channels: int = 16,
    cells_per_stage: int = 5,
    *,
    stem_stride: int = 1,
    in_channels: int = 3,
    resolution_px: int = 32,
    n_classes: int = 10,
) -> SearchSpace:
    """15,625 cells; by default the benchmark's own network: 16 channels, five cells a stage.

    Args:
        channels: of the first stage; each of the three stages doubles them.
        cells_per_stage: fewer make a smaller network of the same cells, to search in.
        stem_stride: 2 searches at half the resolution.
    """
    stem = BlockSpec(BlockKind.CONV_LINEAR, 3, 1, stem_stride, in_channels, channels, resolution_px)
    layers, node = [Layer((stem,), source=0, target=1)], 1
    width, resolution = channels, stem.out_resolution_px
    for stage in range(_STAGES):
        if stage:
            reduction = BlockSpec(BlockKind.REDUCTION, 3, 1, 2, width, 2 * width, resolution)
            layers.append(Layer((reduction,), source=node, target=node + 1))
            node, width, resolution = node + 1, 2 * width, reduction.out_resolution_px
        candidates = tuple(_operation(name, width, resolution) for name in OPERATIONS)
        for _ in range(cells_per_stage):
            layers += [
                Layer(candidates, slot, source=node + source, target=node + target)
                for slot, (source, target) in enumerate(_EDGES)
            ]
            node += 3
    tail = (
        BlockSpec(BlockKind.BN_RELU, 1, 1, 1, width, width, resolution),
        BlockSpec(BlockKind.CLASSIFIER, 1, 1, 1, width, n_classes, resolution),
    )
    layers += [
        Layer((block,), source=node + i, target=node + i + 1) for i, block in enumerate(tail)
    ]
    return SearchSpace(
        name=variant_name(
            "nasbench201",
            {
                "c": (channels, 16),
                "n": (cells_per_stage, 5),
                "s": (stem_stride, 1),
                "r": (resolution_px, 32),
                "i": (in_channels, 3),
                "k": (n_classes, 10),
            },
        ),
        version=1,
        in_channels=in_channels,
        resolution_px=resolution_px,
        n_classes=n_classes,
        slots=tuple(Slot(f"{source}->{target}", OPERATIONS) for source, target in _EDGES),
        layers=tuple(layers),
        notation=_NOTATION,
    )


def _operation(name: str, channels: int, resolution_px: int) -> BlockSpec:
    kind, kernel = {
        "none": (BlockKind.NONE, 1),
        "skip_connect": (BlockKind.SKIP, 1),
        "nor_conv_1x1": (BlockKind.RELU_CONV, 1),
        "nor_conv_3x3": (BlockKind.RELU_CONV, 3),
        "avg_pool_3x3": (BlockKind.AVG_POOL, 3),
    }[name]
    return BlockSpec(kind, kernel, 1, 1, channels, channels, resolution_px)
