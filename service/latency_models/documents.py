"""Fitted models as the objects they describe; rows of models never change, so they are kept."""

from collections import OrderedDict
from threading import Lock

from predictor.network import NetworkLatencyModel
from service.latency_models.models import LatencyModel

_MOST = 64
_kept: OrderedDict[str, NetworkLatencyModel] = OrderedDict()
_lock = Lock()


def parsed(row: LatencyModel) -> NetworkLatencyModel:
    """The model of a row; the last few that were asked for are parsed once."""
    with _lock:
        if row.id in _kept:
            _kept.move_to_end(row.id)
            return _kept[row.id]
    model = NetworkLatencyModel.from_document(row.document)
    with _lock:
        _kept[row.id] = model
        while len(_kept) > _MOST:
            _kept.popitem(last=False)
    return model
