"""Measuring one model file in a process of its own; a crash or a hang costs that task alone."""

import json
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from predictor.agent.protocol import floor_ms, longest_seconds
from predictor.agent.runtimes.base import RuntimeSpec
from predictor.errors import TaskFailedError
from predictor.measurements import Effort, Measurement, Quarantined

_READINGS_KEPT = 2000


class AnchorMemory:
    """The best times of anchors, so that a neighbour who stays is not taken for the device.

    When an anchor has not come near its best for some minutes, the device may have become
    slower for good: it is measured as it is then, and each measurement says so in its note.

    Args:
        path: JSON file that keeps them for a day; None keeps them as long as this object lives.
    """

    _NEAR = 1.06
    _PATIENCE_SECONDS = 180.0
    _LEAST_READINGS = 500
    _KEPT_DAYS = 1.0

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, tuple[float, str]] = {}  # ms, when it was last reached
        self._near_at: dict[str, float] = {}
        if path is not None and path.exists():
            with suppress(ValueError, OSError, TypeError, AttributeError):
                oldest = datetime.now(UTC) - timedelta(days=self._KEPT_DAYS)
                for sha256, (best_ms, at) in json.loads(path.read_text("utf-8")).items():
                    if datetime.fromisoformat(at) > oldest:
                        self._known[sha256] = (float(best_ms), at)

    def of(self, anchor_sha256: str) -> float | None:
        """The best time to hold the anchor against, in ms; None where there is none to hold."""
        if anchor_sha256 not in self._known or self.doubt(anchor_sha256):
            return None
        return self._known[anchor_sha256][0]

    def learn(self, anchor_sha256: str, readings: list[float]) -> None:
        """Take in the latest readings of an anchor, in ms."""
        now = time.monotonic()
        self._near_at.setdefault(anchor_sha256, now)
        best_ms, _ = self._known.get(anchor_sha256, (math.inf, ""))
        floor = floor_ms(readings)
        if floor <= best_ms * self._NEAR:
            self._near_at[anchor_sha256] = now
        if len(readings) >= self._LEAST_READINGS and floor <= best_ms * self._NEAR:
            at = datetime.now(UTC).isoformat()
            self._known[anchor_sha256] = (min(floor, best_ms), at)
            self._save()

    def doubt(self, anchor_sha256: str) -> str:
        """Why what is measured now is to be doubted; empty when it is not."""
        since = self._near_at.get(anchor_sha256)
        if since is None or time.monotonic() - since < self._PATIENCE_SECONDS:
            return ""
        best_ms, at = self._known.get(anchor_sha256, (math.nan, "never"))
        return (
            f"the anchor model has run slower than its best ({best_ms:.4g} ms, {at[:19]}) for "
            "minutes: the device is busy, or has become slower"
        )

    def _save(self) -> None:
        if self._path is None:
            return
        with suppress(OSError):
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps(self._known), encoding="utf-8")
            partial.replace(self._path)


class Sandbox:
    """Measures model files with one runtime, outside this process.

    Args:
        grace_seconds: how much longer than the protocol's limit a task may take, loading
            included, before it counts as hung.
        memory: file in which the anchors' best times outlive this process; None: they do not.
    """

    def __init__(
        self, spec: RuntimeSpec, grace_seconds: float = 60.0, memory: Path | None = None
    ) -> None:
        self._spec = spec
        self._grace_seconds = grace_seconds
        self._best = AnchorMemory(memory)
        self._folder = tempfile.TemporaryDirectory(prefix="tailor-agent-")
        self._readings: dict[str, list[float]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0  # of the latest order

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
        self._number += 1
        order = {
            "number": self._number,
            "model": str(folder / "model.onnx"),
            "anchor": str(folder / "anchor.onnx"),
            "effort": effort,
            "threads": self._spec.threads,
            "readings": self._readings.get(anchor_sha256, []),
            "remembered_ms": self._best.of(anchor_sha256),
        }
        answer = self._ask(order, longest_seconds(effort) + self._grace_seconds)
        if "readings" in answer:
            self._readings[anchor_sha256] = answer["readings"][-_READINGS_KEPT:]
            self._best.learn(anchor_sha256, self._readings[anchor_sha256])
        if "failure" in answer:
            raise TaskFailedError(**answer["failure"])
        found = answer["measurement"]
        found["note"] = "; ".join(filter(None, (found["note"], self._best.doubt(anchor_sha256))))
        quarantined = tuple(Quarantined(**q) for q in found.pop("quarantined"))
        return Measurement(**found, quarantined=quarantined)

    def _ask(self, order: dict[str, Any], limit_seconds: float) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        deadline = time.monotonic() + limit_seconds
        answer: dict[str, Any] = {}
        while answer.get("number") != order["number"]:  # an earlier one may have come late
            try:
                if not answer:
                    self._process.stdin.write(json.dumps(order).encode() + b"\n")
                    self._process.stdin.flush()
                line = self._line(deadline)
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
            answer = json.loads(line.splitlines()[-1])
        if os.name == "nt":  # pragma: no cover - no fork there: a process a task by starting anew
            self._end()
        return answer

    def _line(self, deadline: float) -> bytes | None:
        """The next line the process writes; what it wrote if it ends; None if time runs out."""
        assert self._process is not None
        assert self._process.stdout is not None
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
