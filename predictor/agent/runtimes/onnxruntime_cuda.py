"""ONNX Runtime on an NVIDIA GPU, by CUDA or by TensorRT.

Input and output lie on the GPU; a call is timed by the wall clock from its start until the
output is there. Nothing may run anywhere but on the provider asked for.
"""

import os
import platform
import time
from typing import Any, ClassVar

import numpy as np
import onnxruntime

from predictor.agent import host
from predictor.agent.runtimes import nvidia
from predictor.agent.runtimes.base import Calls, RuntimeSpec
from predictor.agent.runtimes.nvidia import gpu_facts
from predictor.errors import RuntimeFailedError
from predictor.measurements import Reason, TargetProfile

__all__ = ["OnnxRuntimeCuda", "OnnxRuntimeTensorrt", "gpu_facts"]

_WARM_UP = 3
"""Calls at loading, in which cuDNN tries its algorithms and TensorRT builds its engine."""


class _OnnxRuntimeGpu:
    """What both providers share. Options: ``device_id``, the GPU's number for CUDA."""

    slice_seconds = 0.01
    one_child_per_task = False
    provider: ClassVar[str]

    def __init__(self, spec: RuntimeSpec) -> None:
        self._spec = spec
        try:
            self._device_id = int(spec.options.get("device_id", 0))
        except ValueError as error:
            raise RuntimeFailedError(f"option device_id is a number: {error}") from error
        available = onnxruntime.get_available_providers()
        if self.provider not in available:
            raise RuntimeFailedError(
                f"this ONNX Runtime has no {self.provider}, only {', '.join(available)}; "
                "pip uninstall onnxruntime, then pip install onnxruntime-gpu",
                "wrong_provider",
            )
        if spec.precision != "float32":
            raise RuntimeFailedError(
                f"{self.provider} is measured in float32 only: it does not run these "
                f"{spec.precision} files in {spec.precision}"
            )
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # CUDA and cuDNN as installed by pip

    def profile(self) -> TargetProfile:
        """The target that this GPU is when it measures with this runtime."""
        return TargetProfile(
            device_model=nvidia.gpu_name(self._device_id),
            machine=platform.machine(),
            system=f"{host.system()}, {nvidia.driver()}",
            runtime="onnxruntime-gpu",
            runtime_version=onnxruntime.__version__,
            execution_provider=self.provider,
            threads=self._spec.threads,
            precision=self._spec.precision,
            batch=self._spec.batch,
            clock_state=nvidia.clock_state(self._device_id),
        )

    def facts(self) -> dict[str, Any]:
        """What the GPU tells about itself now."""
        return gpu_facts(self._device_id)

    def load(self, model: bytes) -> "BoundModel":
        """Make `model` ready to run on fixed random input, all of it on this provider.

        Raises:
            RuntimeFailedError: the file is refused, or needs another provider as well.
        """
        options = {"device_id": self._device_id, **self._provider_options()}
        session = open_session(model, self.provider, options, self._spec.threads)
        return BoundModel(session, "cuda", self._device_id)

    def _provider_options(self) -> dict[str, Any]:
        return {}


class OnnxRuntimeCuda(_OnnxRuntimeGpu):
    """cuDNN and cuBLAS; float32 means float32, not TF32."""

    provider = "CUDAExecutionProvider"

    def _provider_options(self) -> dict[str, Any]:
        return {"cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": 0}


class OnnxRuntimeTensorrt(_OnnxRuntimeGpu):
    """One TensorRT engine for the whole graph; float32 means float32, not TF32."""

    provider = "TensorrtExecutionProvider"

    def __init__(self, spec: RuntimeSpec) -> None:
        super().__init__(spec)
        # the provider has no option for it, and NVIDIA's libraries read this when they load
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"

    def _provider_options(self) -> dict[str, Any]:
        return {"trt_fp16_enable": False, "trt_int8_enable": False}


def open_session(
    model: bytes, provider: str, provider_options: dict[str, Any], threads: int = 1
) -> onnxruntime.InferenceSession:
    """A session whose every node runs on `provider`.

    Raises:
        RuntimeFailedError: the file is refused; `reason` is ``wrong_provider`` where a node, or
            the whole session, would run elsewhere.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = onnxruntime.InferenceSession(
            model, options, providers=[(provider, provider_options)], enable_fallback=0
        )
    except MemoryError:
        raise
    except Exception as error:  # the runtime's exceptions share no public base
        raise _failure("ONNX Runtime refused the model", error, "refused") from error
    used = session.get_providers()[0]
    if used != provider:
        raise RuntimeFailedError(
            f"ONNX Runtime fell back from {provider} to {used}: are the GPU, its driver and the "
            "CUDA libraries of this version of onnxruntime-gpu there?",
            "wrong_provider",
        )
    return session


class BoundModel:
    """A session whose input and output stay on `device`."""

    def __init__(self, session: onnxruntime.InferenceSession, device: str, device_id: int) -> None:
        self._session = session
        self._binding = session.io_binding()
        rng = np.random.default_rng(0)
        try:
            for tensor in session.get_inputs():
                value = rng.standard_normal(tensor.shape, dtype=np.float32)
                self._binding.bind_ortvalue_input(
                    tensor.name,
                    onnxruntime.OrtValue.ortvalue_from_numpy(value, device, device_id),
                )
            for tensor in session.get_outputs():
                self._binding.bind_ortvalue_output(
                    tensor.name,
                    onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                        tensor.shape, np.float32, device, device_id
                    ),
                )
        except MemoryError:
            raise
        except Exception as error:  # the runtime's exceptions share no public base
            raise _failure("ONNX Runtime refused the model", error, "refused") from error
        self.provider: str = session.get_providers()[0]
        self.time_calls(_WARM_UP)

    def time_calls(self, n: int) -> Calls:
        """Run the model `n` times in a row, each until its output is there."""
        run, binding = self._session.run_with_iobinding, self._binding
        walls = []
        try:
            for _ in range(n):
                start = time.perf_counter_ns()
                run(binding)
                binding.synchronize_outputs()
                walls.append(time.perf_counter_ns() - start)
        except MemoryError:
            raise
        except Exception as error:  # the runtime's exceptions share no public base
            raise _failure("ONNX Runtime failed in a call", error, "crashed") from error
        return Calls(walls)


def _failure(what: str, error: Exception, reason: Reason) -> RuntimeFailedError:
    text = str(error)
    if "fallback to CPU EP has been explicitly disabled" in text:
        reason = "wrong_provider"
    elif "out of memory" in text.lower() or "Failed to allocate memory" in text:
        reason = "out_of_memory"
    return RuntimeFailedError(f"{what}: {text}", reason)
