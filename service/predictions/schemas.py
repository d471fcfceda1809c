"""Predictions on the wire. Every latency is in milliseconds."""

from typing import Annotated, Literal

from pydantic import Field

from service.schemas import Name, Request, Resource, Text

Architecture = Annotated[Text, Field(min_length=1, max_length=4096)]
Budget = Annotated[float, Field(gt=0.0, le=600_000.0)]


class PredictionCreate(Request):
    """Networks to price with one latency model.

    Attributes:
        architectures: compact strings of the model's space.
        target_ms: say of each whether it should stay within this.
    """

    architectures: Annotated[list[Architecture], Field(min_length=1, max_length=100)]
    target_ms: Budget | None = None


class TargetPredictionCreate(PredictionCreate):
    """Networks to price with the active model of a space on a target."""

    target: Name
    search_space: Name = "micro"


class LayerBlockRead(Resource):
    """A block where it stands in the network, from 0, fixed layers included."""

    layer: int
    block: str


class SlotShareRead(Resource):
    """What one decision takes."""

    slot: int
    name: str
    candidate: str
    layers: list[LayerBlockRead] = Field(description="Those it decides; `ms` is their sum.")
    ms: float = Field(description="Without what it shares with other slots.")
    measured: bool = Field(description="False: predicted from what was measured.")
    in_range: bool = Field(description="False: unlike anything measured.")
    supported: bool = Field(description="False: the target cannot run it; `ms` means nothing.")


class WaterfallRead(Resource):
    """Parts that add up to `predicted_ms`: `call_ms`, each slot's `ms`, `interactions_ms`."""

    call_ms: float = Field(description="Of a call and of the fixed layers; their sum is known.")
    fixed: list[LayerBlockRead]
    slots: list[SlotShareRead]
    interactions_ms: float = Field(description="What slots add together; may be negative.")


class CoverageRead(Resource):
    """How much of a network the measurements reach."""

    is_full: bool = Field(description="Whether every part of it was measured on the target.")
    predicted_share: float = Field(description="Of the latency, in blocks that were predicted.")
    outside: list[str] = Field(description="Slots whose block is unlike anything measured.")
    extrapolates: bool = Field(description="Faster or slower than every measured network.")


class PredictionRead(Resource):
    """The predicted latency of one network, and how far to trust it."""

    architecture: str
    predicted_ms: float | None = Field(description="None where the target cannot run it.")
    low_ms: float | None = Field(description="With `high_ms`: the interval of `level`.")
    high_ms: float | None
    upper_ms: float | None = Field(description="What a measurement should stay below.")
    level: float | None = Field(description="None where the model knows of no intervals.")
    within_target: bool | None = Field(description="None without `target_ms`.")
    waterfall: WaterfallRead
    coverage: CoverageRead | None
    dead: list[LayerBlockRead] = Field(description="Blocks that the output does not depend on.")
    degenerate: bool = Field(description="The output does not depend on the input.")
    warnings: list[str]


class ModelUsed(Resource):
    """What a prediction rests on."""

    latency_model: str
    version: int
    active: bool
    target: str
    search_space: str
    warnings: list[str] = Field(description="Why the model may be off, as when it is stale.")


class PredictionList(ModelUsed):
    """Predictions, in the order in which the networks were given."""

    object: Literal["predictions"] = "predictions"
    items: list[PredictionRead]


class WhatIfCreate(Request):
    """A network, and the slot to decide otherwise: its index or name; none: each in turn."""

    architecture: Architecture
    slot: Annotated[int, Field(ge=0, lt=10_000, strict=True)] | Name | None = None


class ExchangeRead(Resource):
    """One candidate in the place of the chosen one, all else unchanged."""

    candidate: str
    chosen: bool
    supported: bool
    measured: bool
    predicted_ms: float | None = Field(description="None where the target cannot run the network.")
    delta_ms: float | None


class SlotExchangesRead(Resource):
    """Every candidate of one slot."""

    slot: int
    name: str
    candidates: list[ExchangeRead]


class WhatIfRead(ModelUsed):
    """What the latency becomes when one slot alone is decided otherwise."""

    object: Literal["what_if"] = "what_if"
    architecture: str
    predicted_ms: float | None
    slots: list[SlotExchangesRead]


class KernelRead(Resource):
    """One node of the graph that the runtime makes of a file."""

    name: str
    op: str
    ms: float
    share: float = Field(description="Of the predicted latency.")
    covered: bool = Field(description="Whether a kernel like it was measured on the target.")


class FilePredictionRead(Resource):
    """The predicted latency of an ONNX file, kernel by kernel.

    `call_ms` and the kernels' `ms` add up to `predicted_ms`.
    """

    object: Literal["file_prediction"] = "file_prediction"
    target: str
    sha256: str
    predicted_ms: float
    low_ms: float
    high_ms: float
    level: float
    call_ms: float
    kernels: list[KernelRead]
    unknown_operators: list[str] = Field(
        description="Priced by their bytes and multiply-accumulates alone: never measured."
    )
    coverage: float = Field(description="Share of the latency in kernels like measured ones.")
    runtime: str = Field(description="What made the kernels of the file.")
    warnings: list[str]
