"""ONNX Runtime on the CPU, graph fully optimised, no thread spinning."""

import platform
import time

import numpy as np
import onnxruntime

from predictor.agent import host
from predictor.agent.runtimes.base import Calls, RuntimeSpec
from predictor.errors import RuntimeFailedError
from predictor.measurements import Reason, TargetProfile

PROVIDER = "CPUExecutionProvider"


class OnnxRuntimeCpu:
    """Loads model files and runs them with a fixed number of threads."""

    slice_seconds = 0.004
    one_child_per_task = True

    def __init__(self, spec: RuntimeSpec | None = None) -> None:
        self._spec = spec or RuntimeSpec()
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = self._spec.threads
        self._options.inter_op_num_threads = 1
        self._options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._options.log_severity_level = 3

    def profile(self) -> TargetProfile:
        """The target that this host is when it measures with this runtime."""
        return TargetProfile(
            device_model=host.device_model(),
            machine=platform.machine(),
            system=host.system(),
            runtime="onnxruntime",
            runtime_version=onnxruntime.__version__,
            execution_provider=PROVIDER,
            threads=self._spec.threads,
            precision=self._spec.precision,
            batch=self._spec.batch,
            clock_state=host.clock_state(),
        )

    def load(self, model: bytes) -> "OnnxRuntimeModel":
        """Make `model` ready to run on fixed random input.

        Raises:
            RuntimeFailedError: the runtime refuses the file.
        """
        return OnnxRuntimeModel(model, self._options)


class OnnxRuntimeModel:
    """A session with its input; `provider` is what ONNX Runtime says it uses."""

    def __init__(self, model: bytes, options: onnxruntime.SessionOptions) -> None:
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=[PROVIDER])
            rng = np.random.default_rng(0)
            self._feeds = {
                tensor.name: rng.standard_normal(tensor.shape, dtype=np.float32)
                for tensor in self._session.get_inputs()
            }
            self._session.run(None, self._feeds)
        except MemoryError:
            raise
        except Exception as error:  # the runtime's exceptions share no public base
            raise RuntimeFailedError(
                f"ONNX Runtime refused the model: {error}", _reason(str(error))
            ) from error
        self.provider: str = self._session.get_providers()[0]
        self._counts_cpu = options.intra_op_num_threads == 1

    def time_calls(self, n: int) -> Calls:
        """Run the model `n` times in a row."""
        run, feeds = self._session.run, self._feeds
        walls, cpus = [], []
        for _ in range(n):
            cpu, start = time.thread_time_ns(), time.perf_counter_ns()
            run(None, feeds)
            stop = time.perf_counter_ns()
            walls.append(stop - start)
            cpus.append(time.thread_time_ns() - cpu)
        return Calls(walls, cpus if self._counts_cpu else None)


def _reason(text: str) -> Reason:
    full = "Failed to allocate memory" in text or "bad_alloc" in text or "bad allocation" in text
    return "out_of_memory" if full else "refused"
