"""Kits, leases, model files and uploads over HTTP."""

import hashlib
import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone

import pytest

from predictor.kits import plan_kit
from predictor.measurements import Measurement
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


def take(api, device, n: int) -> list[dict]:
    """As many tasks of a kit; it is measured again when it runs out."""
    tasks = device.lease(n)
    if len(tasks) < n:
        api.ask_for_kit(device, again=True)
        tasks += device.lease(n - len(tasks))
    assert len(tasks) == n
    return tasks


# -- kits ------------------------------------------------------------------------------


def test_a_kit_has_every_subject_of_its_space(api, device):
    tasks = device.lease_all()
    assert sorted(task["subject"] for task in tasks) == sorted(SUBJECTS)
    assert {task["effort"] for task in tasks} == {"table"}


def test_asking_for_a_kit_again_returns_the_kit_there_is(api, device):
    before = api.stored()
    kits = [api.http.post("/v1/kits", json={"target": device.target_id}).json() for _ in range(2)]
    assert kits[0] == kits[1]
    assert api.stored() | {"audit_entries": 0} == before | {"audit_entries": 0}


def test_a_kit_tells_how_far_it_is(api, device):
    kit = api.http.post("/v1/kits", json={"target": device.target_id}).json()

    def progress() -> tuple[str, int, int, int, int]:
        now = api.http.get(f"/v1/kits/{kit['id']}").json()
        return now["status"], now["completed"], now["failed"], now["flagged"], now["total"]

    total = len(SUBJECTS)
    assert progress() == ("measuring", 0, 0, 0, total)
    good, bad, doubtful = device.lease(3)
    device.report(device.result(good), device.failure(bad, "unsupported"))
    assert progress() == ("measuring", 1, 1, 0, total)
    device.report(device.result(doubtful, flagged=True, note="too noisy"))
    assert progress() == ("measuring", 2, 1, 1, total)
    device.answer_everything()
    assert progress() == ("incomplete", total - 1, 1, 1, total)


def test_the_fit_is_queued_once_when_the_last_subject_is_measured(api, device):
    kit = api.http.post("/v1/kits", json={"target": device.target_id}).json()
    before = api.stored()["jobs"]
    tasks = device.lease_all()
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
    held: list[str] = []
    while tasks := first.lease(20) + second.lease(20):
        held += [task["id"] for task in tasks]
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


def test_a_leased_model_and_its_anchor_can_be_downloaded_with_their_hashes(api, shared):
    (task,) = take(api, shared, 1)
    for sha256 in (task["model_sha256"], task["anchor_sha256"]):
        answer = shared.http.get(f"/v1/models/{sha256}")
        assert answer.status_code == 200
        assert hashlib.sha256(answer.content).hexdigest() == sha256


def test_a_model_of_another_target_is_a_404(api, shared):
    (task,) = take(api, shared, 1)
    stranger = api.enrol_new_target()
    answer = stranger.http.get(f"/v1/models/{task['model_sha256']}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("sha256", ["0" * 64, "..", "%2e%2e%2ftailor.db", "x" * 500])
def test_a_file_that_was_never_announced_is_a_404(shared, sha256):
    assert shared.http.get(f"/v1/models/{sha256}").status_code == 404


# -- uploads ---------------------------------------------------------------------------


def stored_of(api, device) -> list[dict]:
    """What is stored of a device's target, newest first."""
    params = {"target": device.target_id, "limit": 200}
    return api.http.get("/v1/measurements", params=params).json()["items"]


def test_an_uploaded_measurement_is_stored_as_it_was_sent(api, shared):
    (task,) = take(api, shared, 1)
    quarantined = [{"latency_ms": 0.7, "reason": "drift"}, {"latency_ms": None, "reason": "busy"}]
    item = shared.result(
        task,
        0.5,
        sigma_ms=0.01,
        thread_cpu_ms=None,
        grade="B",
        note="quiet",
        quarantined=quarantined,
        facts={"load_1min": 0.5, "governor": None, "n": 3, "turbo": True, "name": "x"},
    )
    assert shared.report(item) == [{"task_id": task["id"], "accepted": True, "reason": None}]
    stored = stored_of(api, shared)[0]
    sent = dict(item["measurement"])
    assert sent.pop("unit") == "ms"  # of every stored latency
    moment = sent.pop("measured_at")
    assert datetime.fromisoformat(stored["measured_at"]) == datetime.fromisoformat(moment)
    assert {name: stored[name] for name in sent} == sent
    assert stored["subject"] == task["subject"]
    assert stored["model_sha256"] == task["model_sha256"]
    assert stored["agent_id"] == shared.agent_id


NAN, INFINITY = float("nan"), float("inf")


def told(reason: str | None) -> str:
    """What a refusal names: ``invalid`` and the field, or its code."""
    assert reason is not None
    first, _, rest = reason.partition(": ")
    return rest.split(": ")[0] if first == "invalid" and ": " in rest else first


def upload_of(device, items: list[dict]) -> list[dict]:
    """The reports on items that `json` can write and that no parser need accept."""
    body = json.dumps({"batch_id": uuid.uuid4().hex, "items": items})
    answer = device.http.post("/v1/measurements", content=body, headers=JSON)
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


def refusal_of(api, device, bad: dict) -> str:
    """Why an item is refused, between two good ones that are stored all the same."""
    before = api.stored()["measurements"]
    first, last = map(device.result, take(api, device, 2))
    reports = upload_of(device, [first, bad, last])
    assert [report["accepted"] for report in reports] == [True, False, True]
    assert [report["reason"] for report in reports[::2]] == [None, None]
    assert api.stored()["measurements"] == before + 2
    return reports[1]["reason"]


@pytest.fixture
def ready(api, shared):
    """An agent that holds a task: the device and the task's good result."""
    (task,) = take(api, shared, 1)
    return shared, shared.result(task)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"latency_ms": NAN}, "latency_ms"),
        ({"latency_ms": INFINITY}, "latency_ms"),
        ({"latency_ms": -INFINITY}, "latency_ms"),
        ({"latency_ms": -1.0}, "latency_ms"),
        ({"latency_ms": 0.0}, "latency_ms"),
        ({"latency_ms": 1e-7}, "latency_ms"),
        ({"latency_ms": 1e9}, "latency_ms"),
        ({"latency_ms": None}, "latency_ms"),
        ({"latency_ms": "quick"}, "latency_ms"),
        ({"latency_ms": "1.0"}, "latency_ms"),
        ({"p10_ms": NAN}, "p10_ms"),
        ({"p10_ms": -1.0}, "p10_ms"),
        ({"p90_ms": INFINITY}, "p90_ms"),
        ({"p10_ms": 1.1}, ""),  # above the median
        ({"p90_ms": 0.9}, ""),  # below the median
        ({"sigma_ms": -1e-9}, "sigma_ms"),
        ({"sigma_ms": NAN}, "sigma_ms"),
        ({"n": 9}, "n"),
        ({"n": 100.5}, "n"),
        ({"n": 10**10}, "n"),
        ({"thread_cpu_ms": -0.1}, "thread_cpu_ms"),
        ({"thread_cpu_ms": NAN}, "thread_cpu_ms"),
        ({"contended_share": 1.1}, "contended_share"),
        ({"contended_share": -0.1}, "contended_share"),
        ({"anchor_ms": 0.0}, "anchor_ms"),
        ({"provider": ""}, "provider"),
        ({"measured_at": "yesterday"}, "measured_at"),
        ({"measured_at": "2026-01-02T03:04:05"}, "measured_at"),  # no zone
        ({"grade": "D"}, "grade"),
        ({"grade": "C"}, ""),  # and yet not flagged
        ({"flagged": True}, ""),  # and yet of grade A
        ({"flagged": "perhaps"}, "flagged"),
        ({"note": "x" * 501}, "note"),
        ({"quarantined": [{"latency_ms": -1.0, "reason": ""}]}, "quarantined.0.latency_ms"),
        ({"quarantined": [{"latency_ms": None, "reason": ""}] * 17}, "quarantined"),
        ({"protocol_version": 1}, "protocol_version"),
        ({"protocol_version": 3}, "protocol_version"),
        ({"unit": "us"}, "unit"),
        ({"unit": "s"}, "unit"),
        ({"unit": None}, "unit"),
        ({"facts": []}, "facts"),
        ({"facts": {"a": [1]}}, "facts.a"),
        ({"facts": {str(n): n for n in range(33)}}, "facts"),
        ({"facts": {"clock_mhz": NAN}}, "facts.clock_mhz"),
        ({"latency": 1.0}, "latency"),
        ({"latency_us": 1000.0}, "latency_us"),
    ],
)
def test_a_wrong_measurement_is_refused_by_field_and_takes_no_other_with_it(
    api, ready, changes, wrong
):
    device, item = ready
    item["measurement"].update(changes)
    place = "measurement" + (f".{wrong}" if wrong else "")
    reason = refusal_of(api, device, item)
    assert told(reason) == place or told(reason).startswith(f"{place}.")


@pytest.mark.parametrize("missing", [field.name for field in fields(Measurement)])
def test_every_part_of_a_measurement_must_be_given(api, ready, missing):
    device, item = ready
    del item["measurement"][missing]
    assert told(refusal_of(api, device, item)) == f"measurement.{missing}"


@pytest.mark.parametrize("missing", ["task_id", "fence", "model_sha256"])
def test_a_result_names_its_task_its_lease_and_its_file(api, ready, missing):
    device, item = ready
    del item[missing]
    assert told(refusal_of(api, device, item)) == missing


@pytest.mark.parametrize("parts", [(), ("measurement", "failure")])
def test_a_result_is_either_a_measurement_or_a_failure(api, shared, parts):
    (task,) = take(api, shared, 1)
    both = shared.result(task) | shared.failure(task, "too_noisy")
    item = {name: both[name] for name in ("task_id", "fence", "model_sha256", *parts)}
    assert "either measurement or failure" in refusal_of(api, shared, item)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"code": "broken"}, "code"),
        ({"reason": "bored"}, "reason"),
        ({"reason": None}, "reason"),
        ({"detail": "x" * 501}, "detail"),
        ({"why": "x"}, "why"),
    ],
)
def test_a_wrong_failure_is_refused_by_field(api, shared, changes, field):
    (task,) = take(api, shared, 1)
    item = shared.failure(task, "unsupported")
    item["failure"].update(changes)
    assert told(refusal_of(api, shared, item)) == f"failure.{field}"


@pytest.mark.parametrize("item", [{}, {"task_id": 7}, {"a": {"b": [None]}}])
def test_an_item_that_is_no_result_is_refused_alone(api, shared, item):
    assert refusal_of(api, shared, item).startswith("invalid: ")


@pytest.mark.parametrize(
    ("away", "reason"),
    [
        (timedelta(hours=1), "clock_in_future"),
        (timedelta(minutes=6), "clock_in_future"),
        (timedelta(minutes=4), None),
        (timedelta(days=-400), None),
    ],
)
def test_a_clock_that_runs_ahead_is_told_so(api, ready, away, reason):
    device, item = ready
    item["measurement"]["measured_at"] = (datetime.now(UTC) + away).isoformat()
    (report,) = device.report(item)
    assert report["accepted"] == (reason is None)
    if reason is not None:
        assert told(report["reason"]) == reason
        assert "set the device's clock" in report["reason"]


def test_a_measurement_of_another_zone_is_the_same_moment(api, ready):
    device, item = ready
    moment = datetime.now(UTC).replace(microsecond=1)
    item["measurement"]["measured_at"] = moment.astimezone(timezone(timedelta(hours=9))).isoformat()
    assert device.report(item)[0]["accepted"]
    stored = stored_of(api, device)[0]
    assert datetime.fromisoformat(stored["measured_at"]) == moment


def test_a_measurement_of_another_file_than_the_tasks_is_refused(api, device):
    held, other = device.lease(2)
    item = {**device.result(held), "model_sha256": other["model_sha256"]}
    assert told(refusal_of(api, device, item)) == "hash_mismatch"
    assert device.report(device.result(held))[0]["accepted"]  # the task is as it was


def test_a_refused_item_may_be_sent_again_when_it_is_mended(api, ready):
    device, item = ready
    wrong = {**item, "measurement": {**item["measurement"], "unit": "s"}}
    assert not device.report(wrong)[0]["accepted"]
    assert device.report(item)[0]["accepted"]


def test_every_reason_why_an_item_is_refused_may_meet_in_one_batch(api, device):
    late, mixed_up, doubled, good, *_ = tasks = [device.result(t) for t in device.lease(6)]
    device.report(late)
    stranger = api.enrol_with_kit()
    bad = {**tasks[4], "fence": 0}
    items = [
        late,
        {**mixed_up, "model_sha256": "0" * 64},
        doubled,
        doubled,
        stranger.result(stranger.lease_one()),
        {**good, "task_id": "mtk_nobody"},
        bad,
        good,
    ]
    reports = device.report(*items)
    assert [told(r["reason"]) if r["reason"] else None for r in reports] == [
        "stale_lease",
        "hash_mismatch",
        None,
        "stale_lease",
        "unknown_task",
        "unknown_task",
        "fence",
        None,
    ]
    assert [report["task_id"] for report in reports] == [item["task_id"] for item in items]
    agent = api.http.get(f"/v1/agents/{device.agent_id}").json()
    assert (agent["accepted"], agent["rejected"]) == (3, 6)


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
    item = shared.result(*take(api, shared, 1))
    before = api.stored()
    body = {"batch_id": uuid.uuid4().hex, "items": [item]} | changes
    answer = shared.http.post("/v1/measurements", json=body)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert api.stored() == before


def test_a_task_of_another_target_is_unknown(api, shared):
    (task,) = take(api, shared, 1)
    before = api.stored()
    stranger = api.enrol_new_target()
    nobodys = {**task, "id": "mtk_x"}
    report = stranger.report(stranger.result(task), stranger.result(nobodys))
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
    (task,) = take(api, shared, 1)
    assert shared.report(shared.result(task))[0]["accepted"]
    before = api.stored()["measurements"]
    (again,) = shared.report(shared.result(task))
    assert (again["accepted"], again["reason"]) == (False, "stale_lease")
    (twice,) = shared.report(shared.failure(task, "unsupported"))
    assert twice["reason"] == "stale_lease"
    assert api.stored()["measurements"] == before


def test_the_same_task_twice_in_a_batch_is_taken_once(api, shared):
    (task,) = take(api, shared, 1)
    report = shared.report(shared.result(task), shared.result(task))
    assert [item["reason"] for item in report] == [None, "stale_lease"]


def test_a_batch_uploaded_twice_is_stored_once_and_told_the_same(api, shared):
    (task,) = take(api, shared, 1)
    items, batch_id = [shared.result(task), shared.result({**task, "id": "x"})], "b" * 32
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
    good, stale = take(api, shared, 2)
    report = shared.report(
        shared.result(stale | {"fence": stale["fence"] + 1}), shared.result(good)
    )
    assert [item["accepted"] for item in report] == [False, True]


def test_a_noisy_device_is_given_the_task_again_until_its_tries_are_used_up(api, device):
    first = device.lease_one()
    rest = [task["id"] for task in device.lease_all()]
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
    tasks = device.lease_all()
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
