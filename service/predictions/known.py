"""Pricing networks of known spaces with a stored latency model."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from predictor.errors import ModelDocumentError
from predictor.measurements import PROTOCOL_VERSION
from predictor.network import NetworkLatencyModel
from predictor.predict import predict, what_if
from search_core.errors import ArchitectureSyntaxError, UnknownSpaceError
from search_core.space.presets import get_space
from search_core.space.space import Architecture, SearchSpace
from service.errors import (
    ConflictError,
    FieldProblem,
    InvalidRequestError,
    NoLatencyModelError,
    NotFoundError,
)
from service.latency_models.models import LatencyModel
from service.latency_models.repository import active_model
from service.predictions.schemas import (
    PredictionCreate,
    PredictionList,
    PredictionRead,
    WhatIfCreate,
    WhatIfRead,
)
from service.spaces.catalogue import listed_space
from service.targets.repository import get_target

_LONGEST_TEXT = 300  # of a message that repeats what was sent


def model_of(session: Session, target_id: str, search_space: str) -> LatencyModel:
    """The model that prices a space on a target.

    Raises:
        NotFoundError: no such target or space; naming the spaces there are.
        NoLatencyModelError: the target was not measured for the space yet.
    """
    target = get_target(session, target_id)
    try:
        space = listed_space(search_space)
    except UnknownSpaceError as error:
        raise NotFoundError(str(error), field="search_space") from error
    row = active_model(session, target.id, space.digest)
    if row is None:
        raise NoLatencyModelError(
            f"target {target.id} has no latency model of {space.name} yet; measure it: "
            f"`tailor measure {target.id} --space {space.name}`, or POST /v1/kits"
        )
    return row


def price(row: LatencyModel, asked: PredictionCreate) -> PredictionList:
    """The predicted latency of every network asked for.

    Raises:
        InvalidRequestError: naming every string that does not parse.
        ConflictError: the model cannot be used any more.
    """
    space, model = _opened(row)
    items = []
    for architecture in _parsed(space, asked.architectures):
        found = predict(space, model, architecture)
        item = PredictionRead.model_validate(
            {**vars(found), "within_target": None}, from_attributes=True
        )
        if asked.target_ms is not None:
            limit_ms = model.largest_within(asked.target_ms)
            item.within_target = found.predicted_ms is not None and found.predicted_ms <= limit_ms
        items.append(item)
    return PredictionList(**_used(row, model), items=items)


def exchange(row: LatencyModel, asked: WhatIfCreate) -> WhatIfRead:
    """What the latency becomes when one slot alone is decided otherwise.

    Raises:
        InvalidRequestError: the string does not parse, or the space has no such slot.
        ConflictError: the model cannot be used any more.
    """
    space, model = _opened(row)
    architecture = space.parse(asked.architecture)
    slot = None if asked.slot is None else _slot(space, asked.slot)
    refused = set(model.unsupported).intersection(enumerate(architecture.choices))
    return WhatIfRead(
        **_used(row, model),
        architecture=space.format(architecture),
        predicted_ms=None if refused else model.predict_ms(architecture),
        slots=what_if(space, model, architecture, slot),
    )


def _opened(row: LatencyModel) -> tuple[SearchSpace, NetworkLatencyModel]:
    try:
        space, model = get_space(row.space), NetworkLatencyModel.from_document(row.document)
    except (UnknownSpaceError, ModelDocumentError) as error:
        raise ConflictError(f"latency model {row.id} cannot be read: {error}") from error
    if space.digest != row.space_digest:
        raise ConflictError(
            f"latency model {row.id} is of another edition of {row.space}; measure the target "
            f"again: `tailor measure {row.target_id} --space {row.space}`"
        )
    return space, model


def _parsed(space: SearchSpace, texts: Sequence[str]) -> list[Architecture]:
    parsed, wrong = [], []
    for index, text in enumerate(texts):
        try:
            parsed.append(space.parse(text))
        except ArchitectureSyntaxError as error:
            wrong.append(FieldProblem(f"architectures.{index}", str(error)[:_LONGEST_TEXT]))
    if wrong:
        more = f"; and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        refusal = InvalidRequestError(f"{wrong[0].field}: {wrong[0].message}{more}")
        refusal.fields = wrong
        raise refusal
    return parsed


def _slot(space: SearchSpace, named: int | str) -> int:
    names = [slot.name for slot in space.slots]
    if isinstance(named, str) and named in names:
        return names.index(named)
    if isinstance(named, int) and named < len(names):
        return named
    raise InvalidRequestError(
        f"{space.name} has slots 0 to {len(names) - 1}: {', '.join(names)}; got {named!r}",
        field="slot",
    )


def _used(row: LatencyModel, model: NetworkLatencyModel) -> dict[str, object]:
    return {
        "latency_model": row.id,
        "version": row.version,
        "active": row.active,
        "target": row.target_id,
        "search_space": row.space,
        "warnings": _warnings(row, model),
    }


def _warnings(row: LatencyModel, model: NetworkLatencyModel) -> list[str]:
    """Why the model may be off, whatever it is asked."""
    found = []
    if row.stale is not None:
        found.append(f"the model is stale: {row.stale['text']}")
    protocol = model.versions.get("protocol")
    if protocol != PROTOCOL_VERSION:
        found.append(
            f"the model rests on measuring protocol {protocol}, and agents follow "
            f"{PROTOCOL_VERSION} now: measure the target again"
        )
    if not row.active:
        found.append("another version of the model is the active one")
    return found
