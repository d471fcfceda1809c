"""What ONNX Runtime really runs: the kernels of a file's optimised graph, counted.

Fusion, layout and folding are read off the graph that ONNX Runtime itself writes, so there are
no fusion rules here. The graph depends on the runtime's version and, by the width of its
vectors, on the processor: read files on the class of machine whose latency is in question.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
import onnxruntime
from onnx import TensorProto, helper

from predictor.errors import BadModelFileError

MAX_BYTES = 256 * 2**20
MAX_NODES = 20_000

_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"}
"""Of operators that ONNX Runtime's CPU provider computes itself; none calls other software."""

Kind = Literal[
    "stem", "pointwise", "depthwise", "conv", "matmul", "pool", "elementwise", "move", "other"
]
_FILTERED: tuple[Kind, ...] = ("stem", "pointwise", "depthwise", "conv")
_NARROW = 8  # channels; no vector is filled with fewer, and ONNX Runtime leaves them unblocked

Shape = tuple[int, ...]

_CONVOLUTIONS = {"Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger"}
_TRANSPOSED = {"ConvTranspose", "QLinearConvTranspose"}
_MATMULS = {
    *("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulInteger", "MatMulIntegerToFloat"),
    *("QLinearMatMul", "QGemm", "DynamicQuantizeMatMul", "MatMulNBits"),
}
_POOLS = {
    f"{prefix}{scope}{what}Pool"
    for prefix in ("", "QLinear")
    for scope in ("", "Global")
    for what in ("Average", "Max", "Lp")
}
_ELEMENTWISE = {
    *("Abs", "Add", "BatchNormalization", "BiasGelu", "Cast", "Ceil", "Clip", "CumSum", "Div"),
    *("DequantizeLinear", "DynamicQuantizeLinear", "Elu", "Equal", "Erf", "Exp", "FastGelu"),
    *("Floor", "Gelu", "Greater", "GroupNormalization", "HardSigmoid", "HardSwish", "Identity"),
    *("InstanceNormalization", "LRN", "LayerNormalization", "LeakyRelu", "Less", "Log"),
    *("LogSoftmax", "Max", "Mean", "Min", "Mish", "Mul", "Neg", "Not", "PRelu", "Pow"),
    *("QLinearAdd", "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid", "QLinearSoftmax"),
    *("QuantizeLinear", "QuickGelu", "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceSum", "Relu", "Round", "Selu", "Sigmoid", "Sign"),
    *("SkipLayerNormalization", "Softmax", "Softplus", "Sqrt", "Sub", "Sum", "Tanh", "Where"),
}
_MOVES = {
    *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND"),
    *("Pad", "QLinearConcat", "ReorderInput", "ReorderOutput", "Reshape", "Resize", "Shape"),
    *("Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Upsample"),
}
_REORDERS = {"ReorderInput", "ReorderOutput"}
_BYTES_OF = {
    name: size
    for size, names in {
        1: ("uint8", "int8", "bool"),
        2: ("float16", "bfloat16", "int16", "uint16"),
        4: ("float", "int32", "uint32"),
        8: ("double", "int64", "uint64"),
    }.items()
    for name in names
}


@dataclass(frozen=True)
class Kernel:
    """One node of the optimised graph.

    Attributes:
        name: of the node, as the file calls it.
        operator: domain and type: ``Gemm``, ``com.microsoft.nchwc.Conv``.
        kind: what it does, whatever the domain; ``other`` where that is not known. A ``stem`` is
            a convolution of fewer channels than fill a vector.
        inputs, outputs: shapes of what it computes with, constants left out. In a blocked
            layout channels are padded to whole vectors, and counted like that.
        macs: multiply-accumulates; of a pooling, the elements of its windows; 0 where time goes
            by bytes.
        bytes_read, bytes_written: activations.
        weight_bytes: constants.
        window: elements of a convolution's or pooling's window; 1 elsewhere.
        stride: product over the axes.
        group: of a convolution.
        activation: what is fused behind it; empty if nothing.
        adds: whether a residual is added in place.
        counted: whether `macs` and bytes are the whole of its work. Control flow, recurrence,
            attention, operators not known here and shapes that depend on data are not counted.
    """

    name: str
    operator: str
    kind: Kind
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    macs: int
    bytes_read: int
    bytes_written: int
    weight_bytes: int
    window: int = 1
    stride: int = 1
    group: int = 1
    activation: str = ""
    adds: bool = False
    counted: bool = True


@dataclass(frozen=True)
class KernelGraph:
    """The kernels of a file in the order in which they run.

    Attributes:
        kernels: none of them was dropped.
        digest: sha256 over operators, attributes, shapes and edges. Names and weights are left
            out: files that run alike have the same.
        runtime: name and version of what optimised the graph.
    """

    kernels: tuple[Kernel, ...]
    digest: str
    runtime: str

    @property
    def reorders(self) -> int:
        """How many kernels only change the layout between plain and blocked channels."""
        return sum(k.operator.rpartition(".")[2] in _REORDERS for k in self.kernels)

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Operators whose cost could not be counted, sorted."""
        return tuple(sorted({k.operator for k in self.kernels if not k.counted}))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all kernels."""
        return sum(k.macs for k in self.kernels)


def read_kernels(content: bytes) -> KernelGraph:
    """The kernels that ONNX Runtime's CPU provider makes of an ONNX file.

    Nothing is executed except what constant folding computes; that can still be made to take
    any time and memory, and parsers have faults. Read the files of strangers in a process of
    its own with limits on both (``RLIMIT_AS``, a timeout), as the agent's sandbox does.

    Args:
        content: the file, its data inside, with fixed shapes. Where only the first dimension of
            inputs is open, it is taken for the batch and set to 1.

    Raises:
        BadModelFileError: too large, damaged, keeps data elsewhere, leaves shapes open, has
            operators of others, or ONNX Runtime refuses it.
    """
    model = _checked(content)
    _fix_batch(model)
    optimised = _optimised(model)
    graph = optimised.graph
    constants = {t.name: (tuple(t.dims), _tensor_bytes(t)) for t in graph.initializer}
    values = _values(optimised)
    kernels = tuple(_kernel(node, constants, values) for node in graph.node)
    return KernelGraph(kernels, _digest(graph, kernels), f"onnxruntime {onnxruntime.__version__}")


def _checked(content: bytes) -> onnx.ModelProto:
    if len(content) > MAX_BYTES:
        raise BadModelFileError(
            f"the file has {len(content)} bytes, and at most {MAX_BYTES} are read"
        )
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # protobuf's own, which nobody exports
        raise BadModelFileError(f"this is no ONNX file: {_first_line(error)}") from error
    n = sum(1 for _ in _nodes(model))
    if not 0 < n <= MAX_NODES:
        raise BadModelFileError(f"the graph has {n} nodes; 1 to {MAX_NODES} are read")
    domains = _DOMAINS | {function.domain for function in model.functions}
    for node in _nodes(model):
        if node.domain not in domains:
            raise BadModelFileError(
                f"operator {node.domain}.{node.op_type} is none that is known here; "
                "ONNX's own and com.microsoft's are read"
            )
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            raise BadModelFileError(
                f"tensor {tensor.name!r} lies in another file; save the model with its data inside"
            )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise BadModelFileError(f"this is no valid ONNX file: {_first_line(error)}") from error
    return model


def _graphs(model: onnx.ModelProto) -> Iterator[Any]:
    """The graph, the functions and every graph inside a node."""
    todo = [model.graph, *model.functions]
    while todo:
        graph = todo.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                todo += attribute.graphs
                if attribute.HasField("g"):
                    todo.append(attribute.g)


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    return (node for graph in _graphs(model) for node in graph.node)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in _graphs(model):
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
    for node in _nodes(model):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def _fix_batch(model: onnx.ModelProto) -> None:
    """Set an open first dimension of every input to 1.

    Raises:
        BadModelFileError: another dimension is open.
    """
    constants = {t.name for t in model.graph.initializer}
    for value in model.graph.input:
        if value.name in constants:
            continue
        kind = value.type.tensor_type
        if not kind.HasField("shape"):
            raise BadModelFileError(f"input {value.name!r} has no shape; export it with one")
        for axis, dimension in enumerate(kind.shape.dim):
            if dimension.dim_value > 0:
                continue
            if axis > 0:
                raise BadModelFileError(
                    f"dimension {axis} of input {value.name!r} is open "
                    f"({dimension.dim_param or '?'}); export the model with fixed shapes, only "
                    "the batch may be open"
                )
            dimension.dim_value = 1
    del model.graph.value_info[:]  # of the open batch; ONNX Runtime infers them anew
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def _options(level: onnxruntime.GraphOptimizationLevel) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


def _optimised(model: onnx.ModelProto) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory(prefix="tailor-kernels-") as folder:
        path = Path(folder) / "optimised.onnx"
        options = _options(onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
        options.optimized_model_filepath = str(path)
        _session(model, options)
        return onnx.load(path)


def _session(
    model: onnx.ModelProto, options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # the runtime's exceptions share no public base
        raise BadModelFileError(f"ONNX Runtime refused the file: {_first_line(error)}") from error


def _values(optimised: onnx.ModelProto) -> dict[str, tuple[Shape | None, int]]:
    """Shape and bytes of everything that is computed or fed, by name.

    ONNX's own shape inference does not know the operators that ONNX Runtime puts in. ONNX
    Runtime does, and tells the shape of what a graph returns; so let it return everything.
    """
    model = onnx.ModelProto()
    model.CopyFrom(optimised)
    returned = {value.name for value in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in returned:
                model.graph.output.add(name=name)
    options = _options(onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = _session(model, options)
    values: dict[str, tuple[Shape | None, int]] = {}
    for value in (*session.get_inputs(), *session.get_outputs()):
        element_bytes = _BYTES_OF.get(value.type.removeprefix("tensor(").removesuffix(")"))
        if element_bytes is None or not all(isinstance(d, int) for d in value.shape):
            values[value.name] = None, 0
        else:
            values[value.name] = tuple(value.shape), math.prod(value.shape) * element_bytes
    return values


def _kernel(
    node: onnx.NodeProto,
    constants: Mapping[str, tuple[Shape, int]],
    values: Mapping[str, tuple[Shape | None, int]],
) -> Kernel:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    fed = [values.get(name, (None, 0)) for name in node.input if name and name not in constants]
    made = [values.get(name, (None, 0)) for name in node.output if name]
    shapes = [constants.get(name, values.get(name, (None, 0)))[0] for name in node.input]
    inputs = [shape for shape, _ in fed if shape is not None]
    outputs = [shape for shape, _ in made if shape is not None]
    kind = _kind(node.op_type, shapes, attributes)
    whole = kind != "other" and len(inputs) == len(fed) and len(outputs) == len(made)
    weights = {name for name in node.input if name in constants}
    n_residual = 4 if node.op_type in ("Conv", "FusedConv", "NhwcFusedConv") else math.inf
    return Kernel(
        name=node.name,
        operator=f"{node.domain}.{node.op_type}".lstrip("."),
        kind=kind,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        macs=_macs(node.op_type, kind, shapes, outputs[0], attributes) if whole and outputs else 0,
        bytes_read=sum(size for _, size in fed),
        bytes_written=sum(size for _, size in made),
        weight_bytes=sum(constants[name][1] for name in weights),
        window=_window(node.op_type, kind, shapes, attributes),
        stride=math.prod(attributes.get("strides", ())),
        group=attributes.get("group", 1),
        activation=attributes.get("activation", b"").decode(),
        adds=len(node.input) >= n_residual and bool(node.input[3]),
        counted=whole,
    )


def _filter(operator: str, shapes: Sequence[Shape | None]) -> Shape | None:
    """Shape of a convolution's filter: (out, in of a group, *window), or in and out swapped."""
    place = 3 if operator.startswith("QLinear") else 1
    return shapes[place] if len(shapes) > place else None


def _kind(operator: str, shapes: Sequence[Shape | None], attributes: Mapping[str, Any]) -> Kind:
    if operator in _CONVOLUTIONS | _TRANSPOSED:
        filters = _filter(operator, shapes)
        if filters is None:
            return "other"
        if attributes.get("group", 1) > 1 and filters[1] == 1:
            return "depthwise"
        if attributes.get("group", 1) == 1 and filters[1] < _NARROW:
            return "stem"
        return "pointwise" if math.prod(filters[2:]) == 1 else "conv"
    if operator in _MATMULS:
        return "matmul"
    if operator in _POOLS:
        return "pool"
    if operator in _ELEMENTWISE:
        return "elementwise"
    return "move" if operator in _MOVES else "other"


def _window(
    operator: str, kind: Kind, shapes: Sequence[Shape | None], attributes: Mapping[str, Any]
) -> int:
    if kind == "pool":
        whole = shapes[0][2:] if "Global" in operator and shapes[0] else ()
        return math.prod(attributes.get("kernel_shape", whole))
    filters = _filter(operator, shapes) if kind in _FILTERED else None
    return math.prod(filters[2:]) if filters else 1


def _macs(
    operator: str,
    kind: Kind,
    shapes: Sequence[Shape | None],
    output: Shape,
    attributes: Mapping[str, Any],
) -> int:
    if kind == "pool":
        if "Global" in operator and shapes[0]:
            return math.prod(shapes[0])
        return math.prod(output) * _window(operator, kind, shapes, attributes)
    if kind == "matmul":
        left = shapes[0] or ()
        return math.prod(output) * left[-2 if attributes.get("transA") else -1]
    filters = _filter(operator, shapes)
    if kind not in _FILTERED or not filters or not shapes[0]:
        return 0
    moved_over = shapes[0] if operator in _TRANSPOSED else output
    return math.prod(moved_over) * math.prod(filters[1:])


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    n: int = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return n


def _digest(graph: onnx.GraphProto, kernels: Sequence[Kernel]) -> str:
    maker = {name: i for i, node in enumerate(graph.node) for name in node.output}
    structure = [
        [
            kernel.operator,
            kernel.inputs,
            kernel.outputs,
            [maker.get(name, -1) for name in node.input],
            sorted((a.name, str(helper.get_attribute_value(a))) for a in node.attribute),
        ]
        for node, kernel in zip(graph.node, kernels, strict=True)
    ]
    return hashlib.sha256(json.dumps(structure).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:300]
