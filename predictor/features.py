"""What blocks and convolutions ask of a device, as numbers: what the regressors of latency see.

Two forms of the same thing. `Workload` is one block as it is run; a block becomes fused kernels
first, as a runtime would run it. `Convolutions` are many single convolutions, a column per
property, for tables with hundreds of thousands of them. Both give the additive work that a
roofline prices and the features of a regressor.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from enum import StrEnum
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from predictor.errors import BadTableError
from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.primitives import Primitive, Step

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

WORK = ("calls", "kernels", "dense_macs", "depthwise_macs", "activation_bytes", "weight_bytes")
"""Columns of `work`: what adds up over the kernels of a block."""

KEYS = (
    "log2_kernel",
    "log2_expansion",
    "log2_stride",
    "log2_in_channels",
    "log2_out_channels",
    "log2_resolution",
    "log2_batch",
    "element_bytes",
    "squeeze_excite",
    "hard_swish",
    "shortcut",
    *(f"is_{kind}" for kind in BlockKind),
)
"""Columns of `key_features`: what a block is."""

_ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
_FOLDED = frozenset({Primitive.BATCH_NORM, Primitive.RELU, Primitive.RELU6, Primitive.ADD})


def element_bytes(precision: str) -> int:
    """Bytes of one scalar; what follows an underscore (a measuring campaign) does not matter.

    Raises:
        BadTableError: an unknown precision.
    """
    size = _ELEMENT_BYTES.get(precision.split("_", maxsplit=1)[0])
    if size is None:
        raise BadTableError(f"{precision!r} is no precision; known: {', '.join(_ELEMENT_BYTES)}")
    return size


class KernelKind(StrEnum):
    """How a kernel spends its time."""

    DENSE = "dense"  # convolutions with up to a few groups, and linear layers
    DEPTHWISE = "depthwise"
    MEMORY = "memory"  # pooling, copies and elementwise work


@dataclass(frozen=True, slots=True)
class FusedKernel:
    """One launch: a step with the BatchNorms, activations and additions folded into it.

    Attributes:
        macs, weights: of one image.
        in_elements, out_elements: scalars read and written for one image, weights apart.
    """

    kind: KernelKind
    macs: int
    weights: int
    in_elements: int
    out_elements: int


@dataclass(frozen=True, slots=True)
class Workload:
    """One block as it is run.

    Attributes:
        batch: images of one call.
        precision: fp32, fp16, bf16 or int8.
        squeeze_excite: an MBConv rescales its hidden channels by their own mean.
        hard_swish: its activations are h-swish instead of ReLU6.
    """

    block: BlockSpec
    batch: int = 1
    precision: str = "fp32"
    squeeze_excite: bool = False
    hard_swish: bool = False

    @classmethod
    def of(cls, block: "BlockSpec | Workload") -> "Workload":
        """`block` itself, or a plain block as one image in fp32."""
        return block if isinstance(block, Workload) else cls(block)

    @property
    def kernels(self) -> tuple[FusedKernel, ...]:
        """What is launched, in order."""
        kernels = fused_kernels(self.block)
        if not self.squeeze_excite:
            return kernels
        hidden, pixels = self.block.hidden_channels, self.block.out_resolution_px**2
        squeezed = hidden // 4
        linear = FusedKernel(KernelKind.DENSE, hidden * squeezed, hidden * squeezed, hidden, hidden)
        pool = FusedKernel(KernelKind.MEMORY, 0, 0, hidden * pixels, hidden)
        scale = FusedKernel(KernelKind.MEMORY, 0, 0, hidden * pixels, hidden * pixels)
        return (*kernels, pool, linear, linear, scale)


@lru_cache(maxsize=4096)
def fused_kernels(block: BlockSpec) -> tuple[FusedKernel, ...]:
    """The kernels that a runtime with the usual fusions launches for a block; none if it is free.

    BatchNorm, activations and additions join the kernel that made their last input, as in ONNX
    Runtime, TensorRT and TFLite; whatever stands before the first convolution is on its own.
    """
    kernels: list[FusedKernel] = []
    maker: dict[int, int] = {}  # value -> kernel that makes it
    for value, step in enumerate(block.steps, start=1):
        source = max(step.inputs)
        if step.primitive in _FOLDED and source in maker:
            maker[value] = maker[source]
        else:
            maker[value] = len(kernels)
            kernels.append(_kernel(step))
    return tuple(kernels)


def work(blocks: Sequence[BlockSpec | Workload]) -> Floats:
    """(n, len(WORK)) for the whole batch: what a roofline prices, each column additive."""
    rows = np.zeros((len(blocks), len(WORK)))
    for row, workload in zip(rows, map(Workload.of, blocks), strict=True):
        batch, size = workload.batch, element_bytes(workload.precision)
        kernels = workload.kernels
        row[:] = (
            1.0,
            len(kernels),
            batch * sum(k.macs for k in kernels if k.kind is KernelKind.DENSE),
            batch * sum(k.macs for k in kernels if k.kind is KernelKind.DEPTHWISE),
            batch * size * sum(k.in_elements + k.out_elements for k in kernels),
            size * sum(k.weights for k in kernels),
        )
    return rows


def key_features(blocks: Sequence[BlockSpec | Workload]) -> Floats:
    """(n, len(KEYS)): the fields that identify a block, logarithms of its sizes."""
    rows = np.empty((len(blocks), len(KEYS)))
    for row, workload in zip(rows, map(Workload.of, blocks), strict=True):
        block = workload.block
        sizes = (
            block.kernel,
            block.expansion,
            block.stride,
            block.in_channels,
            block.out_channels,
            block.resolution_px,
            workload.batch,
        )
        flags = (workload.squeeze_excite, workload.hard_swish, block.has_shortcut)
        kinds = (block.kind is kind for kind in BlockKind)
        row[:] = (*np.log2(sizes), element_bytes(workload.precision), *flags, *kinds)
    return rows


def comparable(blocks: Sequence[BlockSpec | Workload]) -> tuple[list[tuple[object, ...]], Floats]:
    """What must agree before blocks can be ordered, and the logarithms of five sizes (n, 5).

    Of two blocks of one sort, the one that is nowhere larger has nowhere more work.
    """
    sorts: list[tuple[object, ...]] = []
    sizes = np.empty((len(blocks), 5))
    for row, workload in zip(sizes, map(Workload.of, blocks), strict=True):
        block = workload.block
        sorts.append((block.kind, block.stride, block.has_shortcut, *astuple(workload)[1:]))
        row[:] = (
            block.kernel,
            block.expansion,
            block.in_channels,
            block.out_channels,
            block.resolution_px,
        )
    return sorts, np.log2(sizes)


@dataclass(frozen=True)
class Convolutions:
    """Single square convolutions, a column per property, each (n,).

    Attributes:
        precision: as text; each distinct one counts as a way of running of its own.
        depthwise: one filter a channel; ``in_channels`` then equals ``out_channels``.
        batch, in_channels, out_channels: as counted.
        resolution_px, kernel, stride: in pixels.
        fused: elementwise work that is folded in, 0 for none.
    """

    precision: NDArray[np.str_]
    depthwise: Flags
    batch: Integers
    in_channels: Integers
    resolution_px: Integers
    out_channels: Integers
    kernel: Integers
    stride: Integers
    fused: Integers

    def __len__(self) -> int:
        return len(self.batch)

    def __getitem__(self, rows: NDArray[np.intp] | Flags) -> Self:
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))

    def followed_by(self, others: Self) -> Self:
        """These rows, then those of `others`."""
        pairs = ((getattr(self, f.name), getattr(others, f.name)) for f in fields(self))
        return type(self)(*(np.concatenate(pair) for pair in pairs))

    def work(self) -> Floats:
        """(n, len(WORK)), as `work` of blocks."""
        macs, (read, written, weights) = self._macs(), self._bytes()
        ones = np.ones(len(self))
        dense, depthwise = np.where(self.depthwise, 0.0, macs), np.where(self.depthwise, macs, 0.0)
        return np.stack((ones, ones, dense, depthwise, read + written, weights), axis=1)

    def features(self) -> Floats:
        """(n, d): sizes, logarithms of MACs and bytes, residues, tiles of a matrix product.

        Precision shows in the bytes only: numbers for names would depend on what else is there.

        A convolution on an accelerator is a product of (pixels, patch) by (patch, channels),
        cut into tiles; their number, rounded up, is where its staircases come from.
        """
        macs, (read, written, weights) = self._macs(), self._bytes()
        pixels = self.batch * self._out_resolution_px() ** 2
        patch = self.kernel**2 * np.where(self.depthwise, 1, self.in_channels)
        tiles = np.ceil(pixels / 128) * np.ceil(self.out_channels / 128)
        columns = (
            self.depthwise,
            self.batch,
            self.in_channels,
            self.resolution_px,
            self.out_channels,
            self.kernel,
            self.stride,
            self.fused,
            *np.log2((macs, read, written, weights, pixels, patch, tiles)),
            np.log2(macs / (read + written + weights)),
            self.in_channels % 8,
            self.in_channels % 32,
            self.out_channels % 32,
            self.out_channels % 128,
        )
        return np.stack([np.asarray(column, float) for column in columns], axis=1)

    def _out_resolution_px(self) -> Integers:
        return -(-self.resolution_px // self.stride)

    def _weights(self) -> Integers:
        return self.kernel**2 * np.where(self.depthwise, 1, self.in_channels) * self.out_channels

    def _macs(self) -> Floats:
        pixels = (self.batch * self._out_resolution_px() ** 2).astype(float)
        macs: Floats = self._weights() * pixels
        return macs

    def _bytes(self) -> tuple[Any, Any, Any]:
        """What is read, written, and of weights, each (n,)."""
        names, which = np.unique(self.precision, return_inverse=True)
        size = np.array([element_bytes(str(name)) for name in names], float)[which]
        outputs = size * self.batch * self.out_channels * self._out_resolution_px() ** 2
        read = size * self.batch * self.in_channels * self.resolution_px**2 + outputs * self.fused
        return read, outputs, size * self._weights()


def _kernel(step: Step) -> FusedKernel:
    kind = KernelKind.MEMORY
    if step.primitive in (Primitive.CONV, Primitive.LINEAR):
        depthwise = step.groups > 1 and step.groups == step.in_channels
        kind = KernelKind.DEPTHWISE if depthwise else KernelKind.DENSE
    weights = step.parameters if kind is not KernelKind.MEMORY else 0
    in_elements = step.in_channels * step.resolution_px**2
    return FusedKernel(kind, step.macs, weights, in_elements, step.out_elements)
