"""The ShuffleNetV2 space of SPOS (Guo et al. 2019), as DSNAS searches it: 20 slots of four.

An architecture is the 20 choices joined by ``-``: 0, 1 and 2 are shuffle units with a 3x3, 5x5
and 7x7 depthwise convolution, 3 is the Xception unit.
"""

from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.naming import variant_name
from search_core.space.space import Layer, SearchSpace, Slot

_CHOICES = (
    ("0", BlockKind.SHUFFLE, 3),
    ("1", BlockKind.SHUFFLE, 5),
    ("2", BlockKind.SHUFFLE, 7),
    ("3", BlockKind.XCEPTION, 3),
)
_STEM_CHANNELS, _LAST_CHANNELS = 16, 1024
_CHANNELS = (64, 160, 320, 640)
_DEPTHS = (4, 4, 8, 4)


def spos_imagenet() -> SearchSpace:
    """The published space: 224 px, 1,000 classes, 4^20 architectures."""
    return _space("spos_imagenet", 3, 224, 1000, stem_stride=2, strides=(2, 2, 2, 2))


def spos_cifar(in_channels: int = 3, resolution_px: int = 32, n_classes: int = 10) -> SearchSpace:
    """The same units at 32 px for ten classes, reduced 4 times instead of 32."""
    name = variant_name(
        "spos_cifar", {"i": (in_channels, 3), "r": (resolution_px, 32), "k": (n_classes, 10)}
    )
    shape = (in_channels, resolution_px, n_classes)
    return _space(name, *shape, stem_stride=1, strides=(1, 2, 2, 1))


def _space(
    name: str,
    in_channels: int,
    resolution_px: int,
    n_classes: int,
    *,
    stem_stride: int,
    strides: tuple[int, ...],
) -> SearchSpace:
    stem = BlockSpec(
        BlockKind.CONV_RELU, 3, 1, stem_stride, in_channels, _STEM_CHANNELS, resolution_px
    )
    layers, slots = [Layer((stem,))], list[Slot]()
    for stage, (channels, depth, first) in enumerate(zip(_CHANNELS, _DEPTHS, strides, strict=True)):
        for position in range(depth):
            last = layers[-1].blocks[0]
            stride = first if position == 0 else 1
            if stride == 1 and last.out_channels != channels:
                adapt = BlockSpec(
                    BlockKind.CONV_RELU,
                    1,
                    1,
                    1,
                    last.out_channels,
                    channels,
                    last.out_resolution_px,
                )
                layers.append(Layer((adapt,)))
                last = adapt
            blocks = tuple(
                BlockSpec(
                    kind, kernel, 1, stride, last.out_channels, channels, last.out_resolution_px
                )
                for _, kind, kernel in _CHOICES
            )
            layers.append(Layer(blocks, slot=len(slots)))
            slots.append(Slot(f"stage{stage + 1}.{position}", tuple(t for t, _, _ in _CHOICES)))
    last = layers[-1].blocks[0]
    mix = BlockSpec(
        BlockKind.CONV_RELU, 1, 1, 1, last.out_channels, _LAST_CHANNELS, last.out_resolution_px
    )
    fc = BlockSpec(BlockKind.FC, 1, 1, 1, _LAST_CHANNELS, n_classes, mix.out_resolution_px)
    return SearchSpace(
        name=name,
        version=1,
        in_channels=in_channels,
        resolution_px=resolution_px,
        n_classes=n_classes,
        slots=tuple(slots),
        layers=(*layers, Layer((mix,)), Layer((fc,))),
        notation="-".join(["{}"] * len(slots)),
    )
