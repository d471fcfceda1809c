"""Measuring one model file in a process of its own; a crash or a hang costs that task alone."""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from predictor.agent.protocol import EFFORTS
from predictor.agent.runtimes.base import RuntimeSpec
from predictor.errors import TaskFailedError
from predictor.measurements import Effort, Measurement, Quarantined

_READINGS_KEPT = 2000


class Sandbox:
    """Measures model files with one runtime, outside this process.

    Args:
        grace_seconds: how much longer than the protocol's limit a task may take, loading
            included, before it counts as hung.
    """

    def __init__(self, spec: RuntimeSpec, grace_seconds: float = 60.0) -> None:
        self._spec = spec
        self._grace_seconds = grace_seconds
        self._folder = tempfile.TemporaryDirectory(prefix="tailor-agent-")
        self._readings: dict[str, list[float]] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process and forget the files."""
        self._end()
        self._folder.cleanup()

    def measure(
        self, model: bytes, anchor_sha256: str, anchor: bytes, effort: Effort
    ) -> Measurement:
        """One try at measuring `model`; its `note` is set when a noise gate failed.

        Args:
            anchor_sha256: names the anchor, whose readings are remembered.

        Raises:
            TaskFailedError: there is no measurement; code, reason and detail say why.
        """
        folder = Path(self._folder.name)
        (folder / "model.onnx").write_bytes(model)
        (folder / "anchor.onnx").write_bytes(anchor)
        order = {
            "model": str(folder / "model.onnx"),
            "anchor": str(folder / "anchor.onnx"),
            "effort": effort,
            "threads": self._spec.threads,
            "readings": self._readings.get(anchor_sha256, []),
        }
        answer = self._ask(order, EFFORTS[effort].max_seconds + self._grace_seconds)
        if "readings" in answer:
            self._readings[anchor_sha256] = answer["readings"][-_READINGS_KEPT:]
        if "failure" in answer:
            raise TaskFailedError(**answer["failure"])
        found = answer["measurement"]
        quarantined = tuple(Quarantined(**q) for q in found.pop("quarantined"))
        return Measurement(**found, quarantined=quarantined)

    def _ask(self, order: dict[str, Any], limit_seconds: float) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            line = self._line(limit_seconds)
        except BrokenPipeError:
            line = b""
        if line is None:
            self._end()
            raise TaskFailedError(
                "unsupported", "hung", f"no answer within {limit_seconds:.0f} s; ended by force"
            )
        if not line.endswith(b"\n"):
            status = self._process.wait()
            self._end()
            raise TaskFailedError(
                "unsupported", "crashed", f"the measuring process ended with status {status}"
            )
        answer: dict[str, Any] = json.loads(line)
        if os.name == "nt":  # pragma: no cover - no fork there: a process a task by starting anew
            self._end()
        return answer

    def _line(self, limit_seconds: float) -> bytes | None:
        """The next line the process writes; what it wrote if it ends; None if time runs out."""
        assert self._process is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + limit_seconds
        descriptor, parts = self._process.stdout.fileno(), b""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while not parts.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                piece = os.read(descriptor, 1 << 20)
                if not piece:
                    return parts
                parts += piece
        return parts

    def _start(self) -> None:
        self._end()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "predictor.agent.child", json.dumps(asdict(self._spec))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is the agent's to answer; and it can be killed whole
        )

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
