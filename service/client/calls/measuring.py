"""Calls about targets, agents, measurements and latency models."""

from typing import Any

from service.agents.schemas import AgentRead, EnrolmentCodeCreated
from service.client.asking import Ask, Items, Steps, get, listed, pages, post
from service.latency_models.schemas import LatencyModelRead
from service.measurements.schemas import KitRead, MeasurementRead
from service.targets.schemas import TargetRead


def targets() -> Steps[list[TargetRead]]:
    """Every target, newest first."""
    return (yield from listed("/v1/targets", TargetRead))


def target(target_id: str) -> Steps[TargetRead]:
    """One target."""
    return (yield from get(f"/v1/targets/{target_id}", TargetRead))


def agents() -> Steps[list[AgentRead]]:
    """Every agent, newest first."""
    return (yield from listed("/v1/agents", AgentRead))


def agent(agent_id: str) -> Steps[AgentRead]:
    """One agent."""
    return (yield from get(f"/v1/agents/{agent_id}", AgentRead))


def create_enrolment_code(search_space: str | None = None) -> Steps[EnrolmentCodeCreated]:
    """A one-time code for `tailor agent enrol`; the space is measured on what enrols."""
    body = {"search_space": search_space}
    return (yield from post("/v1/enrolment-codes", body, EnrolmentCodeCreated))


def drain_agent(agent_id: str) -> Steps[AgentRead]:
    """Let an agent finish its current task and leave."""
    return (yield from post(f"/v1/agents/{agent_id}/drain", None, AgentRead))


def resume_agent(agent_id: str) -> Steps[AgentRead]:
    """Let a drained agent have work again."""
    return (yield from post(f"/v1/agents/{agent_id}/resume", None, AgentRead))


def revoke_agent(agent_id: str) -> Steps[None]:
    """Make an agent's token worthless."""
    yield Ask("DELETE", f"/v1/agents/{agent_id}")


def create_kit(
    target: str,
    search_space: str,
    *,
    again: bool = False,
    until_half_width: float | None = None,
) -> Steps[KitRead]:
    """Have a space measured on a target.

    Args:
        again: anew what has been measured.
        until_half_width: networks first, and blocks only until predictions are known to
            within this, relative.
    """
    body = {
        "target": target,
        "search_space": search_space,
        "again": again,
        "until_half_width": until_half_width,
    }
    return (yield from post("/v1/kits", body, KitRead))


def measurements(target: str) -> Items[MeasurementRead]:
    """What was measured on a target, newest first, page by page."""
    yield from pages("/v1/measurements", MeasurementRead, target=target, limit=200)


def kit(kit_id: str) -> Steps[KitRead]:
    """A kit and how far its measuring is."""
    return (yield from get(f"/v1/kits/{kit_id}", KitRead))


def kit_manifest(
    search_space: str, precision: str = "float32", batch: int = 1
) -> Steps[dict[str, Any]]:
    """The signed list of the files that a space's kit holds, word for word as it was signed."""
    asked = {"search_space": search_space, "precision": precision, "batch": batch}
    answer = yield Ask("GET", "/v1/kit-files", params=asked)
    manifest: dict[str, Any] = answer.json()
    return manifest


def kit_file(sha256: str) -> Steps[bytes]:
    """One file of a kit."""
    answer = yield Ask("GET", f"/v1/kit-files/{sha256}")
    content: bytes = answer.content
    return content


def latency_models(target: str | None = None) -> Steps[list[LatencyModelRead]]:
    """Latency models, newest first."""
    return (yield from listed("/v1/latency-models", LatencyModelRead, target=target))


def active_latency_model(target: str, search_space: str) -> Steps[LatencyModelRead | None]:
    """The model that prices searches of a space on a target."""
    models = yield from latency_models(target)
    return next((m for m in models if m.active and m.search_space == search_space), None)


def latency_model(model_id: str) -> Steps[LatencyModelRead]:
    """One latency model with its report."""
    return (yield from get(f"/v1/latency-models/{model_id}", LatencyModelRead))


def activate_latency_model(model_id: str) -> Steps[LatencyModelRead]:
    """Let a version price searches instead of the one that does; needs an admin's key."""
    return (yield from post(f"/v1/latency-models/{model_id}/activate", None, LatencyModelRead))
