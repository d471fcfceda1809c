"""The block grammar: one frozen value, one canonical string, one parser.

A block string reads ``kind_kK_eE_sS_iIN_oOUT_rR``, for example
``mbconv_k5_e3_s2_i24_o40_r8``: an inverted-bottleneck block with a 5x5 depthwise
convolution, expansion 3, stride 2, from 24 to 40 channels, on an 8 x 8 input.
The string is the identity of a block everywhere: in kits, in measurements and in
latency models.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from search_core.errors import BlockSyntaxError


class BlockKind(StrEnum):
    """What a block computes; every convolution is followed by BatchNorm."""

    CONV = "conv"  # KxK convolution, ReLU6
    MBCONV = "mbconv"  # 1x1 expand, ReLU6, KxK depthwise, ReLU6, 1x1 project, linear
    ZERO = "zero"  # nothing: its layer is the identity shortcut alone
    CLASSIFIER = "classifier"  # global average pool, linear with bias


_BLOCK = re.compile(
    r"(?P<kind>conv|mbconv|zero|classifier)"
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
        if self.kind is BlockKind.CLASSIFIER:
            return 1
        return -(-self.resolution_px // self.stride)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image: convolution and classifier weights only."""
        pixels_in, pixels_out = self.resolution_px**2, self.out_resolution_px**2
        match self.kind:
            case BlockKind.CONV:
                return self.kernel**2 * self.in_channels * self.out_channels * pixels_out
            case BlockKind.MBCONV:
                expand = self.in_channels * self.hidden_channels * pixels_in
                depthwise = self.kernel**2 * self.hidden_channels * pixels_out
                project = self.hidden_channels * self.out_channels * pixels_out
                return (expand if self.expansion > 1 else 0) + depthwise + project
            case BlockKind.CLASSIFIER:
                return self.in_channels * self.out_channels
            case BlockKind.ZERO:
                return 0

    @property
    def parameters(self) -> int:
        """Trainable scalars, BatchNorm's scale and shift included."""
        match self.kind:
            case BlockKind.CONV:
                weights = self.kernel**2 * self.in_channels * self.out_channels
                return weights + 2 * self.out_channels
            case BlockKind.MBCONV:
                hidden = self.hidden_channels
                expand = self.in_channels * hidden + 2 * hidden
                depthwise = self.kernel**2 * hidden + 2 * hidden
                project = hidden * self.out_channels + 2 * self.out_channels
                return (expand if self.expansion > 1 else 0) + depthwise + project
            case BlockKind.CLASSIFIER:
                return self.in_channels * self.out_channels + self.out_channels
            case BlockKind.ZERO:
                return 0
