"""The road of a search over HTTP, on every store."""

import pytest

from service.errors import LeaseLostError
from service.jobs import repository as jobs
from service.searches.lifecycle import end
from service.searches.repository import append_event, get_search
from service.workers.settling import reap


@pytest.fixture(scope="module")
def device(api_on_both):
    """An agent of a measured target."""
    return api_on_both.enrol_measured()


def test_a_measured_target_has_one_active_latency_model(api_on_both, device):
    params = {"target": device.target_id}
    (model,) = api_on_both.http.get("/v1/latency-models", params=params).json()["items"]
    assert model["active"]
    assert 0 < model["fastest_ms"] < model["slowest_ms"]


def test_measuring_again_leaves_one_active_model(api_on_both):
    device = api_on_both.enrol_measured()
    with api_on_both.database.transaction() as session:
        kit_job = jobs.enqueue(
            session, "fit_latency_model", kit_of(api_on_both, device), max_attempts=1, priority=99
        )
    api_on_both.run_fit()
    params = {"target": device.target_id}
    models = api_on_both.http.get("/v1/latency-models", params=params).json()["items"]
    assert [model["active"] for model in models] == [True, False]
    with api_on_both.database.reading() as session:
        assert session.get_one(type(kit_job), kit_job.id).status == "succeeded"


def kit_of(api, device) -> str:
    return api.http.post("/v1/kits", json={"target": device.target_id}).json()["id"]


def test_a_search_is_created_read_and_listed(api_on_both, device):
    search = api_on_both.search(device.target_id, seed=7)
    assert api_on_both.read(search) == search
    assert search in api_on_both.http.get("/v1/searches").json()["items"]
    assert [event["type"] for event in api_on_both.events(search)] == ["status"]


def test_an_idempotency_key_creates_one_search(api_on_both, device):
    body = {"target": device.target_id, "latency_budget_ms": 0.0301}
    answers = [
        api_on_both.http.post("/v1/searches", json=body | more, headers={"Idempotency-Key": "k"})
        for more in ({}, {}, {"seed": 1})
    ]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert [answer.status_code for answer in answers] == [201, 200, 422]
    assert answers[2].json()["code"] == "idempotency_key_reused"


def test_a_search_waits_for_its_target_to_be_measured(api_on_both):
    device = api_on_both.enrol_new_target()
    search = api_on_both.search(device.target_id)
    assert search["status_reason"]["code"] == "awaiting_measurements"
    device.answer_everything()
    api_on_both.run_fit()
    assert api_on_both.read(search)["phase"] == "waiting_for_worker"
    claim, _ = api_on_both.claim(search)
    assert claim.attempt == 1


def test_a_search_goes_from_worker_to_worker_and_ends_once(api_on_both, device):
    search = api_on_both.search(device.target_id)
    _, zombie = api_on_both.claim(search, lease_seconds=-1.0)
    assert reap(api_on_both.database) == 1
    with api_on_both.database.transaction() as session:
        job = jobs.of_subject(session, search["id"])
        job.available_at = job.created_at
    _, context = api_on_both.claim(search)
    with pytest.raises(LeaseLostError), zombie.transaction() as (session, job):
        jobs.finish(session, job, "failed")
    with context.transaction() as (session, job):
        end(session, get_search(session, search["id"], lock=True), "failed", code="tested")
        jobs.finish(session, job, "failed", "tested")
    ended = api_on_both.read(search)
    assert (ended["status"], ended["status_reason"]["code"]) == ("failed", "tested")
    assert [attempt["outcome"] for attempt in ended["attempts"]] == ["worker_lost", "failed"]
    cancel = api_on_both.http.post(f"/v1/searches/{search['id']}/cancel")
    assert cancel.status_code == 409
    assert api_on_both.read(search) == ended


def test_events_are_numbered_densely(api_on_both, device):
    search = api_on_both.search(device.target_id)
    for step in range(3):
        with api_on_both.database.transaction() as session:
            append_event(session, search["id"], "metrics", {"step": step, "loss": 0.1 + step})
    events = api_on_both.events(search)
    assert [event["number"] for event in events] == [1, 2, 3, 4]
    assert events[1]["data"] == {"step": 0, "loss": 0.1}


def test_uploads_are_idempotent_and_fenced(api_on_both):
    device = api_on_both.enrol_with_kit()
    task = device.lease_one()
    first = device.upload([device.result(task)], "b" * 32)
    again = device.upload([device.result(task)], "b" * 32)
    assert first.json() == again.json()
    assert first.json()["items"][0]["accepted"]
    (late,) = device.report(device.result(task))
    assert late["reason"] == "stale_lease"
    (stranger,) = device.report(device.result({**task, "id": "mtk_nobody"}))
    assert stranger["reason"] == "unknown_task"
    params = {"target": device.target_id}
    assert len(api_on_both.http.get("/v1/measurements", params=params).json()["items"]) == 1


def test_a_wrong_request_stores_nothing(api_on_both, device):
    before = api_on_both.stored()
    bodies = [
        {"target": "tgt_nobody", "latency_budget_ms": 0.03},
        {"target": device.target_id, "latency_budget_ms": 0.0001},
        {"target": device.target_id, "latency_budget_ms": -1},
    ]
    for body in bodies:
        assert api_on_both.http.post("/v1/searches", json=body).status_code == 422
    assert device.upload([]).status_code == 422
    enrolment = {"code": "x", "name": "x", "agent_version": "1", "profiles": []}
    assert api_on_both.client().post("/v1/agents", json=enrolment).status_code == 422
    assert api_on_both.stored() == before


def test_a_used_code_makes_no_second_agent(api_on_both):
    made = api_on_both.http.get("/v1/agents").json()["items"]
    target = api_on_both.http.get("/v1/targets").json()["items"][0]
    code = api_on_both.code()
    body = {"code": code, "name": "x", "agent_version": "1", "profiles": [target["profile"]]}
    answers = [api_on_both.client().post("/v1/agents", json=body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 401]
    assert len(api_on_both.http.get("/v1/agents").json()["items"]) == len(made) + 1
