"""Searches over HTTP, up to the moment a worker runs them."""

import json
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from predictor.kits import plan_kit
from search_core.space.presets import get_space
from service.artifacts import ArtifactStore
from service.jobs import repository as jobs
from service.machines.repository import keep_profile
from service.searches.lifecycle import end
from service.searches.models import SearchArtifact
from service.searches.repository import append_event, get_search
from service.searches.schemas import SearchCreate

JSON = {"Content-Type": "application/json"}
SUBJECTS = len(plan_kit(get_space("micro")))


def refusal(api, body: dict) -> dict:
    """The problem that answers this request for a search, which stores nothing."""
    before = api.stored()
    answers = [
        api.http.post(path, content=json.dumps(body), headers=JSON)
        for path in ("/v1/searches", "/v1/searches?dry_run=true", "/searches")
    ]
    assert api.stored() == before
    assert {answer.status_code for answer in answers} <= {422}
    assert {answer.headers["content-type"] for answer in answers} == {"application/problem+json"}
    return answers[0].json()


def wrong_fields(problem: dict) -> list[str]:
    return [error["field"] for error in problem["errors"]]


def finish(api, search: dict, status: str = "failed") -> None:
    """End a search as an attempt would."""
    _, context = api.claim(search)
    with context.transaction() as (session, job):
        end(session, get_search(session, search["id"], lock=True), status, code="tested")
        jobs.finish(session, job, "failed" if status == "failed" else "succeeded")


# -- creating --------------------------------------------------------------------------


def test_a_search_is_created_with_its_defaults(api, measured):
    body = {"target": measured.target_id, "latency_budget_ms": 0.03}
    answer = api.http.post("/v1/searches", json=body)
    assert answer.status_code == 201
    search = answer.json()
    assert answer.headers["Location"] == f"/v1/searches/{search['id']}"
    assert api.http.get(answer.headers["Location"]).json() == search
    assert search["spec"] == SearchCreate(**body).model_dump()
    assert (search["spec"]["search_space"], search["spec"]["dataset"]) == ("micro", "digits")
    assert search["status"] == "queued"
    assert search["attempts"] == []
    assert search["feasibility"]["feasible"] is True
    assert (search["result"], search["started_at"], search["finished_at"]) == (None, None, None)


def test_a_search_and_its_job_are_stored_together(api, measured):
    before = api.stored()
    api.search(measured.target_id)
    after = api.stored()
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
        "searches": 1,
        "search_targets": 1,
        "jobs": 1,
        "search_events": 1,
        "audit_entries": 1,
    }


@pytest.mark.parametrize(
    "budget", [0, -1, -0.0, float("nan"), float("inf"), float("-inf"), 1e300, None, "fast", [], {}]
)
def test_a_budget_that_is_no_latency_is_refused(api, measured, budget):
    problem = refusal(api, {"target": measured.target_id, "latency_budget_ms": budget})
    assert problem["code"] == "invalid_request"
    assert wrong_fields(problem) == ["latency_budget_ms"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target", "tgt_nobody"),
        ("target", ""),
        ("target", 7),
        ("search_space", "nowhere"),
        ("search_space", "micro@1"),
        ("search_space", "nasbench201_n9999"),
        ("dataset", "imagenet"),
        ("algorithm", "enas"),
        ("epochs", 3),
        ("epochs", 10_001),
        ("epochs", 8.5),
        ("seed", -1),
        ("seed", 2**31),
        ("random_baseline", "perhaps"),
        ("latency_budget", 1.0),
        ("budget_ms", 1.0),
    ],
)
def test_a_wrong_field_is_refused_by_name(api, measured, field, value):
    body = {"target": measured.target_id, "latency_budget_ms": 0.03, field: value}
    problem = refusal(api, body)
    assert problem["code"] == "invalid_request"
    assert wrong_fields(problem) == [field]


def test_a_space_without_a_data_set_names_those_that_have_one(api, measured):
    body = {"target": measured.target_id, "latency_budget_ms": 9.0}
    problem = refusal(api, {**body, "search_space": "proxyless_imagenet"})
    assert wrong_fields(problem) == ["dataset"]
    assert "takes 3 x 224 x 224 images of 1000 classes" in problem["detail"]
    served = problem["detail"].split("To search on it: ")[1].split(", ")
    assert {"micro", "nasbench201", "spos_cifar"} <= set(served)
    assert "spos_imagenet" not in served


def test_a_space_too_large_to_measure_is_refused(api, measured):
    body = {"target": measured.target_id, "latency_budget_ms": 9.0, "dataset": "cifar10"}
    problem = refusal(api, {**body, "search_space": "proxyless_cifar_tree"})
    assert wrong_fields(problem) == ["search_space"]
    assert "has 563 distinct blocks to measure" in problem["detail"]
    assert "at most 200" in problem["detail"]


def test_images_that_do_not_fit_the_space_are_refused(api, measured):
    body = {"target": measured.target_id, "latency_budget_ms": 9.0}
    problem = refusal(api, {**body, "search_space": "spos_imagenet", "dataset": "digits"})
    assert wrong_fields(problem) == ["dataset"]
    assert "takes 3 x 224 x 224 images of 1000 classes" in problem["detail"]
    assert "1 x 8 x 8 images of 10 classes" in problem["detail"]


@pytest.mark.parametrize("field", ["target", "latency_budget_ms"])
def test_target_and_budget_must_be_given(api, measured, field):
    body = {"target": measured.target_id, "latency_budget_ms": 0.03}
    del body[field]
    assert wrong_fields(refusal(api, body)) == [field]


def test_a_budget_no_network_meets_is_refused_with_the_fastest(api, measured):
    body = {"target": measured.target_id, "latency_budget_ms": 0.001}
    before = api.stored()
    answer = api.http.post("/v1/searches", json=body)
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["code"] == "budget_unreachable"
    assert wrong_fields(problem) == ["latency_budget_ms"]
    assert 0.001 < problem["fastest_ms"] < problem["slowest_ms"]
    assert api.stored() == before
    assert api.search(measured.target_id, problem["fastest_ms"])["status"] == "queued"


def test_the_path_without_a_prefix_answers_the_same(api, measured):
    body = {"target": measured.target_id, "latency_budget_ms": 0.03}
    created = api.http.post("/searches", json=body)
    assert created.status_code == 201
    path = f"searches/{created.json()['id']}"
    assert created.headers["Location"] == f"/v1/{path}"
    for suffix in ("", "/events", "/artifacts"):
        answers = [api.http.get(f"{prefix}{path}{suffix}") for prefix in ("/", "/v1/")]
        assert answers[0].status_code == 200
        assert answers[0].json() == answers[1].json()
    assert api.http.post(f"/{path}/cancel").json()["status"] == "cancelled"


# -- preflight -------------------------------------------------------------------------


def test_a_dry_run_tells_the_band_and_stores_nothing(api, measured):
    before = api.stored()
    body = {"target": measured.target_id, "latency_budget_ms": 0.03}
    answer = api.http.post("/v1/searches?dry_run=true", json=body)
    assert answer.status_code == 200
    found = answer.json()
    assert found["feasible"] is True
    assert found["fastest_ms"] < 0.03 < found["slowest_ms"]
    assert found["missing_measurements"] == 0
    assert api.stored() == before


def test_a_dry_run_calls_an_impossible_budget_impossible(api, measured):
    body = {"target": measured.target_id, "latency_budget_ms": 0.001}
    answer = api.http.post("/v1/searches?dry_run=true", json=body)
    assert answer.status_code == 200
    assert answer.json()["feasible"] is False


def test_a_dry_run_on_an_unmeasured_target_says_what_is_missing(api):
    device = api.enrol_new_target()
    before = api.stored()
    body = {"target": device.target_id, "latency_budget_ms": 0.03}
    found = api.http.post("/v1/searches?dry_run=true", json=body).json()
    assert found["feasible"] is None
    assert found["missing_measurements"] == SUBJECTS
    assert found["agents_online"] == 1
    assert api.stored() == before


# -- effort ----------------------------------------------------------------------------


def known_machine(api, profile, key: str = "here") -> str:
    """The id of a machine with this profile, seen last."""
    with api.database.transaction() as session:
        return keep_profile(session, key, "host", profile).id


def preflight(api, target_id: str, **spec: object) -> dict:
    body = {"target": target_id, "latency_budget_ms": 0.03, **spec}
    answer = api.http.post("/v1/searches?dry_run=true", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_without_a_machine_the_effort_is_not_known_and_the_answer_says_why(serve):
    with serve() as api:
        found = preflight(api, api.enrol_measured().target_id)
    assert found["effort"] is None
    assert found["no_effort"]["code"] == "no_machine_profile"
    assert "tailor worker" in found["no_effort"]["text"]
    assert found["feasible"] is True


def test_a_profile_of_another_version_is_as_good_as_none(serve, new_profile):
    with serve() as api:
        device = api.enrol_measured()
        with api.database.transaction() as session:
            row = keep_profile(session, "here", "host", new_profile())
            row.document = {**row.document, "format": "tailor-machine-profile/0"}
        found = preflight(api, device.target_id)
    assert (found["effort"], found["no_effort"]["code"]) == (None, "machine_profile_unreadable")


def test_a_dry_run_tells_time_hours_and_memory_and_stores_nothing(api, measured, new_profile):
    machine = known_machine(api, new_profile(threads=2))
    before = api.stored()
    found = preflight(api, measured.target_id)["effort"]
    assert api.stored() == before
    assert (found["machine"], found["threads"], found["device"]) == (machine, 2, "cpu")
    phases = found["seconds_by_phase"]
    assert {"starting", "searching", "deriving", "training", "verifying", "comparing"} == set(
        phases
    )
    assert min(phases.values()) > 0.0
    assert found["seconds"] == pytest.approx(sum(phases.values()))
    assert found["gpu_hours"] == 0.0
    assert found["core_hours"] == pytest.approx(2 * found["seconds"] / 3600)
    assert found["memory_bytes"] > new_profile().base_bytes
    assert (found["basis"], found["earlier_searches"]) == ("model", 0)


def test_effort_follows_the_spec(api, measured, new_profile):
    known_machine(api, new_profile(1e-6))

    def seconds(**spec: object) -> float:
        return preflight(api, measured.target_id, **spec)["effort"]["seconds"]

    usual = seconds()
    assert seconds(epochs=48) > usual
    assert seconds(algorithm="dsnas_paired") > usual
    assert seconds(algorithm="reinforce") > usual
    assert seconds(random_baseline=False) < usual
    assert seconds(latency_budget_ms=0.04) > usual  # a larger network


def test_an_unmeasured_target_adds_the_time_to_measure_it(api, new_profile):
    known_machine(api, new_profile())
    device = api.enrol_new_target()
    effort = preflight(api, device.target_id)["effort"]
    assert 0.0 < effort["seconds_by_phase"]["awaiting_measurements"] < 20.0 * SUBJECTS


def test_a_search_keeps_what_was_predicted_for_it(api, measured, new_profile):
    known_machine(api, new_profile())
    predicted = preflight(api, measured.target_id)["effort"]
    search = api.search(measured.target_id)
    assert search["feasibility"]["effort"] == predicted
    known_machine(api, new_profile(1e-6))
    assert api.read(search)["feasibility"]["effort"] == predicted


def test_earlier_searches_correct_the_model(serve, new_profile):
    with serve() as api:
        device = api.enrol_measured()
        known_machine(api, new_profile(1e-6))
        modelled = preflight(api, device.target_id)["effort"]["seconds_by_phase"]
        for slower in (1.2, 1.5, 100.0):
            succeed(api, device, {p: slower * seconds for p, seconds in modelled.items()})
        found = preflight(api, device.target_id)["effort"]
        assert (found["basis"], found["earlier_searches"]) == ("history", 3)
        for phase in ("searching", "deriving", "training", "verifying", "comparing"):
            assert found["seconds_by_phase"][phase] == pytest.approx(1.5 * modelled[phase])
        assert preflight(api, device.target_id, algorithm="gumbel")["effort"]["basis"] == "model"


def test_what_an_earlier_search_may_change_is_limited(serve, new_profile):
    with serve() as api:
        device = api.enrol_measured()
        known_machine(api, new_profile(1e-6))
        modelled = preflight(api, device.target_id)["effort"]["seconds_by_phase"]
        succeed(api, device, {p: 100.0 * seconds for p, seconds in modelled.items()})
        found = preflight(api, device.target_id)["effort"]["seconds_by_phase"]
        assert found["training"] == pytest.approx(4.0 * modelled["training"])


def succeed(api, device, seconds_by_phase: dict[str, float]) -> None:
    """A search that succeeded at its first attempt and took so long."""
    search = api.search(device.target_id)
    finish(api, search, "succeeded")
    with api.database.transaction() as session:
        get_search(session, search["id"], lock=True).seconds_by_phase = seconds_by_phase


# -- idempotency -----------------------------------------------------------------------


def test_the_same_key_and_body_give_the_same_search(api, measured):
    body = {"target": measured.target_id, "latency_budget_ms": 0.03}
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    first = api.http.post("/v1/searches", json=body, headers=headers).json()
    before = api.stored()
    again = api.http.post("/v1/searches", json=body | {"seed": 0}, headers=headers)
    assert again.status_code == 200
    told_by_the_clock = {"estimated_finish_at": None}
    assert again.json() | told_by_the_clock == first | told_by_the_clock
    assert api.stored() == before


def test_the_same_key_with_another_body_is_refused_and_stores_nothing(api, measured):
    body = {"target": measured.target_id, "latency_budget_ms": 0.03}
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    first = api.http.post("/v1/searches", json=body, headers=headers).json()
    before = api.stored()
    answer = api.http.post("/v1/searches", json=body | {"seed": 1}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert first["id"] in answer.json()["detail"]
    assert api.stored() == before


def test_two_owners_may_use_the_same_idempotency_key(api, measured):
    other = api.client(api.http.post("/v1/keys", json={"name": "other"}).json()["token"])
    body = {"target": measured.target_id, "latency_budget_ms": 0.03}
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    made = [client.post("/v1/searches", json=body, headers=headers) for client in (api.http, other)]
    assert [answer.status_code for answer in made] == [201, 201]
    assert made[0].json()["id"] != made[1].json()["id"]


def test_an_idempotency_key_that_is_too_long_is_refused(api, measured):
    body = {"target": measured.target_id, "latency_budget_ms": 0.03}
    headers = {"Idempotency-Key": "k" * 201}
    answer = api.http.post("/v1/searches", json=body, headers=headers)
    assert answer.status_code == 422
    assert wrong_fields(answer.json()) == ["idempotency-key"]


# -- waiting ---------------------------------------------------------------------------


def test_a_search_on_an_unmeasured_target_waits_with_a_reason_and_then_for_a_worker(serve):
    with serve() as api:
        device = api.enrol_new_target()
        search = api.search(device.target_id)
        assert search["phase"] == "awaiting_measurements"
        assert search["status_reason"]["code"] == "awaiting_measurements"
        assert f"0 of {SUBJECTS} " in search["status_reason"]["text"]
        (task,) = device.lease(1)
        device.report(device.result(task, 0.02))
        assert f"1 of {SUBJECTS} " in api.read(search)["status_reason"]["text"]

        device.answer_everything()
        assert api.read(search)["status"] == "queued"
        api.run_fit()
        ready = api.read(search)
        assert (ready["status"], ready["phase"]) == ("queued", "waiting_for_worker")
        assert ready["status_reason"]["code"] == "no_worker_online"
        assert ready["status_reason"]["position"] == 1
        claim, _ = api.claim()
        assert claim.subject_id == search["id"]


def test_a_search_nobody_measures_for_says_so(api):
    device = api.enrol_new_target()
    search = api.search(device.target_id)
    api.http.delete(f"/v1/agents/{device.agent_id}")
    reason = api.read(search)["status_reason"]
    assert reason["code"] == "no_agent_online"
    assert "tailor agent run" in reason["text"]


def test_two_searches_on_an_unmeasured_target_share_its_kit(api):
    device = api.enrol_new_target()
    api.search(device.target_id)
    before = api.stored()
    api.search(device.target_id)
    after = api.stored()
    assert (after["kits"], after["measurement_tasks"], after["files"]) == (
        before["kits"],
        before["measurement_tasks"],
        before["files"],
    )


def test_searches_fail_with_the_reason_when_no_model_can_be_fitted(serve):
    with serve() as api:
        device = api.enrol_new_target()
        search = api.search(device.target_id)
        while tasks := device.lease():
            device.report(*(device.failure(task, "unsupported") for task in tasks))
        api.run_fit()
        failed = api.read(search)
        assert failed["status"] == "failed"
        assert failed["status_reason"]["code"] == "no_latency_model"
        text = failed["status_reason"]["text"]
        assert text.startswith("the target runs no network of micro: it does not support ")


def test_the_queue_position_moves_up(api, measured):
    searches = [api.search(measured.target_id, seed=seed) for seed in range(3)]

    def position(search: dict) -> int:
        return api.read(search)["status_reason"]["position"]

    first = position(searches[0])
    assert first >= 1
    assert [position(search) for search in searches] == [first, first + 1, first + 2]
    api.http.post(f"/v1/searches/{searches[0]['id']}/cancel")
    assert position(searches[2]) == first + 1


# -- cancelling and ending -------------------------------------------------------------


def test_a_queued_search_is_cancelled_at_once(api, measured):
    search = api.search(measured.target_id)
    answer = api.http.post(f"/v1/searches/{search['id']}/cancel")
    assert answer.status_code == 200
    cancelled = answer.json()
    assert (cancelled["status"], cancelled["phase"]) == ("cancelled", "done")
    assert cancelled["status_reason"]["code"] == "user_cancelled"
    assert cancelled["finished_at"] is not None
    with api.database.reading() as session:
        assert jobs.of_subject(session, search["id"]).status == "cancelled"


def test_a_search_that_waits_for_measurements_is_cancelled_at_once(api):
    search = api.search(api.enrol_new_target().target_id)
    answer = api.http.post(f"/v1/searches/{search['id']}/cancel")
    assert answer.json()["status"] == "cancelled"


def test_a_running_search_is_asked_to_stop(api, measured):
    search = api.search(measured.target_id)
    api.claim(search)
    for status in (202, 200):  # asking twice is harmless
        answer = api.http.post(f"/v1/searches/{search['id']}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (status, "cancelling")
    statuses = [e["data"]["status"] for e in api.events(search) if e["type"] == "status"]
    assert statuses == ["queued", "cancelling"]


@pytest.mark.parametrize("status", ["succeeded", "infeasible", "failed", "cancelled"])
def test_a_search_that_has_ended_never_changes(api, measured, status):
    search = api.search(measured.target_id)
    finish(api, search, status)
    before, events = api.read(search), api.events(search)
    answer = api.http.post(f"/v1/searches/{search['id']}/cancel")
    if status == "cancelled":  # what was asked for is so
        assert (answer.status_code, answer.json()) == (200, before)
    else:
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        assert status in answer.json()["detail"]
        assert (answer.json()["current_status"], answer.json()["allowed"]) == (status, [])
    assert api.read(search) == before
    assert api.events(search) == events


def test_every_change_raises_the_version(api, measured):
    search = api.search(measured.target_id)
    api.http.post(f"/v1/searches/{search['id']}/cancel")
    assert api.read(search)["version"] > search["version"]


def test_cancelling_one_search_leaves_the_others_alone(api, measured):
    kept, dropped = api.search(measured.target_id), api.search(measured.target_id)
    api.http.post(f"/v1/searches/{dropped['id']}/cancel")
    assert api.read(kept)["status"] == "queued"


# -- events ----------------------------------------------------------------------------


def test_events_are_numbered_densely_from_one(api, measured):
    search = api.search(measured.target_id)
    for step in range(5):
        with api.database.transaction() as session:
            append_event(session, search["id"], "metrics", {"step": step})
    api.http.post(f"/v1/searches/{search['id']}/cancel")
    events = api.events(search)
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert [event["type"] for event in events] == ["status", *["metrics"] * 5, "status"]


def test_events_are_read_on_from_the_last_one_seen(api, measured):
    search = api.search(measured.target_id)
    with api.database.transaction() as session:
        for step in range(4):
            append_event(session, search["id"], "metrics", {"step": step})
    path = f"/v1/searches/{search['id']}/events"
    seen, after = [], 0
    while page := api.http.get(path, params={"after": after, "limit": 2}).json()["items"]:
        assert len(page) <= 2
        seen += page
        after = page[-1]["number"]
    assert seen == api.events(search)


def test_waiting_for_events_returns_when_one_happens(api, measured):
    search = api.search(measured.target_id)
    path = f"/v1/searches/{search['id']}/events"

    def next_event() -> list[dict]:
        return api.http.get(path, params={"after": 1, "wait": 25}).json()["items"]

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next_event)
        with api.database.transaction() as session:
            append_event(session, search["id"], "warning", {"code": "tested"})
        (event,) = waiting.result(timeout=60)
    assert (event["number"], event["type"]) == (2, "warning")


def test_waiting_for_events_of_an_ended_search_returns_at_once_with_none(api, measured):
    search = api.search(measured.target_id)
    finish(api, search)
    path = f"/v1/searches/{search['id']}/events"
    last = api.events(search)[-1]["number"]
    answer = api.http.get(path, params={"after": last, "wait": 25}, timeout=20)
    assert answer.json()["items"] == []


# -- lists -----------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 200])
def test_pages_give_every_search_once_newest_first(serve, limit):
    with serve() as api:
        device = api.enrol_new_target()
        made = [api.search(device.target_id, seed=seed)["id"] for seed in range(5)]
        seen, cursor = [], None
        while True:
            params = {"limit": limit} | ({"cursor": cursor} if cursor else {})
            page = api.http.get("/v1/searches", params=params).json()
            assert len(page["items"]) <= limit
            seen += [search["id"] for search in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == made[::-1]


def test_searches_are_listed_by_status(serve):
    with serve() as api:
        device = api.enrol_new_target()
        searches = [api.search(device.target_id, seed=seed) for seed in range(3)]
        api.http.post(f"/v1/searches/{searches[1]['id']}/cancel")

        def listed(status: str) -> list[str]:
            page = api.http.get("/v1/searches", params={"status": status}).json()
            return [search["id"] for search in page["items"]]

        assert listed("cancelled") == [searches[1]["id"]]
        assert listed("queued") == [searches[2]["id"], searches[0]["id"]]
        assert listed("running") == []


# -- results ---------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["queued", "failed"])
def test_a_search_without_a_result_has_no_architecture(api, measured, status):
    search = api.search(measured.target_id)
    if status == "failed":
        finish(api, search)
    answer = api.http.get(f"/v1/searches/{search['id']}/architecture")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert status in answer.json()["detail"]


def test_a_file_is_downloaded_with_its_hash_as_etag(api, measured):
    search = api.search(measured.target_id)
    content = b"weights of no network"
    sha256 = ArtifactStore(api.settings.resolved_artifacts_url).put(content)
    row = SearchArtifact(
        search_id=search["id"],
        name="weights.safetensors",
        sha256=sha256,
        size_bytes=len(content),
        media_type="application/octet-stream",
    )
    with api.database.transaction() as session:
        session.add(row)
    (listed,) = api.http.get(f"/v1/searches/{search['id']}/artifacts").json()["items"]
    assert (listed["sha256"], listed["size_bytes"]) == (sha256, len(content))
    answer = api.http.get(listed["url"])
    assert answer.content == content
    assert answer.headers["ETag"] == f'"{sha256}"'
    assert "weights.safetensors" in answer.headers["Content-Disposition"]


def test_a_file_a_search_does_not_have_is_a_404_that_names_those_it_has(api, measured):
    search = api.search(measured.target_id)
    answer = api.http.get(f"/v1/searches/{search['id']}/artifacts/model.onnx")
    assert answer.status_code == 404
    assert "none yet" in answer.json()["detail"]


# -- what a search can aim at ----------------------------------------------------------


def test_spaces_and_data_sets_are_listed(api):
    space = api.http.get("/v1/search-spaces/micro").json()
    assert space in api.http.get("/v1/search-spaces").json()["items"]
    assert (space["name"], space["size"], len(space["slots"])) == ("micro", 6**6, 6)
    assert "digits" in space["datasets"]
    assert api.http.get("/v1/search-spaces/spos_imagenet").json()["datasets"] == []
    assert api.http.get("/v1/search-spaces/nasbench201_n9999").status_code == 404
    assert "digits" in [data["name"] for data in api.http.get("/v1/datasets").json()["items"]]


def test_a_latency_model_is_listed_with_its_report(api, measured):
    params = {"target": measured.target_id}
    (model,) = api.http.get("/v1/latency-models", params=params).json()["items"]
    assert model == api.http.get(f"/v1/latency-models/{model['id']}").json()
    assert model["active"] is True
    assert model["report"]["measurements"] == {
        "n": SUBJECTS,
        "flagged": 0,
        "mean_contended_share": 0.0,
        "grades": {"A": SUBJECTS, "B": 0, "C": 0},
    }
    (verdict,) = model["report"]["agents"]
    assert (verdict["agent"], verdict["trusted"]) == (measured.agent_id, True)
    assert verdict["n"] == SUBJECTS
    assert model["report"]["unsupported"] == {}
    assert model["report"]["held_out"]["mape"] < 0.001
    assert model["report"]["held_out"]["n"] == len(model["report"]["held_out_networks"]) > 10
    assert model["stale"] is None
    assert model["report"]["leave_one_out"]["mape"] < 0.001
