"""PyTorch as a target of its own: it executes the same ONNX file, on an NVIDIA GPU.

Eagerly, a call is as long as its slower half, launching or computing; replayed as a CUDA graph,
launching is gone. Both are timed by CUDA events around the call.
"""

import platform
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from predictor.agent import host
from predictor.agent.runtimes import nvidia
from predictor.agent.runtimes.base import Calls, RuntimeSpec
from predictor.agent.runtimes.onnx_reader import Node, OnnxGraph, read_onnx
from predictor.errors import RuntimeFailedError
from predictor.measurements import Reason, TargetProfile

if TYPE_CHECKING:
    from torch import Tensor

Operation = Callable[..., "Tensor"]

_WARM_UP = 5


class _TorchCuda:
    """What both ways share. Options: ``device``, ``cuda`` unless a test says ``cpu``."""

    slice_seconds = 0.01
    one_child_per_task = False
    way: ClassVar[str]
    devices: ClassVar[tuple[str, ...]] = ("cuda",)

    def __init__(self, spec: RuntimeSpec) -> None:
        import torch  # agents for other runtimes do not have it

        self._spec = spec
        self._device = str(spec.options.get("device", "cuda"))
        if self._device not in self.devices:
            raise RuntimeFailedError(
                f"torch does not run {self.way} on {self._device!r}, only on "
                f"{', '.join(self.devices)}",
                "wrong_provider",
            )
        if self._device == "cuda" and not torch.cuda.is_available():
            raise RuntimeFailedError(
                f"torch {torch.__version__} finds no CUDA device; it needs an NVIDIA GPU, its "
                "driver, and a torch built with CUDA (pip install torch)",
                "wrong_provider",
            )
        if spec.precision != "float32":
            raise RuntimeFailedError(f"torch is measured in float32 only, not in {spec.precision}")
        # shapes are fixed, so cuDNN may try its algorithms; float32 means float32, not TF32
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        if self._device == "cpu":
            torch.set_num_threads(spec.threads)

    def profile(self) -> TargetProfile:
        """The target that this GPU is when it measures with torch."""
        import torch

        on_gpu = self._device == "cuda"
        return TargetProfile(
            device_model=torch.cuda.get_device_name() if on_gpu else host.device_model(),
            machine=platform.machine(),
            system=f"{host.system()}, {nvidia.driver()}" if on_gpu else host.system(),
            runtime="torch",
            runtime_version=torch.__version__,
            execution_provider=f"{self._device}-{self.way}",
            threads=self._spec.threads,
            precision=self._spec.precision,
            batch=self._spec.batch,
            clock_state=nvidia.clock_state() if on_gpu else host.clock_state(),
        )

    def facts(self) -> dict[str, Any]:
        """What the GPU tells about itself now."""
        return nvidia.gpu_facts() if self._device == "cuda" else {}

    def load(self, model: bytes) -> "TorchModel":
        """Make `model` ready to run on fixed random input.

        Raises:
            RuntimeFailedError: no ONNX file, an operator that is not known here, or torch
                failed.
        """
        return self._model(TorchGraph(read_onnx(model), self._device))

    def _model(self, graph: "TorchGraph") -> "TorchModel":
        raise NotImplementedError


class TorchCudaEager(_TorchCuda):
    """One kernel launch after the other, from Python, channels as stored."""

    way = "eager"
    devices = ("cuda", "cpu")

    def _model(self, graph: "TorchGraph") -> "TorchModel":
        return TorchModel(graph, f"{self._device}-eager")


class TorchCudaGraph(_TorchCuda):
    """All launches recorded once and replayed as one."""

    way = "graph"

    def _model(self, graph: "TorchGraph") -> "TorchModel":
        return ReplayedModel(graph, "cuda-graph")


class TorchGraph:
    """An ONNX graph as torch calls.

    Args:
        graph: of one input.
        device: where weights and input lie.

    Attributes:
        input: a fixed random tensor of the graph's input shape.

    Raises:
        RuntimeFailedError: an operator is not known here, or used in a way that is not.
    """

    def __init__(self, graph: OnnxGraph, device: str) -> None:
        import torch

        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise RuntimeFailedError("torch runs graphs of one input and one output only")
        ((self._input_name, shape),) = graph.inputs.items()
        self._output_name = graph.outputs[0]
        self._constants = {
            name: torch.from_numpy(np.array(value)).to(device)  # a copy: torch wants to own it
            for name, value in graph.initializers.items()
            if value.dtype == np.float32
        }
        self._calls: list[tuple[Operation, list[str], str]] = []
        for node in graph.nodes:
            operation, inputs = _prepare(node, graph.initializers)
            self._calls.append((operation, inputs, node.outputs[0]))
        draw = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        self.input = torch.from_numpy(draw).to(device)

    def __call__(self, source: "Tensor") -> "Tensor":
        """The graph's output for `source`; intermediate values are freed on return."""
        values = {**self._constants, self._input_name: source}
        for operation, inputs, output in self._calls:
            values[output] = operation(*[values[name] for name in inputs])
        return values[self._output_name]


class TorchModel:
    """A graph run eagerly."""

    def __init__(self, graph: TorchGraph, provider: str) -> None:
        self.provider = provider
        self._graph = graph
        self._on_gpu = graph.input.is_cuda
        self.time_calls(_WARM_UP)

    def run(self) -> "Tensor":
        """Start one call; its output, complete once the device is synchronised."""
        return self._graph(self._graph.input)

    def time_calls(self, n: int) -> Calls:
        """Run the model `n` times in a row, each finished before the next begins.

        Raises:
            RuntimeFailedError: torch failed; after a CUDA error the process is of no more use.
        """
        import torch

        try:
            with torch.inference_mode():
                return Calls(self._events(n) if self._on_gpu else self._walls(n))
        except RuntimeError as error:
            raise _failure(error) from error

    def _events(self, n: int) -> list[int]:
        import torch

        start, stop = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        torch.cuda.synchronize()
        times = []
        for _ in range(n):
            start.record()
            self.run()
            stop.record()
            stop.synchronize()
            times.append(round(start.elapsed_time(stop) * 1e6))
        return times

    def _walls(self, n: int) -> list[int]:
        times = []
        for _ in range(n):
            start = time.perf_counter_ns()
            self.run()
            times.append(time.perf_counter_ns() - start)
        return times


class ReplayedModel(TorchModel):
    """A graph recorded as a CUDA graph after some calls on a stream of their own."""

    def __init__(self, graph: TorchGraph, provider: str) -> None:
        import torch

        try:
            with torch.inference_mode():
                side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(_WARM_UP):
                        graph(graph.input)
                torch.cuda.current_stream().wait_stream(side)
                self._replay = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self._replay):
                    self._output = graph(graph.input)
        except RuntimeError as error:
            raise _failure(error) from error
        super().__init__(graph, provider)

    def run(self) -> "Tensor":
        """Start one replay; its output, complete once the device is synchronised."""
        self._replay.replay()
        return self._output


def _prepare(node: Node, constants: "Constants") -> tuple[Operation, list[str]]:
    """The call that `node` is, and the names of what it reads at run time."""
    try:
        if node.operator in _READING_ALL:
            return _READING_ALL[node.operator](node), node.inputs
        if node.operator in _READING_THE_FIRST:
            return _READING_THE_FIRST[node.operator](node, constants), node.inputs[:1]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RuntimeFailedError(
            f"node {node.name!r}, {node.operator}, is not as expected: {error}"
        ) from error
    raise RuntimeFailedError(
        f"operator {node.operator} of node {node.name!r} is not known to this runtime"
    )


def _failure(error: RuntimeError) -> RuntimeFailedError:
    import torch

    reason: Reason = "refused"
    if isinstance(error, torch.cuda.OutOfMemoryError):
        reason = "out_of_memory"
    elif "CUDA error" in str(error):
        reason = "crashed"
    return RuntimeFailedError(f"torch failed to run the model: {error}", reason)


# Operators: whatever is constant is decided once, here.

Constants = dict[str, NDArray[Any]]


def _pair(values: list[int]) -> tuple[int, int]:
    if len(values) != 2:
        raise ValueError(f"{len(values)} spatial dimensions; only two are known")
    return values[0], values[1]


def _padding(node: Node) -> tuple[int, int]:
    top, left, bottom, right = node.attributes.get("pads", [0, 0, 0, 0])
    if node.attributes.get("auto_pad", "NOTSET") != "NOTSET" or (top, left) != (bottom, right):
        raise ValueError("only the same padding on both sides is known")
    return top, left


def _conv(node: Node) -> Operation:
    from torch.nn.functional import conv2d

    return partial(
        conv2d,
        stride=_pair(node.attributes.get("strides", [1, 1])),
        padding=_padding(node),
        dilation=_pair(node.attributes.get("dilations", [1, 1])),
        groups=node.attributes.get("group", 1),
    )


def _clip(node: Node, constants: Constants) -> Operation:
    import torch

    low, high = (
        float(constants[name]) if name else None for name in [*node.inputs[1:], "", ""][:2]
    )
    return partial(torch.clamp, min=low, max=high)


def _relu(_node: Node) -> Operation:
    import torch

    return torch.relu


def _add(_node: Node) -> Operation:
    import torch

    return torch.add


def _mul(_node: Node) -> Operation:
    import torch

    return torch.mul


def _sum(_node: Node) -> Operation:
    def total(first: "Tensor", *others: "Tensor") -> "Tensor":
        for other in others:
            first = first + other
        return first

    return total


def _average_pool(node: Node) -> Operation:
    from torch.nn.functional import avg_pool2d

    if _pair(node.attributes.get("dilations", [1, 1])) != (1, 1):
        raise ValueError("dilated average pooling is not known")
    return partial(
        avg_pool2d,
        kernel_size=_pair(node.attributes["kernel_shape"]),
        stride=_pair(node.attributes.get("strides", [1, 1])),
        padding=_padding(node),
        ceil_mode=bool(node.attributes.get("ceil_mode", 0)),
        count_include_pad=bool(node.attributes.get("count_include_pad", 0)),
    )


def _max_pool(node: Node) -> Operation:
    from torch.nn.functional import max_pool2d

    return partial(
        max_pool2d,
        kernel_size=_pair(node.attributes["kernel_shape"]),
        stride=_pair(node.attributes.get("strides", [1, 1])),
        padding=_padding(node),
        dilation=_pair(node.attributes.get("dilations", [1, 1])),
        ceil_mode=bool(node.attributes.get("ceil_mode", 0)),
    )


def _global_average_pool(_node: Node) -> Operation:
    from torch.nn.functional import adaptive_avg_pool2d

    return lambda x: adaptive_avg_pool2d(x, 1)


def _flatten(node: Node) -> Operation:
    if node.attributes.get("axis", 1) != 1:
        raise ValueError("only axis 1 is known")
    return lambda x: x.flatten(1)


def _gemm(node: Node) -> Operation:
    from torch.nn.functional import linear

    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
    if {**plain, "transB": 0, **node.attributes} != plain:
        raise ValueError("only a linear layer, transB = 1, is known")
    return linear


def _slice(node: Node, constants: Constants) -> Operation:
    starts, ends = (constants[name].tolist() for name in node.inputs[1:3])
    axes, steps = (
        constants[name].tolist() if name else default
        for name, default in zip(
            [*node.inputs[3:], "", ""], (list(range(len(starts))), [1] * len(starts)), strict=False
        )
    )
    if min(axes) < 0 or min(steps) < 1:
        raise ValueError("negative axes and steps are not known")
    parts = [slice(None)] * (max(axes) + 1)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        parts[axis] = slice(start, end, step)
    index = tuple(parts)
    return lambda x: x[index]


def _pad(node: Node, constants: Constants) -> Operation:
    from torch.nn.functional import pad

    if node.attributes.get("mode", "constant") != "constant" or any(node.inputs[3:]):
        raise ValueError("only constant padding of every axis is known")
    amounts = constants[node.inputs[1]].tolist()
    value = float(constants[node.inputs[2]]) if any(node.inputs[2:3]) else 0.0
    rank = len(amounts) // 2
    # ONNX has every begin, then every end, first axis first; torch has pairs, last axis first
    pairs = [amounts[axis + side] for axis in reversed(range(rank)) for side in (0, rank)]
    return lambda x: pad(x, pairs, value=value)


def _reshape(node: Node, constants: Constants) -> Operation:
    shape = constants[node.inputs[1]].tolist()
    if 0 in shape:
        raise ValueError("copied dimensions are not known")
    return lambda x: x.reshape(shape)


def _transpose(node: Node) -> Operation:
    order = node.attributes["perm"]
    return lambda x: x.permute(order)


def _concat(node: Node) -> Operation:
    import torch

    axis = node.attributes["axis"]
    return lambda *parts: torch.cat(parts, axis)


_READING_ALL: dict[str, Callable[[Node], Operation]] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "Concat": _concat,
    "Conv": _conv,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "MaxPool": _max_pool,
    "Mul": _mul,
    "Relu": _relu,
    "Sum": _sum,
    "Transpose": _transpose,
}
_READING_THE_FIRST: dict[str, Callable[[Node, Constants], Operation]] = {
    "Clip": _clip,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
}
