"""Networks of blocks as ONNX graphs, with BatchNorm already folded; needs numpy and onnx only.

One lowering serves the blocks that a device measures and the network that is deployed, so
what was measured is what runs. Thousands of block files are built in seconds; tests hold
the graphs against torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.graph import Graph
from search_core.space.primitives import Primitive, Step

OPSET = 18
IR_VERSION = 10

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class FoldedConv:
    """A convolution of a block, with the BatchNorm that follows it folded in.

    Attributes:
        name: of the pair inside its block; empty when the block is one convolution.
        step: the convolution.
        folds: whether a BatchNorm follows; if not, the graph's bias is zero.
    """

    name: str
    step: Step
    folds: bool


def convolutions(block: BlockSpec) -> list[FoldedConv]:
    """The convolutions of `block` in order."""
    followed = {step.inputs[0] for step in block.steps if step.primitive is Primitive.BATCH_NORM}
    return [
        FoldedConv(step.name.removesuffix("conv").rstrip("."), step, index in followed)
        for index, step in enumerate(block.steps, start=1)
        if step.primitive is Primitive.CONV
    ]


def random_weights(
    network: Graph | Sequence[BlockSpec], seed: int = 0
) -> dict[str, NDArray[np.float32]]:
    """Weights of a plausible scale for `network`: latency needs no training, but no denormals."""
    rng = np.random.default_rng(seed)
    weights: dict[str, NDArray[np.float32]] = {}
    for index, block in enumerate(Graph.of(network).blocks):
        for name, shape in _weight_shapes(index, block):
            fan_in = int(np.prod(shape[1:]))
            scale = 0.1 if name.endswith("bias") else (2.0 / fan_in) ** 0.5
            if name.endswith("weight") and len(shape) == 1:  # of a BatchNorm that is not folded
                weights[name] = rng.normal(1.0, 0.1, shape).astype(np.float32)
                continue
            weights[name] = rng.normal(0.0, scale, shape).astype(np.float32)
    return weights


def build_model(network: Graph | Sequence[BlockSpec], weights: Weights, *, batch: int = 1) -> bytes:
    """One self-contained ONNX file for `network`.

    Args:
        network: blocks between nodes; a bare sequence of blocks is a chain.
        weights: ``{index}.{part}.weight`` and ``.bias`` of every folded convolution, every
            BatchNorm that follows none and every linear layer, float32; index counts blocks.
        batch: the fixed batch size; runtimes optimise fixed shapes best.

    Returns:
        A serialised model, ``input`` (batch, C, H, W) float32 -> ``output``.
    """
    lowered = Graph.of(network)
    builder = _Builder(weights, batch)
    nodes: dict[int, list[str]] = {0: ["input"]}  # what arrives at each node
    for index, (block, (source, target)) in enumerate(
        zip(lowered.blocks, lowered.edges, strict=True)
    ):
        arriving = nodes.setdefault(target, [])
        if block.kind is not BlockKind.NONE:
            nodes[source] = [builder.total(source, block, nodes[source])]
            arriving.append(builder.block(index, block, nodes[source][0]))
    first, last = lowered.blocks[0], lowered.blocks[-1]
    builder.finish(nodes[lowered.edges[-1][1]][0])
    in_shape = [batch, first.in_channels, first.resolution_px, first.resolution_px]
    out_shape = [batch, last.out_channels]
    if last.kind not in (BlockKind.CLASSIFIER, BlockKind.FC):
        out_shape += [last.out_resolution_px, last.out_resolution_px]
    graph = helper.make_graph(
        builder.nodes,
        "tailor",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, in_shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, out_shape)],
        list(builder.initializers.values()),
    )
    model = helper.make_model(
        graph,
        producer_name="tailor",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    serialized: bytes = model.SerializeToString(deterministic=True)
    return serialized


def _weight_shapes(index: int, block: BlockSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    folded = {conv.step: conv for conv in convolutions(block)}
    for step in block.steps:
        prefix = _prefix(index, step.name)
        match step.primitive:
            case Primitive.CONV:
                prefix = _prefix(index, folded[step].name)
                inputs = step.in_channels // step.groups
                yield f"{prefix}.weight", (step.out_channels, inputs, step.kernel, step.kernel)
                yield f"{prefix}.bias", (step.out_channels,)
            case Primitive.LINEAR:
                yield f"{prefix}.weight", (step.out_channels, step.in_channels)
                yield f"{prefix}.bias", (step.out_channels,)
            case Primitive.BATCH_NORM if not _is_folded(block, step):
                yield f"{prefix}.weight", (step.out_channels,)
                yield f"{prefix}.bias", (step.out_channels,)


def _is_folded(block: BlockSpec, norm: Step) -> bool:
    source = norm.inputs[0]
    return source > 0 and block.steps[source - 1].primitive is Primitive.CONV


def _prefix(index: int, part: str) -> str:
    return f"{index}.{part}" if part else str(index)


class _Builder:
    """Collects nodes and initializers; every method returns the name of its output tensor."""

    def __init__(self, weights: Weights, batch: int) -> None:
        self._weights = weights
        self._batch = batch
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def total(self, node: int, reader: BlockSpec, arriving: list[str]) -> str:
        """What a node of the network holds: the sum of what arrives, zeros if nothing does."""
        if not arriving:
            side = reader.resolution_px
            zeros = np.zeros((self._batch, reader.in_channels, side, side), np.float32)
            return self._constant(f"node{node}.zeros", zeros)
        return arriving[0] if len(arriving) == 1 else self._node("Sum", arriving, f"node{node}.sum")

    def block(self, index: int, block: BlockSpec, source: str) -> str:
        """The output of `block`, its shortcut included."""
        folded = {conv.step: conv for conv in convolutions(block)}
        values, pooled = [source], ""
        for position, step in enumerate(block.steps, start=1):
            read = [values[i] for i in step.inputs]
            name = _prefix(index, step.name or f"step{position}")
            match step.primitive:
                case Primitive.CONV:
                    value = self._conv(_prefix(index, folded[step].name), step, read[0])
                case Primitive.BATCH_NORM if _is_folded(block, step):
                    value = read[0]
                case Primitive.BATCH_NORM:
                    value = self._scale_and_shift(_prefix(index, step.name), read[0])
                case Primitive.RELU:
                    value = self._node("Relu", read, f"{name}.act")
                case Primitive.RELU6:
                    bounds = [
                        self._constant(f"relu6.{end}", np.array(at, np.float32))
                        for end, at in (("min", 0.0), ("max", 6.0))
                    ]
                    value = self._node(
                        "Clip", [*read, *bounds], f"{read[0].removesuffix('.conv')}.act"
                    )
                case Primitive.AVG_POOL | Primitive.MAX_POOL:
                    average = step.primitive is Primitive.AVG_POOL
                    value = self._node(
                        "AveragePool" if average else "MaxPool",
                        read,
                        f"{name}.pool",
                        kernel_shape=[step.kernel] * 2,
                        strides=[step.stride] * 2,
                        pads=[step.padding] * 4,
                        ceil_mode=int(step.padding == 0),
                    )
                case Primitive.GLOBAL_POOL:
                    pooled = self._node("GlobalAveragePool", read, f"{index}.pool")
                    value = self._node("Flatten", [pooled], f"{index}.flatten", axis=1)
                case Primitive.LINEAR:
                    operands = [*read, *self._weight_and_bias(name)]
                    value = self._node("Gemm", operands, name, transB=1)
                case Primitive.EVEN_CHANNELS | Primitive.ODD_CHANNELS:
                    first = 0 if step.primitive is Primitive.EVEN_CHANNELS else 1
                    value = self._slice(name, read[0], first, step.in_channels, 2)
                case Primitive.FIRST_CHANNELS:
                    value = self._slice(name, read[0], 0, step.out_channels, 1)
                case Primitive.LAST_CHANNELS:
                    first = step.in_channels - step.out_channels
                    value = self._slice(name, read[0], first, step.in_channels, 1)
                case Primitive.PAD_CHANNELS:
                    extra = step.out_channels - step.in_channels
                    pads = self._constant(
                        f"{name}.pads", np.array([0] * 5 + [extra, 0, 0], np.int64)
                    )
                    value = self._node("Pad", [read[0], pads], name)
                case Primitive.SHUFFLE_CHANNELS:
                    value = self._shuffle(name, read[0], step)
                case Primitive.CONCAT:
                    value = self._node("Concat", read, name, axis=1)
                case Primitive.ADD:
                    value = self._node("Add", read, name)
            values.append(value)
        if block.has_shortcut and block.steps:
            return self._node("Add", [source, values[-1]], f"{index}.add")
        return values[-1]

    def finish(self, tensor: str) -> None:
        """Call `tensor` the output of the graph."""
        for node in self.nodes:
            node.output[:] = ["output" if output == tensor else output for output in node.output]

    def _conv(self, prefix: str, step: Step, source: str) -> str:
        return self._node(
            "Conv",
            [source, *self._weight_and_bias(prefix)],
            f"{prefix}.conv",
            kernel_shape=[step.kernel] * 2,
            strides=[step.stride] * 2,
            pads=[step.padding] * 4,
            dilations=[step.dilation] * 2,
            group=step.groups,
        )

    def _scale_and_shift(self, prefix: str, source: str) -> str:
        scale, shift = (
            self._constant(f"{prefix}.{end}", self._weights[f"{prefix}.{end}"].reshape(-1, 1, 1))
            for end in ("weight", "bias")
        )
        return self._node(
            "Add", [self._node("Mul", [source, scale], f"{prefix}.mul"), shift], prefix
        )

    def _slice(self, name: str, source: str, first: int, end: int, stride: int) -> str:
        bounds = [
            self._constant(f"{what}.{value}", np.array([value], np.int64))
            for what, value in (("start", first), ("end", end), ("axis", 1), ("stride", stride))
        ]
        return self._node("Slice", [source, *bounds], name)

    def _shuffle(self, name: str, source: str, step: Step) -> str:
        side = step.resolution_px
        halves = [self._batch, 2, step.in_channels // 2, side, side]
        shapes = [
            self._constant(f"{name}.{what}", np.array(shape, np.int64))
            for what, shape in (("halves", halves), ("joined", [self._batch, -1, side, side]))
        ]
        apart = self._node("Reshape", [source, shapes[0]], f"{name}.apart")
        mixed = self._node("Transpose", [apart], f"{name}.mixed", perm=[0, 2, 1, 3, 4])
        return self._node("Reshape", [mixed, shapes[1]], name)

    def _weight_and_bias(self, prefix: str) -> list[str]:
        return [
            self._constant(name, np.ascontiguousarray(self._weights[name]))
            for name in (f"{prefix}.weight", f"{prefix}.bias")
        ]

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def _node(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name
