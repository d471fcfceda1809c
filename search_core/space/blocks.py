"""The block grammar: one frozen value, one canonical string, one parser.

A block string reads ``kind_kK_eE_sS_iIN_oOUT_rR``, for example
``mbconv_k5_e3_s2_i24_o40_r8``: an inverted-bottleneck block with a 5x5 depthwise
convolution, expansion 3, stride 2, from 24 to 40 channels, on an 8 x 8 input.
The string is the identity of a block everywhere: in kits, in measurements and in
latency models.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from search_core.errors import BlockSyntaxError
from search_core.space.primitives import Primitive, Program, Step


class BlockKind(StrEnum):
    """What a block computes; up to REDUCTION every convolution but one is followed by BatchNorm."""

    CONV = "conv"  # KxK convolution, ReLU6
    CONV_RELU = "convrelu"  # KxK convolution, ReLU
    CONV_LINEAR = "convlinear"  # KxK convolution, no activation
    RELU_CONV = "reluconv"  # ReLU, KxK convolution (NAS-Bench-201)
    MBCONV = "mbconv"  # 1x1 expand, ReLU6, KxK depthwise, ReLU6, 1x1 project, linear
    SHUFFLE = "shuffle"  # ShuffleNetV2 unit with a KxK depthwise convolution
    XCEPTION = "xception"  # ShuffleNetV2 unit with three depthwise-separable convolutions
    REDUCTION = "reduction"  # two ReLU-convolutions beside a pooled 1x1 one without BatchNorm
    BN_CONV = "bnconv"  # BatchNorm, KxK convolution
    PREACT_CONV = "preactconv"  # BatchNorm, ReLU, KxK convolution, BatchNorm
    GROUP_CONV = "groupconv"  # BatchNorm, ReLU, KxK convolution in two groups, channel shuffle
    SEP_CONV = "sepconv"  # BatchNorm, ReLU, KxK depthwise, 1x1
    DIL_CONV = "dilconv"  # the same with the depthwise convolution dilated by two
    AVG_POOL = "avgpool"  # KxK mean, same size
    MAX_POOL = "maxpool"  # KxK maximum, same size
    FIRST_HALF = "firsthalf"  # the first half of the channels
    LAST_HALF = "lasthalf"  # the other half
    PADDED = "padded"  # the input with zero channels appended, pooled where strided
    BN = "bn"  # BatchNorm
    BN_RELU = "bnrelu"  # BatchNorm, ReLU
    SKIP = "skip"  # the input itself
    NONE = "none"  # zeros
    ZERO = "zero"  # nothing: its layer is the identity shortcut alone
    CLASSIFIER = "classifier"  # global average pool, linear with bias
    FC = "fc"  # global average pool, linear without bias


WEIGHTLESS = frozenset(
    {
        BlockKind.SKIP,
        BlockKind.NONE,
        BlockKind.ZERO,
        BlockKind.AVG_POOL,
        BlockKind.MAX_POOL,
        BlockKind.FIRST_HALF,
        BlockKind.LAST_HALF,
        BlockKind.PADDED,
    }
)
"""Kinds without anything to learn."""

FREE = frozenset({BlockKind.SKIP, BlockKind.NONE, BlockKind.ZERO})
"""Kinds that compute nothing and take no time."""

_BLOCK = re.compile(
    rf"(?P<kind>{'|'.join(BlockKind)})"
    r"_k(?P<kernel>[1-9]\d*)_e(?P<expansion>[1-9]\d*)_s(?P<stride>[1-9]\d*)"
    r"_i(?P<in_channels>[1-9]\d*)_o(?P<out_channels>[1-9]\d*)_r(?P<resolution_px>[1-9]\d*)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """One layer of a network, complete enough to build, count and measure it.

    Attributes:
        kind: what it computes.
        kernel: side of the (depthwise) convolution in pixels, odd.
        expansion: hidden channels as a multiple of ``in_channels`` (MBConv only, else 1).
        stride: spatial stride of the (depthwise) convolution.
        resolution_px: side of the square input feature map.
    """

    kind: BlockKind
    kernel: int
    expansion: int
    stride: int
    in_channels: int
    out_channels: int
    resolution_px: int

    def __str__(self) -> str:
        return (
            f"{self.kind}_k{self.kernel}_e{self.expansion}_s{self.stride}"
            f"_i{self.in_channels}_o{self.out_channels}_r{self.resolution_px}"
        )

    @classmethod
    def parse(cls, text: str) -> "BlockSpec":
        """The block that `text` names; ``str(BlockSpec.parse(text)) == text``.

        Raises:
            BlockSyntaxError: `text` does not follow the grammar.
        """
        match = _BLOCK.fullmatch(text)
        if match is None:
            raise BlockSyntaxError(
                f"{text!r} is no block; expected kind_kK_eE_sS_iIN_oOUT_rR, "
                "for example mbconv_k3_e6_s1_i24_o24_r8"
            )
        fields = match.groupdict()
        kind = BlockKind(fields.pop("kind"))
        return cls(kind, **{name: int(value) for name, value in fields.items()})

    @property
    def hidden_channels(self) -> int:
        """Channels of the depthwise convolution of an MBConv."""
        return self.in_channels * self.expansion

    @property
    def has_shortcut(self) -> bool:
        """Whether the layer adds its input to its output."""
        searchable = self.kind in (BlockKind.MBCONV, BlockKind.ZERO)
        return searchable and self.stride == 1 and self.in_channels == self.out_channels

    @property
    def out_resolution_px(self) -> int:
        """Side of the output feature map; 1 after a classifier."""
        if self.kind in (BlockKind.CLASSIFIER, BlockKind.FC):
            return 1
        return -(-self.resolution_px // self.stride)

    @property
    def steps(self) -> tuple[Step, ...]:
        """What it computes, without its shortcut; the last step's output is the block's.

        Empty where the output is the input (`SKIP`) or nothing (`NONE`, `ZERO`).
        """
        return _steps(self)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image: convolution and classifier weights only."""
        return sum(step.macs for step in self.steps)

    @property
    def parameters(self) -> int:
        """Trainable scalars, BatchNorm's scale and shift included."""
        return sum(step.parameters for step in self.steps)


def _conv(block: BlockSpec, program: Program) -> None:
    out = program.conv_bn("", 0, block.out_channels, kernel=block.kernel, stride=block.stride)
    if block.kind is BlockKind.CONV:
        program.relu6(out)
    elif block.kind is BlockKind.CONV_RELU:
        program.relu(out)


def _relu_conv(block: BlockSpec, program: Program) -> None:
    active = program.relu(0)
    program.conv_bn("", active, block.out_channels, kernel=block.kernel, stride=block.stride)


def _mbconv(block: BlockSpec, program: Program) -> None:
    value, hidden = 0, block.hidden_channels
    if block.expansion > 1:
        value = program.relu6(program.conv_bn("expand", value, hidden))
    value = program.conv_bn(
        "depthwise", value, hidden, kernel=block.kernel, stride=block.stride, groups=hidden
    )
    program.conv_bn("project", program.relu6(value), block.out_channels)


def _shuffle_unit(block: BlockSpec, program: Program) -> None:
    """Half of the channels pass (or are pooled by stride), the rest go through the branch."""
    if block.stride == 1:
        half = block.in_channels // 2
        passed = program.channels(Primitive.EVEN_CHANNELS, 0, half)
        value = program.channels(Primitive.ODD_CHANNELS, 0, half)
    else:
        half, value = block.in_channels, 0
        passed = program.conv_bn(
            "pass_depthwise", 0, half, kernel=block.kernel, stride=block.stride, groups=half
        )
        passed = program.relu(program.conv_bn("pass_project", passed, half))
    hidden, grown = block.out_channels // 2, block.out_channels - half
    if block.kind is BlockKind.SHUFFLE:
        value = program.relu(program.conv_bn("branch.expand", value, hidden))
        value = program.conv_bn(
            "branch.depthwise",
            value,
            hidden,
            kernel=block.kernel,
            stride=block.stride,
            groups=hidden,
        )
        value = program.relu(program.conv_bn("branch.project", value, grown))
    else:
        widths = ((half, hidden), (hidden, hidden), (hidden, grown))
        for position, (width, next_width) in enumerate(widths, start=1):
            value = program.conv_bn(
                f"branch.depthwise{position}",
                value,
                width,
                kernel=block.kernel,
                stride=block.stride if position == 1 else 1,
                groups=width,
            )
            value = program.relu(program.conv_bn(f"branch.pointwise{position}", value, next_width))
    program.concat(passed, value)


def _reduction(block: BlockSpec, program: Program) -> None:
    value, out = program.relu(0), block.out_channels
    value = program.conv_bn("conv_a", value, out, kernel=block.kernel, stride=block.stride)
    value = program.conv_bn("conv_b", program.relu(value), out, kernel=block.kernel)
    pooled = program.pool(Primitive.AVG_POOL, 0, block.stride, block.stride, 0)
    program.add(value, program.conv("downsample", pooled, out))


def _bn_conv(block: BlockSpec, program: Program) -> None:
    normed = program.batch_norm("norm", 0)
    program.conv("conv", normed, block.out_channels, kernel=block.kernel, stride=block.stride)


def _preact_conv(block: BlockSpec, program: Program) -> None:
    active = program.relu(program.batch_norm("norm", 0))
    program.conv_bn("", active, block.out_channels, kernel=block.kernel, stride=block.stride)


def _group_conv(block: BlockSpec, program: Program) -> None:
    active, out = program.relu(program.batch_norm("norm", 0)), block.out_channels
    value = program.conv("conv", active, out, kernel=block.kernel, stride=block.stride, groups=2)
    program.channels(Primitive.SHUFFLE_CHANNELS, value, out)


def _separable_conv(block: BlockSpec, program: Program) -> None:
    value = program.conv(
        "depthwise",
        program.relu(program.batch_norm("norm", 0)),
        block.in_channels,
        kernel=block.kernel,
        stride=block.stride,
        groups=block.in_channels,
        dilation=2 if block.kind is BlockKind.DIL_CONV else 1,
    )
    program.conv("pointwise", value, block.out_channels)


def _pool(block: BlockSpec, program: Program) -> None:
    primitive = Primitive.AVG_POOL if block.kind is BlockKind.AVG_POOL else Primitive.MAX_POOL
    program.pool(primitive, 0, block.kernel, block.stride, block.kernel // 2)


def _half(block: BlockSpec, program: Program) -> None:
    first = block.kind is BlockKind.FIRST_HALF
    primitive = Primitive.FIRST_CHANNELS if first else Primitive.LAST_CHANNELS
    program.channels(primitive, 0, block.out_channels)


def _padded(block: BlockSpec, program: Program) -> None:
    value, stride = 0, block.stride
    if stride > 1:
        value = program.pool(Primitive.AVG_POOL, value, stride, stride, 0)
    if block.out_channels > block.in_channels:
        program.channels(Primitive.PAD_CHANNELS, value, block.out_channels)


def _bn(block: BlockSpec, program: Program) -> None:
    if block.kind is BlockKind.BN_RELU:
        program.relu(program.batch_norm("bn", 0))
    else:
        program.batch_norm("", 0)


def _classifier(block: BlockSpec, program: Program) -> None:
    bias = block.kind is BlockKind.CLASSIFIER
    program.classifier("linear", 0, block.out_channels, bias=bias)


def _nothing(block: BlockSpec, program: Program) -> None:  # noqa: ARG001 - one signature for all
    return


_PROGRAMS: dict[BlockKind, Callable[[BlockSpec, Program], None]] = {
    BlockKind.CONV: _conv,
    BlockKind.CONV_RELU: _conv,
    BlockKind.CONV_LINEAR: _conv,
    BlockKind.RELU_CONV: _relu_conv,
    BlockKind.MBCONV: _mbconv,
    BlockKind.SHUFFLE: _shuffle_unit,
    BlockKind.XCEPTION: _shuffle_unit,
    BlockKind.REDUCTION: _reduction,
    BlockKind.BN_CONV: _bn_conv,
    BlockKind.PREACT_CONV: _preact_conv,
    BlockKind.GROUP_CONV: _group_conv,
    BlockKind.SEP_CONV: _separable_conv,
    BlockKind.DIL_CONV: _separable_conv,
    BlockKind.AVG_POOL: _pool,
    BlockKind.MAX_POOL: _pool,
    BlockKind.FIRST_HALF: _half,
    BlockKind.LAST_HALF: _half,
    BlockKind.PADDED: _padded,
    BlockKind.BN: _bn,
    BlockKind.BN_RELU: _bn,
    BlockKind.SKIP: _nothing,
    BlockKind.NONE: _nothing,
    BlockKind.ZERO: _nothing,
    BlockKind.CLASSIFIER: _classifier,
    BlockKind.FC: _classifier,
}


@lru_cache(maxsize=4096)
def _steps(block: BlockSpec) -> tuple[Step, ...]:
    program = Program(block.in_channels, block.resolution_px)
    _PROGRAMS[block.kind](block, program)
    return tuple(program.steps)
