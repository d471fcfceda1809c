"""The ProxylessNAS space: 21 MBConv slots between a fixed head and tail (Cai et al. 2018).

A string of the published networks has 22 tokens, the fixed first block included; channels
are part of each token because the published widths differ from the space's own.
"""

import re
from collections.abc import Sequence

from search_core.errors import ArchitectureSyntaxError
from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.naming import variant_name
from search_core.space.space import Layer, SearchSpace, Slot

_KERNELS = (3, 5, 7)
_EXPANSIONS = (3, 6)
_CHANNELS = (24, 40, 80, 96, 192, 320)
_DEPTHS = (4, 4, 4, 4, 4, 1)
_STRIDES_IMAGENET = (2, 2, 2, 1, 2, 1)
_STRIDES_CIFAR = (1, 1, 2, 1, 2, 1)
_STEM_CHANNELS, _FIRST_CHANNELS, _MIX_CHANNELS = 32, 16, 1280

_TOKEN = re.compile(r"k([1-9]\d*)e([1-9]\d*)c([1-9]\d*)|Z", re.ASCII)


def make_divisible(value: float, divisor: int = 8) -> int:
    """`value` rounded to a multiple of `divisor`, never by more than 10 % down."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def proxyless_imagenet(width: float = 1.0) -> SearchSpace:
    """The published space: 224 px, 1,000 classes, 6^6 x 7^15 architectures.

    Args:
        width: multiplier of every channel count; the head's grows only above 1.
    """
    name = variant_name("proxyless_imagenet", {"w": (width, 1.0)})
    return _space(name, width, 3, 224, 1000, stem_stride=2, strides=_STRIDES_IMAGENET)


def proxyless_cifar_mb(
    in_channels: int = 3, resolution_px: int = 32, n_classes: int = 10
) -> SearchSpace:
    """The same blocks at 32 px for ten classes, with the first two strides removed."""
    name = variant_name(
        "proxyless_cifar_mb",
        {"i": (in_channels, 3), "r": (resolution_px, 32), "k": (n_classes, 10)},
    )
    shape = (in_channels, resolution_px, n_classes)
    return _space(name, 1.0, *shape, stem_stride=1, strides=_STRIDES_CIFAR)


def mbconv_network(
    text: str,
    *,
    stem_channels: int = _STEM_CHANNELS,
    mix_channels: int = _MIX_CHANNELS,
    resolution_px: int = 224,
    n_classes: int = 1000,
) -> tuple[BlockSpec, ...]:
    """The chain of blocks of a published 22-token string, the fixed first block included.

    Args:
        text: 22 tokens; a channel count may be any, ``Z`` leaves the layer to its shortcut.
        stem_channels, mix_channels: of the convolutions before and after the tokens, which
            the string does not tell.

    Raises:
        ArchitectureSyntaxError: naming the position and the token at fault.
    """
    tokens = text.split()
    places = [(1, True)] + [  # stride, and whether the shape may change there
        (stride if position == 0 else 1, position == 0)
        for depth, stride in zip(_DEPTHS, _STRIDES_IMAGENET, strict=True)
        for position in range(depth)
    ]
    if len(tokens) != len(places):
        raise ArchitectureSyntaxError(
            f"a ProxylessNAS string has {len(places)} tokens, the first block's included; "
            f"got {len(tokens)}"
        )
    blocks = [BlockSpec(BlockKind.CONV, 3, 1, 2, 3, stem_channels, resolution_px)]
    for position, (token, (stride, changes)) in enumerate(zip(tokens, places, strict=True)):
        match = _TOKEN.fullmatch(token)
        if match is None or (token == "Z" and changes):
            raise ArchitectureSyntaxError(
                f"token {position} is {token!r}; expected kKeEcC such as k5e3c32"
                + ("" if changes else ", or Z")
            )
        given, resolution = blocks[-1].out_channels, blocks[-1].out_resolution_px
        if token == "Z":
            blocks.append(BlockSpec(BlockKind.ZERO, 1, 1, 1, given, given, resolution))
        else:
            kernel, expansion, channels = map(int, match.groups())
            shape = (stride, given, channels, resolution)
            blocks.append(BlockSpec(BlockKind.MBCONV, kernel, expansion, *shape))
    return (*blocks, *_tail(blocks[-1], mix_channels, n_classes))


def _space(
    name: str,
    width: float,
    in_channels: int,
    resolution_px: int,
    n_classes: int,
    *,
    stem_stride: int,
    strides: Sequence[int],
) -> SearchSpace:
    stem_channels = make_divisible(_STEM_CHANNELS * width)
    first_channels = make_divisible(_FIRST_CHANNELS * width)
    stem = BlockSpec(BlockKind.CONV, 3, 1, stem_stride, in_channels, stem_channels, resolution_px)
    resolution = stem.out_resolution_px
    first = BlockSpec(BlockKind.MBCONV, 3, 1, 1, stem_channels, first_channels, resolution)
    layers, channels = [Layer((stem,)), Layer((first,))], first_channels
    slots: list[Slot] = []
    stages = zip(_CHANNELS, _DEPTHS, strides, strict=True)
    for stage, (base_channels, depth, first_stride) in enumerate(stages, start=1):
        out_channels = make_divisible(base_channels * width)
        for position in range(depth):
            stride = first_stride if position == 0 else 1
            shape = (stride, channels, out_channels, resolution)
            tokens = {
                f"k{kernel}e{expansion}c{out_channels}": BlockSpec(
                    BlockKind.MBCONV, kernel, expansion, *shape
                )
                for kernel in _KERNELS
                for expansion in _EXPANSIONS
            }
            if stride == 1 and channels == out_channels:
                tokens["Z"] = BlockSpec(BlockKind.ZERO, 1, 1, *shape)
            layers.append(Layer(tuple(tokens.values()), slot=len(slots)))
            slots.append(Slot(f"stage{stage}.{position}", tuple(tokens)))
            channels, resolution = out_channels, layers[-1].blocks[0].out_resolution_px
    mix_channels = make_divisible(_MIX_CHANNELS * width) if width > 1.0 else _MIX_CHANNELS
    tail = _tail(layers[-1].blocks[0], mix_channels, n_classes)
    return SearchSpace(
        name=name,
        version=1,
        in_channels=in_channels,
        resolution_px=resolution_px,
        n_classes=n_classes,
        slots=tuple(slots),
        layers=(*layers, *(Layer((block,)) for block in tail)),
    )


def _tail(last: BlockSpec, mix_channels: int, n_classes: int) -> tuple[BlockSpec, BlockSpec]:
    mix = BlockSpec(
        BlockKind.CONV, 1, 1, 1, last.out_channels, mix_channels, last.out_resolution_px
    )
    resolution = mix.out_resolution_px
    return mix, BlockSpec(BlockKind.CLASSIFIER, 1, 1, 1, mix_channels, n_classes, resolution)
