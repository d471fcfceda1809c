"""A fitted latency model of one space on one target: plain numbers, JSON both ways."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from predictor.errors import ModelDocumentError
from search_core.space.space import Architecture

FORMAT = "tailor-latency-model/1"


@dataclass(frozen=True)
class NetworkLatencyModel:
    """``latency_ms = offset_ms + sum over slots of table_ms[slot][choice]``.

    Attributes:
        space_digest: of the space whose architectures it prices.
        offset_ms: call overhead and everything that no slot decides.
        table_ms: one row a slot, one entry a candidate.
        margin: relative amount by which a measurement may exceed its prediction, from
            leave-one-out residuals; searches decode against the budget less this.
        unsupported: (slot, choice) that the target cannot run; their entries of `table_ms` are
            what the slowest network of the others takes.
    """

    space_digest: str
    offset_ms: float
    table_ms: tuple[tuple[float, ...], ...]
    margin: float
    unsupported: tuple[tuple[int, int], ...] = ()

    def predict_ms(self, architecture: Architecture) -> float:
        """Predicted median latency of `architecture`.

        Raises:
            ModelDocumentError: the architecture belongs to another space.
        """
        if architecture.space_digest != self.space_digest:
            raise ModelDocumentError("the latency model was fitted for another space")
        rows = zip(self.table_ms, architecture.choices, strict=True)
        return self.offset_ms + sum(row[choice] for row, choice in rows)

    @property
    def band_ms(self) -> tuple[float, float]:
        """Predicted latency of the fastest and of the slowest network that the target runs."""
        refused = set(self.unsupported)
        rows = [
            [ms for choice, ms in enumerate(row) if (slot, choice) not in refused]
            for slot, row in enumerate(self.table_ms)
        ]
        return self.offset_ms + sum(map(min, rows)), self.offset_ms + sum(map(max, rows))

    def to_document(self) -> dict[str, Any]:
        """A JSON-able document; `from_document` reads it back."""
        return {"format": FORMAT, "unit": "ms", **asdict(self)}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "NetworkLatencyModel":
        """The model that `to_document` wrote.

        Raises:
            ModelDocumentError: the document is damaged or of an unknown format.
        """
        known = document.get("format"), document.get("unit")
        if known != (FORMAT, "ms"):
            raise ModelDocumentError(f"a latency model is {FORMAT} in ms, got {known}")
        try:
            model = cls(
                space_digest=str(document["space_digest"]),
                offset_ms=float(document["offset_ms"]),
                table_ms=tuple(tuple(float(ms) for ms in row) for row in document["table_ms"]),
                margin=float(document["margin"]),
                unsupported=tuple((int(s), int(c)) for s, c in document.get("unsupported", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelDocumentError(f"damaged latency model: {error!r}") from error
        numbers = [model.offset_ms, model.margin, *(ms for row in model.table_ms for ms in row)]
        if not all(map(math.isfinite, numbers)):
            raise ModelDocumentError("damaged latency model: a number is not finite")
        return model
