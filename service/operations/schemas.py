"""Health on the wire."""

from typing import Literal

from service.schemas import Resource


class Health(Resource):
    """The process answers."""

    status: Literal["ok"] = "ok"


class ReadinessRead(Resource):
    """Whether requests can be served, and for each check `ok` or what to do."""

    status: Literal["ok", "unavailable"]
    checks: dict[str, str]


class Version(Resource):
    """What is installed."""

    tailor: str
    oldest_agent: str
