"""Whether a new fit takes over from the model that prices searches; only attempts import this."""

from collections.abc import Mapping
from dataclasses import dataclass

from predictor.errors import ModelDocumentError
from predictor.held_out import quality_of
from predictor.network import NetworkLatencyModel
from search_core.space.space import SearchSpace
from service.latency_models.models import LatencyModel


@dataclass(frozen=True)
class Promotion:
    """What was decided about a new fit; part of its report.

    Attributes:
        mape, mape_of_active: errors of both on the same held-out networks as measured now; None
            where there was nothing to compare.
        active: the model that was active before; None where there was none.
    """

    promoted: bool
    reason: str
    mape: float | None = None
    mape_of_active: float | None = None
    active: str | None = None


def judge(
    space: SearchSpace,
    model: NetworkLatencyModel,
    row: LatencyModel | None,
    measured_ms: Mapping[str, float],
) -> Promotion:
    """Compare a new fit with the active model.

    The new one is promoted when it predicts the held-out networks at least as well, or where the
    active one cannot be held against it.

    Args:
        row: the active model.
        measured_ms: median latency by subject, as measured now.
    """
    if row is None:
        return Promotion(True, "it is the first model of this space on this target")
    try:
        active = NetworkLatencyModel.from_document(row.document)
    except ModelDocumentError as error:
        return Promotion(True, f"version {row.version} cannot be read: {error}", active=row.id)
    if obstacle := _obstacle(row, active, model):
        return Promotion(True, obstacle, active=row.id)
    new, old = quality_of(space, model, measured_ms), quality_of(space, active, measured_ms)
    if new is None or old is None:
        return Promotion(
            True, "fewer than two held-out networks are measured to compare by", active=row.id
        )
    is_better = new.mape <= old.mape
    reason = (
        f"on the same {new.n} held-out networks its error is {new.mape:.2%}, and "
        f"{old.mape:.2%} is that of version {row.version}"
    )
    return Promotion(is_better, reason, new.mape, old.mape, row.id)


def _obstacle(
    row: LatencyModel, active: NetworkLatencyModel, model: NetworkLatencyModel
) -> str | None:
    """Why errors of the active model say nothing against a new one; None where they do."""
    before = active.versions.get("protocol")
    now = model.versions.get("protocol")
    if row.stale is not None:
        return f"version {row.version} is stale: {row.stale['text']}"
    if before != now:
        return f"version {row.version} rests on measuring protocol {before}, this one on {now}"
    if set(active.unsupported) != set(model.unsupported):
        return f"what the target runs has changed since version {row.version}"
    return None
