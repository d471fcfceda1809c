"""Enrolment and agents over HTTP."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest

PROFILE = {
    "device_model": "pi",
    "machine": "aarch64",
    "system": "Linux",
    "runtime": "onnxruntime",
    "runtime_version": "1",
    "execution_provider": "cpu",
    "threads": 4,
    "precision": "float32",
    "batch": 1,
}


def enrolment(code: str, **changes: object) -> dict:
    body = {"code": code, "name": "kitchen pi", "agent_version": "0.1.0", "profile": PROFILE}
    return {**body, **changes}


def test_a_code_makes_an_agent_and_its_target(api):
    answer = api.client().post("/v1/agents", json=enrolment(api.code()))
    assert answer.status_code == 201
    agent = answer.json()
    assert agent["token"].startswith("tla_")
    assert (agent["name"], agent["version"]) == ("kitchen pi", "0.1.0")
    target = api.http.get(f"/v1/targets/{agent['target_id']}").json()
    assert target["profile"] == PROFILE
    assert target["agents_online"] >= 1
    assert "pi" in target["name"]
    assert "4 thread" in target["name"]


def test_agents_with_the_same_profile_share_a_target(api):
    assert api.enrol(threads=2).target_id == api.enrol(threads=2).target_id
    assert api.enrol(threads=2).target_id != api.enrol(threads=3).target_id


def test_a_code_is_valid_for_some_minutes(api):
    made = api.http.post("/v1/enrolment-codes").json()
    left = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
    assert timedelta(0) < left <= timedelta(minutes=api.settings.enrolment_minutes)


def test_a_code_may_be_typed_in_lower_case(api):
    code = f"  {api.code().lower()} "
    assert api.client().post("/v1/agents", json=enrolment(code)).status_code == 201


def assert_refused(api, code: str) -> None:
    before = api.stored()
    body = enrolment(code, profile={**PROFILE, "device_model": uuid.uuid4().hex})
    answer = api.client().post("/v1/agents", json=body)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "unauthenticated"
    assert [error["field"] for error in answer.json()["errors"]] == ["code"]
    assert api.stored() == before


def test_a_code_works_once(api):
    code = api.code()
    assert api.client().post("/v1/agents", json=enrolment(code)).status_code == 201
    assert_refused(api, code)


@pytest.mark.parametrize("code", ["ABCD-EFGH-JKLM", "x", "'; DROP TABLE agents; --", "é" * 200])
def test_a_guessed_code_is_refused(api, code):
    assert_refused(api, code)


def test_an_expired_code_is_refused(serve):
    with serve(enrolment_minutes=1e-9) as api:
        assert_refused(api, api.code())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("threads", 0),
        ("threads", 1025),
        ("threads", 1.5),
        ("batch", 0),
        ("precision", "float16"),
        ("device_model", ""),
        ("device_model", None),
        ("color", "red"),
    ],
)
def test_a_wrong_profile_names_the_field_and_leaves_the_code_unused(api, field, value):
    code = api.code()
    before = api.stored()
    body = enrolment(code, profile={**PROFILE, field: value})
    answer = api.client().post("/v1/agents", json=body)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [f"profile.{field}"]
    assert api.stored() == before
    assert api.client().post("/v1/agents", json=enrolment(code)).status_code == 201


def test_agents_are_listed_newest_first_without_their_tokens(api):
    devices = [api.enrol() for _ in range(2)]
    listed = api.http.get("/v1/agents", params={"limit": 2}).json()["items"]
    assert [agent["id"] for agent in listed] == [d.agent_id for d in reversed(devices)]
    assert all("token" not in agent and "token_hash" not in agent for agent in listed)


def test_a_revoked_agent_may_do_nothing_and_is_not_online(api):
    device = api.enrol_new_target()
    assert api.http.get(f"/v1/targets/{device.target_id}").json()["agents_online"] == 1
    assert api.http.delete(f"/v1/agents/{device.agent_id}").status_code == 204
    assert device.http.post("/v1/measurement-tasks/lease", json={}).status_code == 401
    assert device.upload([device.failure({"id": "x", "fence": 1}, "too_noisy")]).status_code == 401
    assert device.http.get("/v1/models/x").status_code == 401
    assert api.http.get(f"/v1/targets/{device.target_id}").json()["agents_online"] == 0


def test_revoking_an_agent_twice_is_harmless_and_a_stranger_is_a_404(api):
    device = api.enrol()
    for _ in range(2):
        assert api.http.delete(f"/v1/agents/{device.agent_id}").status_code == 204
    assert api.http.delete("/v1/agents/agt_nobody").status_code == 404


def test_an_agent_that_was_not_heard_of_lately_is_offline(serve):
    with serve(agent_offline_seconds=1e-6) as api:
        device = api.enrol()
        assert device.lease() == []
        assert api.http.get(f"/v1/targets/{device.target_id}").json()["agents_online"] == 0
