"""ONNX Runtime on the CPU, graph fully optimised, no thread spinning."""

import platform
from collections.abc import Callable

import numpy as np
import onnxruntime

from predictor.agent import host
from predictor.errors import RuntimeFailedError
from predictor.measurements import TargetProfile

PROVIDER = "CPUExecutionProvider"


class OnnxRuntimeCpu:
    """Loads model files and runs them with a fixed number of threads."""

    def __init__(self, threads: int = 1) -> None:
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._options.log_severity_level = 3
        self._threads = threads

    def profile(self) -> TargetProfile:
        """The target that this host is when it measures with this runtime."""
        return TargetProfile(
            device_model=host.device_model(),
            machine=platform.machine(),
            system=host.system(),
            runtime="onnxruntime",
            runtime_version=onnxruntime.__version__,
            execution_provider=PROVIDER,
            threads=self._threads,
            precision="float32",
            batch=1,
        )

    def load(self, model: bytes) -> Callable[[], object]:
        """A call that runs `model` once on fixed random input.

        Raises:
            RuntimeFailedError: the runtime refuses the file.
        """
        try:
            session = onnxruntime.InferenceSession(model, self._options, providers=[PROVIDER])
            rng = np.random.default_rng(0)
            feeds = {
                tensor.name: rng.standard_normal(tensor.shape, dtype=np.float32)
                for tensor in session.get_inputs()
            }
            session.run(None, feeds)
        except Exception as error:  # the runtime's exceptions share no public base
            raise RuntimeFailedError(f"ONNX Runtime refused the model: {error}") from error
        return lambda: session.run(None, feeds)
