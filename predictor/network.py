"""A fitted latency model of one space on one target: plain numbers, JSON both ways.

The API predicts with it, so it needs no library.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

from predictor.errors import ModelDocumentError
from predictor.intervals import ConformalIntervals
from predictor.measurements import PROTOCOL_VERSION
from search_core.space.space import Architecture

FORMAT = "tailor-latency-model/2"
FIRST_FORMAT = "tailor-latency-model/1"
"""Written by version 0.1: offset, table, margin and unsupported candidates."""

FEATURE_VERSION = 1
"""Of the block features behind predicted entries of a table."""

Row = tuple[float, ...]


@dataclass(frozen=True)
class Pair:
    """What two slots add together, in ms: ``ms[choice of first][choice of second]``."""

    first: int
    second: int
    ms: tuple[Row, ...]


@dataclass(frozen=True)
class Similarity:
    """What a network adds for being like measured ones, in ms.

    ``sum_i weights_ms[i] prod_l (1 if a_l == networks[i][l] else factor)``.
    """

    factor: float
    networks: tuple[tuple[int, ...], ...]
    weights_ms: Row

    def at(self, choices: Sequence[int]) -> float:
        """The sum for one network."""
        total = 0.0
        for network, weight_ms in zip(self.networks, self.weights_ms, strict=True):
            differing = sum(map(int.__ne__, network, choices))
            total += weight_ms * self.factor**differing
        return total


@dataclass(frozen=True)
class Coverage:
    """How much of a network the measurements reach.

    Attributes:
        predicted_share: of the latency, in blocks that were predicted, not measured; 1 at the
            most, for a call may take less than nothing where blocks are predicted too slow.
        outside: layers whose block lies outside what the block regressor was fitted on.
        extrapolates: whether the network is slower or faster than every measured one by more
            than a tenth.
    """

    predicted_share: float
    outside: tuple[str, ...]
    extrapolates: bool

    @property
    def is_full(self) -> bool:
        """Whether every part of the network was measured on the target."""
        return self.predicted_share == 0.0 and not self.outside and not self.extrapolates


@dataclass(frozen=True)
class NetworkLatencyModel:
    """Latency as a function that is multilinear in the one-hot choices of the slots.

    ``latency_ms = offset_ms + sum over slots of table_ms[slot][choice] + pairs + similarity``.

    Attributes:
        space_digest: of the space whose architectures it prices.
        offset_ms: call overhead and everything that no slot decides.
        table_ms: one row a slot, one entry a candidate.
        margin: relative amount by which a measurement may exceed its prediction.
        unsupported: (slot, choice) that the target cannot run; their entries of `table_ms` are
            what the slowest network of the others takes.
        pairs: what candidates of two slots add together.
        similarity: what measured networks say of those like them; None where nothing.
        intervals: how far a measurement may lie from its prediction; None in models that were
            fitted before there were any.
        predicted: (slot, choice) whose entry nobody measured.
        outside: those of `predicted` that lie outside what their regressor was fitted on.
        measured_ms: latency of the fastest and the slowest network it was fitted to.
        extremes_ms: what `find_extremes` found; None where the table alone tells.
        versions: of features, protocol and runtime behind the numbers, by name.
    """

    space_digest: str
    offset_ms: float
    table_ms: tuple[Row, ...]
    margin: float
    unsupported: tuple[tuple[int, int], ...] = ()
    pairs: tuple[Pair, ...] = ()
    similarity: Similarity | None = None
    intervals: ConformalIntervals | None = None
    predicted: tuple[tuple[int, int], ...] = ()
    outside: tuple[tuple[int, int], ...] = ()
    measured_ms: tuple[float, float] | None = None
    extremes_ms: tuple[float, float] | None = None
    versions: Mapping[str, int] = field(
        default_factory=lambda: {"features": FEATURE_VERSION, "protocol": PROTOCOL_VERSION}
    )

    def predict_ms(self, architecture: Architecture) -> float:
        """Predicted median latency of `architecture`.

        Raises:
            ModelDocumentError: the architecture belongs to another space.
        """
        if architecture.space_digest != self.space_digest:
            raise ModelDocumentError("the latency model was fitted for another space")
        return self._at(architecture.choices)

    def shared_ms(self, architecture: Architecture) -> float:
        """What several slots decide together; part of `predict_ms`."""
        choices = architecture.choices
        similar_ms = self.similarity.at(choices) if self.similarity else 0.0
        return similar_ms + sum(ms for _, ms in self._paired(choices))

    def interval_ms(self, predicted_ms: float) -> tuple[float, float] | None:
        """What holds the measurement of a network so predicted; None where it is not known."""
        return self.intervals.of(predicted_ms) if self.intervals else None

    def largest_within(self, budget_ms: float) -> float:
        """The largest prediction whose measurement should stay within a budget, in ms."""
        if self.intervals is None:
            return budget_ms / (1.0 + self.margin)
        return self.intervals.largest_within(budget_ms)

    def coverage(self, architecture: Architecture) -> Coverage:
        """How much of `architecture` the measurements reach."""
        chosen = set(enumerate(architecture.choices))
        predicted_ms = self.predict_ms(architecture)
        guessed_ms = sum(
            self.table_ms[slot][choice]
            for slot, choice in self.predicted
            if (slot, choice) in chosen
        )
        low, high = self.measured_ms or (0.0, math.inf)
        return Coverage(
            predicted_share=min(1.0, max(0.0, guessed_ms / predicted_ms)) if guessed_ms else 0.0,
            outside=tuple(
                f"slot {slot}" for slot, c in sorted(self.outside) if (slot, c) in chosen
            ),
            extrapolates=not 0.9 * low <= predicted_ms <= 1.1 * high,
        )

    @property
    def band_ms(self) -> tuple[float, float]:
        """Predicted latency of the fastest and of the slowest network that the target runs."""
        if self.extremes_ms is not None:
            return self.extremes_ms
        rows = list(zip(self.table_ms, self._permitted(), strict=True))
        fastest, slowest = (
            self.offset_ms + sum(pick(row[choice] for choice in choices) for row, choices in rows)
            for pick in (min, max)
        )
        return fastest, slowest

    def find_extremes(self) -> tuple[float, float]:
        """What `extremes_ms` is to be: the best that exchanges of one or two slots lead to."""
        fastest, slowest = (self._extreme(sign) for sign in (1.0, -1.0))
        return fastest, slowest

    def _extreme(self, sign: float) -> float:
        permitted = self._permitted()
        best = [
            min(choices, key=lambda c: sign * row[c])
            for row, choices in zip(self.table_ms, permitted, strict=True)
        ]
        best_ms, improves = self._at(best), True
        together: list[tuple[int, ...]] = [(slot,) for slot in range(len(permitted))]
        together += [(pair.first, pair.second) for pair in self.pairs]
        while improves:
            improves = False
            for slots in together:
                for choices in product(*(permitted[slot] for slot in slots)):
                    other = list(best)
                    for slot, choice in zip(slots, choices, strict=True):
                        other[slot] = choice
                    other_ms = self._at(other)
                    if sign * other_ms < sign * best_ms:
                        best, best_ms, improves = other, other_ms, True
        return best_ms

    def _permitted(self) -> list[list[int]]:
        refused = set(self.unsupported)
        return [
            [choice for choice in range(len(row)) if (slot, choice) not in refused]
            for slot, row in enumerate(self.table_ms)
        ]

    def _at(self, choices: Sequence[int]) -> float:
        rows = zip(self.table_ms, choices, strict=True)
        latency_ms = self.offset_ms + sum(row[choice] for row, choice in rows)
        latency_ms += sum(ms for _, ms in self._paired(choices))
        return latency_ms + (self.similarity.at(choices) if self.similarity else 0.0)

    def _paired(self, choices: Sequence[int]) -> Iterator[tuple[Pair, float]]:
        for pair in self.pairs:
            yield pair, pair.ms[choices[pair.first]][choices[pair.second]]

    def to_document(self) -> dict[str, Any]:
        """A JSON-able document; `from_document` reads it back."""
        return {"format": FORMAT, "unit": "ms", **asdict(self), "versions": dict(self.versions)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "NetworkLatencyModel":
        """The model that `to_document` wrote, in this version or in an earlier one.

        Raises:
            ModelDocumentError: the document is damaged or of an unknown format.
        """
        known = document.get("format"), document.get("unit")
        if known not in ((FORMAT, "ms"), (FIRST_FORMAT, "ms")):
            raise ModelDocumentError(f"a latency model is {FORMAT} in ms, got {known}")
        try:
            model = cls(
                space_digest=str(document["space_digest"]),
                offset_ms=float(document["offset_ms"]),
                table_ms=_rows(document["table_ms"]),
                margin=float(document["margin"]),
                unsupported=_entries(document.get("unsupported", ())),
                pairs=tuple(
                    Pair(int(p["first"]), int(p["second"]), _rows(p["ms"]))
                    for p in document.get("pairs", ())
                ),
                similarity=_similarity(document.get("similarity")),
                intervals=_intervals(document.get("intervals")),
                predicted=_entries(document.get("predicted", ())),
                outside=_entries(document.get("outside", ())),
                measured_ms=_band(document.get("measured_ms")),
                extremes_ms=_band(document.get("extremes_ms")),
                versions=_versions(document.get("versions", {"features": 0, "protocol": 0})),
            )
            model._check()
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ModelDocumentError(f"damaged latency model: {error!r}") from error
        return model

    def _check(self) -> None:
        """Raises ValueError where a number is not finite or the shapes do not fit."""
        similar = self.similarity or Similarity(1.0, (), ())
        numbers = [
            self.offset_ms,
            self.margin,
            *(ms for row in self.table_ms for ms in row),
            *(ms for pair in self.pairs for row in pair.ms for ms in row),
            similar.factor,
            *similar.weights_ms,
            *(self.extremes_ms or ()),
        ]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("a number is not finite")
        widths = [len(row) for row in self.table_ms]
        for pair in self.pairs:
            shape = [len(pair.ms), *{len(row) for row in pair.ms}]
            if shape != [widths[pair.first], widths[pair.second]] or pair.first == pair.second:
                raise ValueError(f"the pair of slots {pair.first} and {pair.second} does not fit")
        for network in similar.networks:
            if len(network) != len(widths) or not all(
                0 <= choice < width for choice, width in zip(network, widths, strict=True)
            ):
                raise ValueError(f"{network} is not a network of the table")
        for slot, choice in (*self.unsupported, *self.predicted, *self.outside):
            if not (0 <= slot < len(widths) and 0 <= choice < widths[slot]):
                raise ValueError(f"the table has no entry ({slot}, {choice})")


def _rows(value: Any) -> tuple[Row, ...]:
    return tuple(tuple(float(ms) for ms in row) for row in value)


def _entries(value: Any) -> tuple[tuple[int, int], ...]:
    return tuple((int(slot), int(choice)) for slot, choice in value)


def _versions(value: Any) -> dict[str, int]:
    return {str(name): int(version) for name, version in value.items()}


def _band(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    low, high = value
    return float(low), float(high)


def _similarity(value: Any) -> Similarity | None:
    if value is None:
        return None
    networks = tuple(tuple(map(int, network)) for network in value["networks"])
    found = Similarity(float(value["factor"]), networks, tuple(map(float, value["weights_ms"])))
    if len(found.networks) != len(found.weights_ms):
        raise ValueError("as many weights as networks are needed")
    return found


def _intervals(value: Any) -> ConformalIntervals | None:
    if value is None:
        return None
    found = ConformalIntervals(
        level=float(value["level"]),
        edges_ms=tuple(map(float, value["edges_ms"])),
        half_width=tuple(map(float, value["half_width"])),
        upper=tuple(map(float, value["upper"])),
        n=tuple(map(int, value["n"])),
    )
    groups = {len(found.edges_ms) + 1, len(found.half_width), len(found.upper), len(found.n)}
    if len(groups) != 1 or not all(map(math.isfinite, (*found.half_width, *found.upper))):
        raise ValueError("the intervals do not fit together")
    return found
