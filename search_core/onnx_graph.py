"""Chains of blocks as ONNX graphs, with BatchNorm already folded; needs numpy and onnx only.

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

OPSET = 18
IR_VERSION = 10

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class FoldedConv:
    """One convolution with its BatchNorm folded in, as it stands in the graph.

    Attributes:
        name: of the module inside its block; empty when the block is one convolution.
        shape: (out, in / groups, kernel, kernel) of the weight; the bias is (out,).
    """

    name: str
    shape: tuple[int, int, int, int]
    stride: int
    groups: int
    activation: bool


def convolutions(block: BlockSpec) -> list[FoldedConv]:
    """The convolutions of `block` in order; a classifier and a Zero have none."""
    if block.kind is BlockKind.CONV:
        shape = (block.out_channels, block.in_channels, block.kernel, block.kernel)
        return [FoldedConv("", shape, block.stride, 1, True)]
    if block.kind is not BlockKind.MBCONV:
        return []
    hidden = block.hidden_channels
    expand = FoldedConv("expand", (hidden, block.in_channels, 1, 1), 1, 1, True)
    depthwise = FoldedConv(
        "depthwise", (hidden, 1, block.kernel, block.kernel), block.stride, hidden, True
    )
    project = FoldedConv("project", (block.out_channels, hidden, 1, 1), 1, 1, False)
    return [expand, depthwise, project] if block.expansion > 1 else [depthwise, project]


def random_weights(blocks: Sequence[BlockSpec], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Weights of a plausible scale for `blocks`: latency needs no training, but no denormals."""
    rng = np.random.default_rng(seed)
    weights: dict[str, NDArray[np.float32]] = {}
    for index, block in enumerate(blocks):
        for name, shape in _weight_shapes(index, block):
            fan_in = int(np.prod(shape[1:]))
            scale = 0.1 if name.endswith("bias") else (2.0 / fan_in) ** 0.5
            weights[name] = rng.normal(0.0, scale, shape).astype(np.float32)
    return weights


def build_model(blocks: Sequence[BlockSpec], weights: Weights, *, batch: int = 1) -> bytes:
    """One self-contained ONNX file for the chain `blocks`.

    Args:
        blocks: each takes the output of the one before it.
        weights: ``{index}.{part}.weight`` and ``.bias`` of every folded convolution and
            ``{index}.linear.weight`` and ``.bias`` of a classifier, float32.
        batch: the fixed batch size; runtimes optimise fixed shapes best.

    Returns:
        A serialised model, ``input`` (batch, C, H, W) float32 -> ``output``.
    """
    builder = _Builder(weights)
    tensor = "input"
    for index, block in enumerate(blocks):
        tensor = builder.block(index, block, tensor)
    builder.rename_output(tensor, "output")
    first, last = blocks[0], blocks[-1]
    in_shape = [batch, first.in_channels, first.resolution_px, first.resolution_px]
    out_shape = [batch, last.out_channels]
    if last.kind is not BlockKind.CLASSIFIER:
        out_shape += [last.out_resolution_px, last.out_resolution_px]
    graph = helper.make_graph(
        builder.nodes,
        "tailor",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, in_shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, out_shape)],
        builder.initializers,
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
    for conv in convolutions(block):
        prefix = _prefix(index, conv.name)
        yield f"{prefix}.weight", conv.shape
        yield f"{prefix}.bias", conv.shape[:1]
    if block.kind is BlockKind.CLASSIFIER:
        yield f"{index}.linear.weight", (block.out_channels, block.in_channels)
        yield f"{index}.linear.bias", (block.out_channels,)


def _prefix(index: int, part: str) -> str:
    return f"{index}.{part}" if part else str(index)


class _Builder:
    """Collects nodes and initializers; every method returns the name of its output tensor."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = [
            numpy_helper.from_array(np.array(0.0, np.float32), "relu6.min"),
            numpy_helper.from_array(np.array(6.0, np.float32), "relu6.max"),
        ]

    def block(self, index: int, block: BlockSpec, source: str) -> str:
        match block.kind:
            case BlockKind.ZERO:
                return source
            case BlockKind.CLASSIFIER:
                pooled = self._node("GlobalAveragePool", [source], f"{index}.pool")
                flat = self._node("Flatten", [pooled], f"{index}.flatten", axis=1)
                operands = [flat, *self._weight_and_bias(f"{index}.linear")]
                return self._node("Gemm", operands, f"{index}.linear", transB=1)
            case BlockKind.CONV | BlockKind.MBCONV:
                tensor = source
                for conv in convolutions(block):
                    tensor = self._conv(_prefix(index, conv.name), conv, tensor)
                if block.has_shortcut:
                    tensor = self._node("Add", [source, tensor], f"{index}.add")
                return tensor

    def rename_output(self, tensor: str, name: str) -> None:
        for node in self.nodes:
            node.output[:] = [name if output == tensor else output for output in node.output]

    def _conv(self, prefix: str, conv: FoldedConv, source: str) -> str:
        kernel, padding = conv.shape[2], conv.shape[2] // 2
        tensor = self._node(
            "Conv",
            [source, *self._weight_and_bias(prefix)],
            f"{prefix}.conv",
            kernel_shape=[kernel, kernel],
            strides=[conv.stride, conv.stride],
            pads=[padding] * 4,
            group=conv.groups,
        )
        if conv.activation:
            tensor = self._node("Clip", [tensor, "relu6.min", "relu6.max"], f"{prefix}.act")
        return tensor

    def _weight_and_bias(self, prefix: str) -> list[str]:
        names = [f"{prefix}.weight", f"{prefix}.bias"]
        self.initializers += [
            numpy_helper.from_array(np.ascontiguousarray(self._weights[name]), name)
            for name in names
        ]
        return names

    def _node(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name
