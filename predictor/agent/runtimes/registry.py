"""Runtimes by name; each is imported only when an agent uses it."""

from importlib import import_module

from predictor.agent.runtimes.base import Runtime, RuntimeSpec
from predictor.errors import RuntimeFailedError

RUNTIMES = {
    "onnxruntime-cpu": "predictor.agent.runtimes.onnxruntime_cpu:OnnxRuntimeCpu",
    "onnxruntime-cuda": "predictor.agent.runtimes.onnxruntime_cuda:OnnxRuntimeCuda",
    "onnxruntime-tensorrt": "predictor.agent.runtimes.onnxruntime_cuda:OnnxRuntimeTensorrt",
    "torch-cuda": "predictor.agent.runtimes.torch_cuda:TorchCudaEager",
    "torch-cuda-graph": "predictor.agent.runtimes.torch_cuda:TorchCudaGraph",
    "adb": "predictor.agent.runtimes.adb:Adb",
}


def make_runtime(spec: RuntimeSpec) -> Runtime:
    """The runtime that `spec` describes.

    Raises:
        RuntimeFailedError: no runtime has that name, or it cannot run on this host.
    """
    if spec.name not in RUNTIMES:
        raise RuntimeFailedError(
            f"no runtime is called {spec.name!r}; there are {', '.join(RUNTIMES)}"
        )
    module, _, name = RUNTIMES[spec.name].partition(":")
    try:
        runtime: Runtime = getattr(import_module(module), name)(spec)
    except ImportError as error:
        raise RuntimeFailedError(f"runtime {spec.name} cannot be used here: {error}") from error
    return runtime
