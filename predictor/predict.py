"""What a latency model says of one network: where its time goes, how far to trust it, what if.

Plain numbers in, plain values out; nothing is loaded but the model's own document.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from predictor.network import Coverage, NetworkLatencyModel
from predictor.structure import is_degenerate
from search_core.space.blocks import BlockKind
from search_core.space.space import Architecture, SearchSpace

_TOLD = 3  # of the blocks that a warning is about


@dataclass(frozen=True)
class LayerBlock:
    """A block where it stands in the network; layers count from 0, fixed ones included."""

    layer: int
    block: str


@dataclass(frozen=True)
class SlotShare:
    """What one decision takes.

    Attributes:
        slot, name, candidate: which decision, and what it was decided for.
        layers: that it decides; the model knows their sum only.
        ms: without what it shares with other slots.
        measured: whether the target has measured it; if not, it was predicted from others.
        in_range: whether it lies within what it was predicted from.
        supported: whether the target can run it.
    """

    slot: int
    name: str
    candidate: str
    layers: tuple[LayerBlock, ...]
    ms: float
    measured: bool
    in_range: bool
    supported: bool


@dataclass(frozen=True)
class Waterfall:
    """Parts that add up to the predicted latency.

    Attributes:
        call_ms: of a call, and of the layers that no slot decides; the model knows their sum only.
        fixed: those layers.
        slots: in the order of the space.
        interactions_ms: what slots add together, over what each adds alone; often negative.
    """

    call_ms: float
    fixed: tuple[LayerBlock, ...]
    slots: tuple[SlotShare, ...]
    interactions_ms: float


@dataclass(frozen=True)
class Prediction:
    """The predicted latency of one network.

    Attributes:
        architecture: its compact string.
        predicted_ms: None where the target cannot run it.
        low_ms, high_ms: hold the measurement with the probability `level`; None where the model
            knows of no intervals.
        upper_ms: what the measurement should stay below; by the model's margin where it knows of
            no intervals.
        coverage: with the names of slots; None where the target cannot run it.
        dead: blocks that nothing of the output depends on.
        degenerate: the output does not depend on the input at all.
        warnings: every reason to trust it less, for people; empty where all was measured.
    """

    architecture: str
    predicted_ms: float | None
    low_ms: float | None
    high_ms: float | None
    upper_ms: float | None
    level: float | None
    waterfall: Waterfall
    coverage: Coverage | None
    dead: tuple[LayerBlock, ...]
    degenerate: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Exchange:
    """One candidate in the place of the chosen one, all else unchanged.

    Attributes:
        predicted_ms, delta_ms: of the network with it, and by how much that is more; None where
            the target cannot run it.
    """

    candidate: str
    chosen: bool
    supported: bool
    measured: bool
    predicted_ms: float | None
    delta_ms: float | None


@dataclass(frozen=True)
class SlotExchanges:
    """Every candidate of one slot."""

    slot: int
    name: str
    candidates: tuple[Exchange, ...]


def predict(
    space: SearchSpace, model: NetworkLatencyModel, architecture: Architecture
) -> Prediction:
    """Price `architecture` of `space`, and say how far to trust that.

    Raises:
        ModelDocumentError: the model is of another space.
    """
    total_ms = model.predict_ms(architecture)
    waterfall = _waterfall(space, model, architecture)
    runs = all(share.supported for share in waterfall.slots)
    interval = model.interval_ms(total_ms) if runs else None
    upper_ms = (
        model.intervals.upper_ms(total_ms) if model.intervals else total_ms * (1.0 + model.margin)
    )
    graph = space.graph(architecture)
    dead = tuple(
        LayerBlock(index, str(graph.blocks[index]))
        for index in sorted(graph.idle)
        if graph.blocks[index].kind is not BlockKind.NONE
    )
    degenerate = is_degenerate(graph)
    coverage = None
    if runs:
        outside = tuple(share.name for share in waterfall.slots if not share.in_range)
        coverage = replace(model.coverage(architecture), outside=outside)
    return Prediction(
        architecture=space.format(architecture),
        predicted_ms=total_ms if runs else None,
        low_ms=interval[0] if interval else None,
        high_ms=interval[1] if interval else None,
        upper_ms=upper_ms if runs else None,
        level=model.intervals.level if interval and model.intervals else None,
        waterfall=waterfall,
        coverage=coverage,
        dead=dead,
        degenerate=degenerate,
        warnings=tuple(_warnings(waterfall, coverage, dead, degenerate)),
    )


def what_if(
    space: SearchSpace,
    model: NetworkLatencyModel,
    architecture: Architecture,
    slot: int | None = None,
) -> list[SlotExchanges]:
    """What the latency becomes when one slot alone is decided otherwise.

    Args:
        slot: the one to ask for; None: each in turn.

    Raises:
        ModelDocumentError: the model is of another space.
    """
    refused, guessed = set(model.unsupported), set(model.predicted)
    choices = architecture.choices
    now_ms = model.predict_ms(architecture)
    elsewhere = {s for s, c in enumerate(choices) if (s, c) in refused}

    def exchange(s: int, c: int) -> Exchange:
        supported = (s, c) not in refused and elsewhere <= {s}
        changed = Architecture(architecture.space_digest, (*choices[:s], c, *choices[s + 1 :]))
        predicted_ms = model.predict_ms(changed) if supported else None
        return Exchange(
            candidate=space.slots[s].candidates[c],
            chosen=c == choices[s],
            supported=(s, c) not in refused,
            measured=(s, c) not in guessed,
            predicted_ms=predicted_ms,
            delta_ms=predicted_ms - now_ms if predicted_ms is not None and not elsewhere else None,
        )

    return [
        SlotExchanges(s, known.name, tuple(exchange(s, c) for c in range(len(known.candidates))))
        for s, known in enumerate(space.slots)
        if slot in (None, s)
    ]


def _waterfall(
    space: SearchSpace, model: NetworkLatencyModel, architecture: Architecture
) -> Waterfall:
    layers_of: dict[int | None, list[LayerBlock]] = {}
    for index, (layer, block) in enumerate(
        zip(space.layers, space.blocks(architecture), strict=True)
    ):
        layers_of.setdefault(layer.slot, []).append(LayerBlock(index, str(block)))
    refused, guessed, outside = map(set, (model.unsupported, model.predicted, model.outside))
    slots = tuple(
        SlotShare(
            slot=s,
            name=slot.name,
            candidate=slot.candidates[c],
            layers=tuple(layers_of.get(s, ())),
            ms=model.table_ms[s][c],
            measured=(s, c) not in guessed,
            in_range=(s, c) not in outside,
            supported=(s, c) not in refused,
        )
        for s, (slot, c) in enumerate(zip(space.slots, architecture.choices, strict=True))
    )
    fixed = tuple(layers_of.get(None, ()))
    return Waterfall(model.offset_ms, fixed, slots, model.shared_ms(architecture))


def _warnings(
    waterfall: Waterfall,
    coverage: Coverage | None,
    dead: tuple[LayerBlock, ...],
    degenerate: bool,
) -> Iterator[str]:
    refused = [f"{s.name} {s.candidate}" for s in waterfall.slots if not s.supported]
    if refused:
        yield f"the target cannot run {', '.join(refused)}, so no latency is predicted"
    if coverage is not None and coverage.predicted_share > 0.0:
        yield (
            f"{coverage.predicted_share:.0%} of the latency is in blocks that the target has not "
            "measured: they were predicted from others"
        )
    outside = [f"{s.name} {s.candidate}" for s in waterfall.slots if not s.in_range]
    if outside:
        yield f"unlike anything measured, so extrapolated: {', '.join(outside)}"
    if coverage is not None and coverage.extrapolates:
        yield "it is faster or slower than every measured network by more than a tenth"
    if degenerate:
        yield "its output does not depend on its input: a runtime may leave all of it out"
    elif dead:
        told = ", ".join(f"{d.block} (layer {d.layer})" for d in dead[:_TOLD])
        told += f" and {len(dead) - _TOLD} more" if len(dead) > _TOLD else ""
        yield f"nothing of its output depends on {told}: a runtime may leave that out"
