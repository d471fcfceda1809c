"""What blocks are made of: a handful of primitive steps, each complete enough to count and lower.

A block is a short program of steps (`BlockSpec.steps`). Counting, lowering to ONNX and the
working memory all read the same program, so a new kind of block is described once; its torch
module is held against it by the tests.
"""

from dataclasses import dataclass
from enum import StrEnum


class Primitive(StrEnum):
    """What one step computes from the outputs of earlier ones."""

    CONV = "conv"  # convolution without bias, padded to keep the size
    BATCH_NORM = "batch_norm"
    RELU = "relu"
    RELU6 = "relu6"
    AVG_POOL = "avg_pool"  # padding is not counted in the mean
    MAX_POOL = "max_pool"
    GLOBAL_POOL = "global_pool"  # mean over all pixels: (B, C, H, W) -> (B, C)
    LINEAR = "linear"
    EVEN_CHANNELS = "even_channels"  # 0, 2, 4, ...: one half after a channel shuffle
    ODD_CHANNELS = "odd_channels"
    FIRST_CHANNELS = "first_channels"  # the first out_channels of the input
    LAST_CHANNELS = "last_channels"
    PAD_CHANNELS = "pad_channels"  # zeros appended up to out_channels
    SHUFFLE_CHANNELS = "shuffle_channels"  # two halves interleaved: 0, C/2, 1, C/2 + 1, ...
    CONCAT = "concat"
    ADD = "add"


@dataclass(frozen=True, slots=True)
class Step:
    """One primitive applied to earlier values of its block.

    Attributes:
        inputs: which values it reads; 0 is the block's input, i the output of step i - 1.
        name: of its weights inside the block; empty when it has none of its own.
        kernel, stride, padding, dilation: in pixels.
        resolution_px, out_resolution_px: side of the input and of the output feature map.
        bias: of a linear step.
    """

    primitive: Primitive
    inputs: tuple[int, ...]
    in_channels: int
    out_channels: int
    resolution_px: int
    out_resolution_px: int
    name: str = ""
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    bias: bool = False

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image: convolution and linear weights only."""
        match self.primitive:
            case Primitive.CONV:
                return self.weights * self.out_resolution_px**2
            case Primitive.LINEAR:
                return self.in_channels * self.out_channels
            case _:
                return 0

    @property
    def weights(self) -> int:
        """Entries of the weight of a convolution."""
        return self.kernel**2 * (self.in_channels // self.groups) * self.out_channels

    @property
    def parameters(self) -> int:
        """Trainable scalars."""
        match self.primitive:
            case Primitive.CONV:
                return self.weights
            case Primitive.BATCH_NORM:
                return 2 * self.out_channels
            case Primitive.LINEAR:
                return self.in_channels * self.out_channels + self.bias * self.out_channels
            case _:
                return 0

    @property
    def out_elements(self) -> int:
        """Scalars in the output for one image."""
        return self.out_channels * self.out_resolution_px**2


class Program:
    """Builds the steps of a block, keeping track of channels and resolution.

    Every method appends one step and returns the index of its output, to be read by later
    ones; index 0 is the block's input.
    """

    def __init__(self, channels: int, resolution_px: int) -> None:
        self.steps: list[Step] = []
        self._shapes = [(channels, resolution_px)]

    def conv(
        self,
        name: str,
        source: int,
        out_channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
    ) -> int:
        """A convolution padded to keep the size; `name` is that of its weight."""
        padding = dilation * (kernel // 2)
        return self._append(
            Primitive.CONV,
            (source,),
            out_channels,
            -(-self._shapes[source][1] // stride),
            name=name,
            kernel=kernel,
            stride=stride,
            padding=padding,
            groups=groups,
            dilation=dilation,
        )

    def batch_norm(self, name: str, source: int) -> int:
        """BatchNorm over the channels of `source`."""
        return self._append(Primitive.BATCH_NORM, (source,), name=name)

    def conv_bn(self, name: str, source: int, out_channels: int, **attributes: int) -> int:
        """A convolution and its BatchNorm, ``{name}.conv`` and ``{name}.bn``."""
        prefix = f"{name}." if name else ""
        conv = self.conv(f"{prefix}conv", source, out_channels, **attributes)
        return self.batch_norm(f"{prefix}bn", conv)

    def relu(self, source: int) -> int:
        """max(0, x)."""
        return self._append(Primitive.RELU, (source,))

    def relu6(self, source: int) -> int:
        """min(6, max(0, x))."""
        return self._append(Primitive.RELU6, (source,))

    def pool(
        self, primitive: Primitive, source: int, kernel: int, stride: int, padding: int
    ) -> int:
        """Average or maximum over windows; one that overhangs the image counts what is there."""
        resolution = -(-self._shapes[source][1] // stride)
        return self._append(
            primitive, (source,), None, resolution, kernel=kernel, stride=stride, padding=padding
        )

    def classifier(self, name: str, source: int, n_classes: int, *, bias: bool) -> int:
        """Global average pool and a linear layer."""
        pooled = self._append(Primitive.GLOBAL_POOL, (source,), None, 1)
        return self._append(Primitive.LINEAR, (pooled,), n_classes, 1, name=name, bias=bias)

    def channels(self, primitive: Primitive, source: int, out_channels: int) -> int:
        """A step that only selects or appends channels."""
        return self._append(primitive, (source,), out_channels)

    def concat(self, *sources: int) -> int:
        """Channels of all `sources`, in order."""
        return self._append(
            Primitive.CONCAT, sources, sum(self._shapes[source][0] for source in sources)
        )

    def add(self, *sources: int) -> int:
        """The sum of values of one shape."""
        return self._append(Primitive.ADD, sources)

    def _append(
        self,
        primitive: Primitive,
        inputs: tuple[int, ...],
        out_channels: int | None = None,
        out_resolution_px: int | None = None,
        *,
        name: str = "",
        bias: bool = False,
        **attributes: int,
    ) -> int:
        channels, resolution = self._shapes[inputs[0]]
        out = (
            channels if out_channels is None else out_channels,
            resolution if out_resolution_px is None else out_resolution_px,
        )
        self._shapes.append(out)
        self.steps.append(
            Step(
                primitive,
                inputs,
                channels,
                out[0],
                resolution,
                out[1],
                name=name,
                bias=bias,
                **attributes,
            )
        )
        return len(self.steps)
