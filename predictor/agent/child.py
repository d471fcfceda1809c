"""The process that loads and runs model files, so that a bad one cannot hurt the agent.

`python -m predictor.agent.child SPEC` reads one order a line from standard input and answers
each with one line on standard output. Where the system can fork and the runtime allows it,
each order is carried out by a fork of this process, which has imported the runtime but
loaded nothing: a process a task at the price of a fork.
"""

import json
import math
import os
import select
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from predictor.agent import host
from predictor.agent.protocol import EFFORTS, Anchor, measure
from predictor.agent.runtimes.base import Runtime, RuntimeSpec
from predictor.agent.runtimes.registry import make_runtime
from predictor.errors import DeviceLostError, RuntimeFailedError, TooNoisyError


def main() -> None:
    """Serve orders until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    runtime: Runtime | None = None
    failure: dict[str, Any] | None = None
    try:
        runtime = make_runtime(RuntimeSpec(**json.loads(sys.argv[1])))
    except RuntimeFailedError as error:
        failure = _failure("unsupported", error.reason, str(error))
    forks = runtime is not None and runtime.one_child_per_task and hasattr(os, "fork")
    if not forks:
        _end_with_agent()
    for line in sys.stdin:
        order = json.loads(line)
        if runtime is None:
            _answer(answers, order, failure or {})
        elif forks:
            _in_fork(runtime, order, answers)
        else:
            answer = _carry_out(runtime, order)
            _answer(answers, order, answer)
            if answer.get("failure", {}).get("reason") == "crashed":
                return  # a device's context may be lost with it; the agent starts another


def _end_with_agent() -> None:
    """End this process as soon as the agent is gone, whatever a model is doing in it."""

    def wait() -> None:
        hang_up = select.poll()
        hang_up.register(0, 0)  # reads nothing: an order may be waiting there
        hang_up.poll()
        os._exit(1)

    if hasattr(select, "poll"):
        threading.Thread(target=wait, daemon=True).start()


def _in_fork(runtime: Runtime, order: dict[str, Any], answers: IO[str]) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _end_with_agent()
            _answer(answers, order, _carry_out(runtime, order))
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
        detail = f"the runtime died by {name}{hint}"
        _answer(answers, order, _failure("unsupported", "crashed", detail))
    elif os.WEXITSTATUS(status):
        detail = f"the process ended with status {os.WEXITSTATUS(status)}"
        _answer(answers, order, _failure("unsupported", "crashed", detail))


def _carry_out(runtime: Runtime, order: dict[str, Any]) -> dict[str, Any]:
    """The answer to one order: a measurement, or why there is none."""
    try:
        cores = host.pin(order["threads"])
        anchor_model = runtime.load(Path(order["anchor"]).read_bytes())
        remembered_ms = order["remembered_ms"] or math.inf
        anchor = Anchor(anchor_model, order["readings"], remembered_ms=remembered_ms)
        model = runtime.load(Path(order["model"]).read_bytes())
        expected = runtime.profile().execution_provider
        if model.provider != expected:
            detail = f"{model.provider} ran the model, not {expected}"
            return _failure("unsupported", "wrong_provider", detail)
        try:
            measurement = measure(
                model,
                anchor,
                EFFORTS[order["effort"]],
                slice_seconds=runtime.slice_seconds,
                facts={"cores": cores} if cores else {},
                look=getattr(runtime, "facts", host.transient_facts),
            )
        except TooNoisyError as error:
            failure = _failure("too_noisy", "noise", str(error))
            return {**failure, "readings": anchor.readings}
    except DeviceLostError as error:  # not the model's fault: another try, or another day
        return _failure("too_noisy", error.reason, str(error))
    except MemoryError:
        return _failure("unsupported", "out_of_memory", "the model does not fit into memory")
    except RuntimeFailedError as error:
        return _failure("unsupported", error.reason, str(error))
    return {"measurement": asdict(measurement), "readings": anchor.readings}


def _failure(code: str, reason: str, detail: str) -> dict[str, Any]:
    return {"failure": {"code": code, "reason": reason, "detail": detail[:500]}}


def _answer(answers: IO[str], order: dict[str, Any], answer: dict[str, Any]) -> None:
    """Answer `order`; its number goes back, because a fork may die after it has answered."""
    answer = {**answer, "number": order["number"]}
    try:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    except BrokenPipeError:
        os._exit(1)  # the agent is gone


if __name__ == "__main__":
    main()
