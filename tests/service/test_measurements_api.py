"""Kits, leases, model files and uploads over HTTP."""

import hashlib
import json
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from predictor.kits import plan_kit
from search_core.space.presets import get_space
from service.jobs import repository as jobs
from service.measurements.intake import NOISY_TRIES
from service.measurements.models import MeasurementTask

JSON = {"Content-Type": "application/json"}
SUBJECTS = [item.subject for item in plan_kit(get_space("micro"))]


@pytest.fixture(scope="module")
def shared(api):
    """An agent of a target whose kit waits; tests take tasks of it and leave the rest."""
    return api.enrol_with_kit()


@pytest.fixture
def device(api):
    """An agent of a new target whose kit waits."""
    return api.enrol_with_kit()


def expire_leases(api, device) -> None:
    """Make every lease of the device's target run out."""
    with api.database.transaction() as session:
        tasks = session.query(MeasurementTask).filter_by(
            target_id=device.target_id, status="leased"
        )
        for task in tasks:
            task.lease_expires_at = task.created_at


# -- kits ------------------------------------------------------------------------------


def test_a_kit_has_every_subject_of_its_space(api, device):
    tasks = device.lease()
    tasks += device.lease()
    assert sorted(task["subject"] for task in tasks) == sorted(SUBJECTS)
    assert {task["effort"] for task in tasks} == {"table"}


def test_asking_for_a_kit_again_returns_the_kit_there_is(api, device):
    before = api.stored()
    kits = [api.http.post("/v1/kits", json={"target": device.target_id}).json() for _ in range(2)]
    assert kits[0] == kits[1]
    assert api.stored() == before


def test_a_kit_tells_how_far_it_is(api, device):
    kit = api.http.post("/v1/kits", json={"target": device.target_id}).json()

    def progress() -> tuple[str, int, int, int]:
        now = api.http.get(f"/v1/kits/{kit['id']}").json()
        return now["status"], now["completed"], now["failed"], now["total"]

    total = len(SUBJECTS)
    assert progress() == ("measuring", 0, 0, total)
    good, bad = device.lease(2)
    device.report(device.result(good), device.failure(bad, "unsupported"))
    assert progress() == ("measuring", 1, 1, total)
    device.answer_everything()
    assert progress() == ("incomplete", total - 1, 1, total)


def test_the_fit_is_queued_once_when_the_last_subject_is_measured(api, device):
    kit = api.http.post("/v1/kits", json={"target": device.target_id}).json()
    before = api.stored()["jobs"]
    tasks = device.lease() + device.lease()
    device.report(*(device.result(task) for task in tasks[1:]))
    assert api.stored()["jobs"] == before
    device.report(device.result(tasks[0]))
    assert api.stored()["jobs"] == before + 1
    device.report(device.result(tasks[0]))  # late and refused
    assert api.stored()["jobs"] == before + 1
    with api.database.reading() as session:
        job = jobs.of_subject(session, kit["id"])
    assert (job.kind, job.status) == ("fit_latency_model", "queued")


# -- leases ----------------------------------------------------------------------------


def test_a_lease_gives_at_most_what_was_asked_for(api, shared):
    assert len(shared.lease(3)) == 3
    assert len(shared.lease(1)) == 1


def test_two_agents_of_a_target_never_hold_the_same_task(api):
    first = api.enrol(device_model="shared by two")
    second = api.enrol(device_model="shared by two")
    assert api.http.post("/v1/kits", json={"target": first.target_id}).status_code == 201
    held = [task["id"] for device in (first, second) for task in device.lease(40)]
    assert len(held) == len(set(held)) == len(SUBJECTS)


def test_an_expired_lease_is_given_anew_with_a_larger_fence(api, device):
    first = {task["id"]: task["fence"] for task in device.lease(2)}
    assert set(first) & {task["id"] for task in device.lease(2)} == set()
    expire_leases(api, device)
    again = {task["id"]: task["fence"] for task in device.lease()}
    assert {task_id: again[task_id] - first[task_id] for task_id in first} == dict.fromkeys(
        first, 1
    )


def test_a_target_without_work_leases_nothing(api):
    assert api.enrol_new_target().lease() == []


def test_waiting_for_work_returns_when_there_is_some(api):
    device = api.enrol_new_target()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(device.lease, 1, 25.0)
        api.http.post("/v1/kits", json={"target": device.target_id})
        assert len(waiting.result(timeout=60)) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"limit": 0}', "limit"),
        ('{"limit": 65}', "limit"),
        ('{"wait_seconds": -1}', "wait_seconds"),
        ('{"wait_seconds": 26}', "wait_seconds"),
        ('{"wait_seconds": NaN}', "wait_seconds"),
        ('{"target": "another"}', "target"),
    ],
)
def test_a_wrong_lease_request_names_the_field_and_leases_nothing(shared, body, field):
    answer = shared.http.post("/v1/measurement-tasks/lease", content=body, headers=JSON)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]


# -- model files -----------------------------------------------------------------------


def test_a_leased_model_and_its_anchor_can_be_downloaded_with_their_hashes(shared):
    task = shared.lease_one()
    for sha256 in (task["model_sha256"], task["anchor_sha256"]):
        answer = shared.http.get(f"/v1/models/{sha256}")
        assert answer.status_code == 200
        assert hashlib.sha256(answer.content).hexdigest() == sha256


def test_a_model_of_another_target_is_a_404(api, shared):
    task = shared.lease_one()
    stranger = api.enrol_new_target()
    answer = stranger.http.get(f"/v1/models/{task['model_sha256']}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("sha256", ["0" * 64, "..", "%2e%2e%2ftailor.db", "x" * 500])
def test_a_file_that_was_never_announced_is_a_404(shared, sha256):
    assert shared.http.get(f"/v1/models/{sha256}").status_code == 404


# -- uploads ---------------------------------------------------------------------------


def test_an_uploaded_measurement_is_stored_as_it_was_sent(api, shared):
    task = shared.lease_one()
    item = shared.result(task, 0.5, note="quiet", facts={"load_1min": 0.5, "governor": None})
    assert shared.report(item) == [{"task_id": task["id"], "accepted": True, "reason": None}]
    params = {"target": shared.target_id, "limit": 1}
    (stored,) = api.http.get("/v1/measurements", params=params).json()["items"]
    assert {name: stored[name] for name in item["measurement"]} == item["measurement"]
    assert stored["subject"] == task["subject"]
    assert stored["model_sha256"] == task["model_sha256"]
    assert stored["agent_id"] == shared.agent_id


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"latency_ms": NAN}, "latency_ms"),
        ({"latency_ms": INFINITY}, "latency_ms"),
        ({"latency_ms": -INFINITY}, "latency_ms"),
        ({"latency_ms": -1.0}, "latency_ms"),
        ({"latency_ms": 0.0}, "latency_ms"),
        ({"latency_ms": 1e9}, "latency_ms"),
        ({"latency_ms": None}, "latency_ms"),
        ({"latency_ms": "quick"}, "latency_ms"),
        ({"p10_ms": NAN}, "p10_ms"),
        ({"p10_ms": -1.0}, "p10_ms"),
        ({"p90_ms": INFINITY}, "p90_ms"),
        ({"p10_ms": 1.1}, ""),  # above the median
        ({"p90_ms": 0.9}, ""),  # below the median
        ({"n": 9}, "n"),
        ({"n": 100.5}, "n"),
        ({"n": 10**10}, "n"),
        ({"thread_cpu_ms": -0.1}, "thread_cpu_ms"),
        ({"thread_cpu_ms": NAN}, "thread_cpu_ms"),
        ({"contended_share": 1.1}, "contended_share"),
        ({"contended_share": -0.1}, "contended_share"),
        ({"anchor_ms": 0.0}, "anchor_ms"),
        ({"flagged": "perhaps"}, "flagged"),
        ({"note": "x" * 501}, "note"),
        ({"protocol_version": 2}, "protocol_version"),
        ({"facts": []}, "facts"),
        ({"facts": {str(n): n for n in range(33)}}, "facts"),
        ({"latency": 1.0}, "latency"),
        ({"latency_us": 1000.0}, "latency_us"),
    ],
)
def test_a_wrong_measurement_names_item_and_field_and_stores_nothing(api, shared, changes, wrong):
    good, bad = shared.lease(2)
    before = api.stored()
    items = [shared.result(good), shared.result(bad)]
    items[1]["measurement"].update(changes)
    body = json.dumps({"batch_id": uuid.uuid4().hex, "items": items})
    answer = shared.http.post("/v1/measurements", content=body, headers=JSON)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    place = "items.1.measurement" + (f".{wrong}" if wrong else "")
    assert [error["field"] for error in answer.json()["errors"]] == [place]
    assert place in answer.json()["detail"]
    assert api.stored() == before
    expire_leases(api, shared)


def test_a_fact_that_is_no_number_is_refused(api, shared):
    task = shared.lease_one()
    before = api.stored()
    items = [shared.result(task, facts={"clock_mhz": NAN})]
    body = json.dumps({"batch_id": uuid.uuid4().hex, "items": items})
    answer = shared.http.post("/v1/measurements", content=body, headers=JSON)
    assert answer.status_code == 422
    assert "items.0.measurement.facts.clock_mhz" in answer.json()["detail"]
    assert api.stored() == before


@pytest.mark.parametrize(
    "missing",
    ["latency_ms", "p10_ms", "p90_ms", "n", "thread_cpu_ms", "anchor_ms", "protocol_version"],
)
def test_every_part_of_a_measurement_must_be_given(api, shared, missing):
    item = shared.result(shared.lease_one())
    del item["measurement"][missing]
    before = api.stored()
    answer = shared.upload([item])
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [
        f"items.0.measurement.{missing}"
    ]
    assert api.stored() == before


@pytest.mark.parametrize("parts", [(), ("measurement", "failure")])
def test_a_result_is_either_a_measurement_or_a_failure(api, shared, parts):
    task = shared.lease_one()
    both = shared.result(task) | shared.failure(task, "too_noisy")
    item = {name: both[name] for name in ("task_id", "fence", *parts)}
    before = api.stored()
    answer = shared.upload([item])
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == ["items.0"]
    assert api.stored() == before


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"batch_id": "short"}, "batch_id"),
        ({"batch_id": "x" * 65}, "batch_id"),
        ({"batch_id": "not allowed!"}, "batch_id"),
        ({"items": []}, "items"),
        ({"items": {}}, "items"),
        ({"agent": "agt_somebody"}, "agent"),
    ],
)
def test_a_wrong_batch_names_the_field_and_stores_nothing(api, shared, changes, field):
    item = shared.result(shared.lease_one())
    before = api.stored()
    body = {"batch_id": uuid.uuid4().hex, "items": [item]} | changes
    answer = shared.http.post("/v1/measurements", json=body)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert api.stored() == before


def test_a_task_of_another_target_is_unknown(api, shared):
    task = shared.lease_one()
    before = api.stored()
    stranger = api.enrol_new_target()
    report = stranger.report(stranger.result(task), stranger.result({"id": "mtk_x", "fence": 1}))
    assert [(item["accepted"], item["reason"]) for item in report] == [(False, "unknown_task")] * 2
    assert api.stored()["measurements"] == before["measurements"]


def test_a_task_another_agent_of_the_target_holds_is_refused(api):
    first, second = (api.enrol(device_model="held by one") for _ in range(2))
    api.http.post("/v1/kits", json={"target": first.target_id})
    task = first.lease_one()
    (report,) = second.report(second.result(task))
    assert (report["accepted"], report["reason"]) == (False, "stale_lease")
    assert first.report(first.result(task))[0]["accepted"]


def test_a_result_with_an_old_fence_is_stale(api, device):
    old = device.lease_one()
    expire_leases(api, device)
    new = next(task for task in device.lease() if task["id"] == old["id"])
    (late,) = device.report(device.result(old, 1.0))
    assert (late["accepted"], late["reason"]) == (False, "stale_lease")
    assert device.report(device.result(new, 2.0))[0]["accepted"]
    params = {"target": device.target_id}
    (stored,) = api.http.get("/v1/measurements", params=params).json()["items"]
    assert stored["latency_ms"] == 2.0


def test_a_task_is_measured_once(api, shared):
    task = shared.lease_one()
    assert shared.report(shared.result(task))[0]["accepted"]
    before = api.stored()["measurements"]
    (again,) = shared.report(shared.result(task))
    assert (again["accepted"], again["reason"]) == (False, "stale_lease")
    (twice,) = shared.report(shared.failure(task, "unsupported"))
    assert twice["reason"] == "stale_lease"
    assert api.stored()["measurements"] == before


def test_the_same_task_twice_in_a_batch_is_taken_once(api, shared):
    task = shared.lease_one()
    report = shared.report(shared.result(task), shared.result(task))
    assert [item["reason"] for item in report] == [None, "stale_lease"]


def test_a_batch_uploaded_twice_is_stored_once_and_told_the_same(api, shared):
    task = shared.lease_one()
    items, batch_id = [shared.result(task), shared.result({"id": "x", "fence": 1})], "b" * 32
    first = shared.upload(items, batch_id)
    before = api.stored()
    again = shared.upload(items, batch_id)
    assert first.status_code == again.status_code == 200
    assert again.json() == first.json()
    assert [item["accepted"] for item in again.json()["items"]] == [True, False]
    assert api.stored() == before


def test_two_agents_may_use_the_same_batch_id(api):
    devices = [api.enrol_with_kit() for _ in range(2)]
    for device in devices:
        answer = device.upload([device.result(device.lease_one())], "c" * 32)
        assert answer.json()["items"][0]["accepted"]


def test_good_items_of_a_batch_are_stored_beside_refused_ones(api, shared):
    good, stale = shared.lease(2)
    report = shared.report(
        shared.result(stale | {"fence": stale["fence"] + 1}), shared.result(good)
    )
    assert [item["accepted"] for item in report] == [False, True]


def test_a_noisy_device_is_given_the_task_again_until_its_tries_are_used_up(api, device):
    first = device.lease_one()
    rest = [task["id"] for task in device.lease() + device.lease()]
    for _ in range(NOISY_TRIES - 1):
        device.report(device.failure(first, "too_noisy"))
        (again,) = device.lease()
        assert again["id"] == first["id"]
        first = again
    assert first["id"] not in rest
    device.report(device.failure(first, "too_noisy"))
    assert device.lease() == []


def test_an_unsupported_model_is_not_tried_again(device):
    task = device.lease_one()
    device.report(device.failure(task, "unsupported"))
    tasks = device.lease() + device.lease()
    assert task["id"] not in [other["id"] for other in tasks]


def test_measurements_are_paged_newest_first(api, device):
    for task in device.lease(5):
        device.report(device.result(task))
    seen, cursor = [], None
    while True:
        params = {"target": device.target_id, "limit": 2} | ({"cursor": cursor} if cursor else {})
        page = api.http.get("/v1/measurements", params=params).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 5
    assert seen == sorted(seen, reverse=True)
