"""Metrics on the wire; events themselves are in `schemas.py`."""

from typing import Literal

from pydantic import Field

from service.schemas import Resource


class AttemptStart(Resource):
    """Where an attempt's part of a curve begins."""

    number: int
    first_step: int


class Curve(Resource):
    """A metric over the steps of a phase."""

    phase: str
    name: str
    steps: list[int] = Field(description="Strictly growing.")
    values: list[float]
    n_points: int = Field(description="How many there are in all; fewer may be shown.")
    attempts: list[AttemptStart] = Field(description="Who told what, in the order of the steps.")


class MetricsRead(Resource):
    """The curves of a search, thinned to what can be drawn.

    Of each part of a longer curve its first, last, smallest and largest point are shown; every
    point shown was reported.
    """

    object: Literal["metrics"] = "metrics"
    search: str
    max_points: int
    items: list[Curve]
