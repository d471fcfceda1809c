"""Calls about what networks would take."""

from collections.abc import Sequence

from service.client.asking import Ask, Steps, post
from service.predictions.schemas import FilePredictionRead, PredictionList, WhatIfRead

_FILE_SECONDS = 240.0  # a file is sent, and read in turn with others


def predict(
    target: str,
    search_space: str,
    architectures: Sequence[str],
    *,
    target_ms: float | None = None,
) -> Steps[PredictionList]:
    """What networks of a space would take on a target, by its active latency model.

    Args:
        target_ms: say of each whether it should stay within this.
    """
    body = {
        "target": target,
        "search_space": search_space,
        "architectures": list(architectures),
        "target_ms": target_ms,
    }
    return (yield from post("/v1/predictions", body, PredictionList))


def predict_with(
    model_id: str, architectures: Sequence[str], *, target_ms: float | None = None
) -> Steps[PredictionList]:
    """The same by one latency model, active or not."""
    body = {"architectures": list(architectures), "target_ms": target_ms}
    return (yield from post(f"/v1/latency-models/{model_id}/predictions", body, PredictionList))


def what_if(model_id: str, architecture: str, slot: int | str | None = None) -> Steps[WhatIfRead]:
    """What each candidate of a slot, or of every slot in turn, would change alone."""
    body = {"architecture": architecture, "slot": slot}
    return (yield from post(f"/v1/latency-models/{model_id}/what-if", body, WhatIfRead))


def predict_file(target: str, content: bytes) -> Steps[FilePredictionRead]:
    """What an ONNX file would take on a target, kernel by kernel."""
    answer = yield Ask(
        "POST",
        f"/v1/targets/{target}/predictions",
        content=content,
        headers={"Content-Type": "application/octet-stream"},
        timeout=_FILE_SECONDS,
    )
    return FilePredictionRead.model_validate(answer.json())
