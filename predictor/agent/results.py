"""What becomes of the tries at one model file; the same with a network and without one."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any, Protocol

from predictor.errors import TaskFailedError
from predictor.measurements import Effort, Measurement, Quarantined, Reason

TRIES = 4
"""How often a subject that fails a noise gate is measured before it is stored flagged."""

Try = Measurement | Quarantined


class Measures(Protocol):
    """One try at a model file on one target; see `predictor.agent.sandbox.Sandbox`."""

    def measure(
        self, model: bytes, anchor_sha256: str, anchor: bytes, effort: Effort
    ) -> Measurement:
        """Raises TaskFailedError when there is no measurement."""
        ...


def one_try(
    stopwatch: Measures, model: bytes, anchor_sha256: str, anchor: bytes, effort: Effort
) -> Try:
    """A measurement; a `Quarantined` where the device was too noisy to say anything.

    Raises:
        TaskFailedError: the target cannot run the model, however often it is tried.
    """
    try:
        return stopwatch.measure(model, anchor_sha256, anchor, effort)
    except TaskFailedError as error:
        if error.code != "too_noisy":
            raise
        return Quarantined(None, error.detail)


def settled(latest: Try, earlier: list[Try]) -> dict[str, Any] | None:
    """The result as it is uploaded, or None when it is to be tried again.

    Args:
        earlier: the tries before, none of which passed; `latest` joins them if it does not.
    """
    if isinstance(latest, Measurement) and not latest.note:
        return _measurement(latest, earlier)
    earlier.append(latest)
    return _after_last_try(earlier) if len(earlier) >= TRIES else None


def failure(code: str, reason: Reason, detail: str) -> dict[str, Any]:
    """The result of a task that has no measurement."""
    return {"failure": {"code": code, "reason": reason, "detail": detail[:500]}}


def in_words(result: dict[str, Any]) -> str:
    """A result for people, in one line."""
    if failed := result.get("failure"):
        return f"{failed['code']} ({failed['reason']}): {failed['detail']}"
    found = result["measurement"]
    doubt = f", flagged: {found['note']}" if found["flagged"] else ""
    return f"{found['latency_ms']:.4f} ms, grade {found['grade']} (n={found['n']}){doubt}"


def _measurement(found: Measurement, tries: Iterable[Try]) -> dict[str, Any]:
    quarantined = tuple(
        t if isinstance(t, Quarantined) else Quarantined(t.latency_ms, t.note) for t in tries
    )
    return {"measurement": asdict(replace(found, quarantined=quarantined))}


def _after_last_try(tries: list[Try]) -> dict[str, Any]:
    """The best of the tries, flagged, with their spread; or the failure, if none said anything."""
    measured = [t for t in tries if isinstance(t, Measurement)]
    if not measured:
        last = tries[-1]
        assert isinstance(last, Quarantined)
        return failure("too_noisy", "noise", last.reason)
    best = min(measured, key=lambda m: m.latency_ms)
    spread_ms = max(m.latency_ms for m in measured) - best.latency_ms
    flagged = replace(best, flagged=True, grade="C", sigma_ms=max(best.sigma_ms, spread_ms))
    return _measurement(flagged, (t for t in tries if t is not best))
