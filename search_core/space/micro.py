"""`micro`: a small MBConv space for 8 x 8 grey images, searched in a minute on two cores."""

from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.naming import variant_name
from search_core.space.space import Layer, SearchSpace, Slot

_KERNELS = (3, 5)
_EXPANSIONS = (1, 3, 6)
_STEM_CHANNELS = 16
_STAGES = ((24, 2, 1), (40, 2, 2), (80, 2, 2))  # channels, depth, first stride
_HEAD_CHANNELS = 160


def micro(in_channels: int = 1, resolution_px: int = 8, n_classes: int = 10) -> SearchSpace:
    """Six slots of {3x3, 5x5} x {expansion 1, 3, 6}."""
    resolution = resolution_px
    stem = BlockSpec(BlockKind.CONV, 3, 1, 1, in_channels, _STEM_CHANNELS, resolution)
    layers, channels = [Layer((stem,))], _STEM_CHANNELS
    slots: list[Slot] = []
    for stage, (out_channels, depth, first_stride) in enumerate(_STAGES, start=1):
        for position in range(depth):
            stride = first_stride if position == 0 else 1
            shape = (stride, channels, out_channels, resolution)
            tokens = {
                f"k{kernel}e{expansion}c{out_channels}": BlockSpec(
                    BlockKind.MBCONV, kernel, expansion, *shape
                )
                for expansion in _EXPANSIONS
                for kernel in _KERNELS
            }
            layers.append(Layer(tuple(tokens.values()), slot=len(slots)))
            slots.append(Slot(f"stage{stage}.{position}", tuple(tokens)))
            channels, resolution = out_channels, -(-resolution // stride)
    mix = BlockSpec(BlockKind.CONV, 1, 1, 1, channels, _HEAD_CHANNELS, resolution)
    classifier = BlockSpec(
        BlockKind.CLASSIFIER, 1, 1, 1, _HEAD_CHANNELS, n_classes, mix.out_resolution_px
    )
    layers += [Layer((mix,)), Layer((classifier,))]
    return SearchSpace(
        name=variant_name(
            "micro", {"i": (in_channels, 1), "r": (resolution_px, 8), "k": (n_classes, 10)}
        ),
        version=1,
        in_channels=in_channels,
        resolution_px=resolution_px,
        n_classes=n_classes,
        slots=tuple(slots),
        layers=tuple(layers),
    )
