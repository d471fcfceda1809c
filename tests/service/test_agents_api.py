"""Enrolment and agents over HTTP."""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import httpx
import onnx
import pytest

from service.agents.models import Agent
from service.agents.versions import OLDEST_AGENT, is_outdated
from service.measurements.models import MeasurementTask

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
    "clock_state": "governor performance",
}


def enrolment(code: str, *profiles: dict, **changes: object) -> dict:
    body = {
        "code": code,
        "name": "kitchen pi",
        "agent_version": "0.1.0",
        "profiles": list(profiles) or [PROFILE],
    }
    return {**body, **changes}


def new_profile(**changes: object) -> dict:
    """The profile of a target that nobody has."""
    return {**PROFILE, "device_model": f"pi {uuid.uuid4().hex[:8]}", **changes}


def test_a_code_makes_an_agent_and_its_target(api):
    answer = api.client().post("/v1/agents", json=enrolment(api.code()))
    assert answer.status_code == 201
    agent = answer.json()
    assert agent["token"].startswith("tla_")
    assert (agent["name"], agent["version"]) == ("kitchen pi", "0.1.0")
    (target_id,) = agent["target_ids"]
    assert agent["heartbeat_seconds"] == api.settings.heartbeat_seconds
    target = api.http.get(f"/v1/targets/{target_id}").json()
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
    answer = api.client().post("/v1/agents", json=enrolment(code, new_profile()))
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
        ("clock_state", ""),
        ("color", "red"),
    ],
)
def test_a_wrong_profile_names_the_field_and_leaves_the_code_unused(api, field, value):
    code = api.code()
    before = api.stored()
    body = enrolment(code, PROFILE, {**PROFILE, field: value})
    answer = api.client().post("/v1/agents", json=body)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [f"profiles.1.{field}"]
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
    task = {"id": "x", "fence": 1, "model_sha256": "0" * 64}
    assert device.upload([device.failure(task, "too_noisy")]).status_code == 401
    assert device.http.get("/v1/models/x").status_code == 401
    assert device.http.get("/v1/agents/self").status_code == 401
    beat = device.http.post("/v1/agents/self/heartbeat", json={"agent_version": "1"})
    assert beat.status_code == 401
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


# -- several targets -------------------------------------------------------------------


def enrol(api, *profiles: dict, **changes: object) -> tuple[dict, httpx.Client]:
    """The answer to an enrolment with a fresh code, and the new agent's session."""
    answer = api.client().post("/v1/agents", json=enrolment(api.code(), *profiles, **changes))
    assert answer.status_code == 201, answer.text
    return answer.json(), api.client(answer.json()["token"])


def leased_targets(client: httpx.Client) -> set[str]:
    """The targets of everything that is leased until nothing is left."""
    found: set[str] = set()
    while items := client.post("/v1/measurement-tasks/lease", json={"limit": 64}).json()["items"]:
        found |= {item["target_id"] for item in items}
    return found


def test_each_profile_is_a_target_in_the_order_they_were_given(api_on_both):
    api = api_on_both
    profiles = [new_profile(threads=n) for n in (4, 1, 2)]
    made, _ = enrol(api, *profiles)
    assert len(set(made["target_ids"])) == 3
    for target_id, profile in zip(made["target_ids"], profiles, strict=True):
        assert api.http.get(f"/v1/targets/{target_id}").json()["profile"] == profile
    listed = api.http.get(f"/v1/agents/{made['id']}").json()
    assert listed["target_ids"] == made["target_ids"]


def test_the_same_profile_twice_is_one_target(api_on_both):
    profile, other = new_profile(), new_profile()
    made, _ = enrol(api_on_both, profile, other, profile)
    first, second, third = made["target_ids"]
    assert first == third != second
    listed = api_on_both.http.get(f"/v1/agents/{made['id']}").json()
    assert listed["target_ids"] == [first, second]


@pytest.mark.parametrize("n", [0, 9])
def test_an_agent_has_one_to_eight_targets(api, n):
    body = enrolment(api.code()) | {"profiles": [new_profile() for _ in range(n)]}
    before = api.stored()
    answer = api.client().post("/v1/agents", json=body)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == ["profiles"]
    assert api.stored() == before


def test_a_code_may_bring_a_space_that_is_measured_on_every_target(api_on_both):
    api = api_on_both
    asked = api.http.post("/v1/enrolment-codes", json={"search_space": "micro"}).json()
    assert asked["search_space"] == "micro"
    assert asked["measure_path"] == f"/measure/{asked['code']}"
    body = enrolment(asked["code"], new_profile(threads=1), new_profile(threads=2))
    made = api.client().post("/v1/agents", json=body).json()
    client = api.client(made["token"])
    itself = client.get("/v1/agents/self").json()
    assert [target["id"] for target in itself["targets"]] == made["target_ids"]
    for target in itself["targets"]:
        (kit,) = target["kits"]
        assert (kit["search_space"], kit["status"], kit["completed"]) == ("micro", "measuring", 0)
        assert kit["total"] > 100
        assert target["latency_models"] == []
    assert leased_targets(client) == set(made["target_ids"])


def test_a_code_without_a_space_queues_nothing(api_on_both):
    _, client = enrol(api_on_both, new_profile())
    assert client.get("/v1/agents/self").json()["targets"][0]["kits"] == []
    assert leased_targets(client) == set()


@pytest.mark.parametrize("space", ["nowhere", "", 7, "micro@1"])
def test_a_code_for_an_unknown_space_is_refused(api, space):
    before = api.stored()
    answer = api.http.post("/v1/enrolment-codes", json={"search_space": space})
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == ["search_space"]
    assert api.stored() == before


def test_a_kit_in_int8_has_other_files_of_the_same_subjects(api):
    code = api.http.post("/v1/enrolment-codes", json={"search_space": "micro"}).json()["code"]
    profiles = [new_profile(precision=precision) for precision in ("float32", "int8")]
    made = api.client().post("/v1/agents", json=enrolment(code, *profiles)).json()
    client = api.client(made["token"])
    tasks: list[dict] = []
    while items := client.post("/v1/measurement-tasks/lease", json={"limit": 64}).json()["items"]:
        tasks += items
    float32, int8 = (
        {
            t["subject"]: (t["model_sha256"], t["anchor_sha256"])
            for t in tasks
            if t["target_id"] == i
        }
        for i in made["target_ids"]
    )
    assert set(float32) == set(int8)
    assert {sha for pair in float32.values() for sha in pair}.isdisjoint(
        sha for pair in int8.values() for sha in pair
    )
    subject = min(float32)
    quantised = onnx.load_from_string(client.get(f"/v1/models/{int8[subject][0]}").content)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {n.op_type for n in quantised.graph.node}


def test_an_agent_sees_and_is_given_only_its_own_targets(api_on_both):
    api = api_on_both
    device, stranger = api.enrol_with_kit(), api.enrol_with_kit()
    ids = {task["target_id"] for task in device.lease_all()}
    assert ids == {device.target_id}
    itself = device.http.get("/v1/agents/self").json()
    assert (itself["id"], itself["name"]) == (device.agent_id, "formula")
    assert [target["id"] for target in itself["targets"]] == [device.target_id]
    theirs = stranger.lease_one()
    (report,) = device.report(device.result(theirs))
    assert (report["accepted"], report["reason"]) == (False, "unknown_task")
    assert stranger.report(stranger.result(theirs))[0]["accepted"]


def test_an_agent_reads_what_its_measurements_gave(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()
    device.answer_everything()
    api.run_fit(api.ask_for_kit(device))
    (target,) = device.http.get("/v1/agents/self").json()["targets"]
    (kit,), (model,) = target["kits"], target["latency_models"]
    assert (kit["status"], kit["completed"]) == ("measured", kit["total"])
    (listed,) = api.latency_models(device)
    same = ("id", "search_space", "fastest_ms", "slowest_ms", "margin", "stale", "report")
    assert {name: model[name] for name in same} == {name: listed[name] for name in same}


# -- versions --------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.0.9", "0.0", "0", "0.0.99.dev1"])
def test_an_agent_that_is_too_old_is_told_what_it_needs_and_keeps_its_code(api, version):
    code = api.code()
    before = api.stored()
    old = api.client().post("/v1/agents", json=enrolment(code, agent_version=version))
    assert old.status_code == 426
    assert old.headers["content-type"] == "application/problem+json"
    problem = old.json()
    assert (problem["code"], problem["minimum_version"]) == ("agent_too_old", OLDEST_AGENT)
    assert OLDEST_AGENT in problem["detail"]
    assert "pip install" in problem["detail"]
    assert api.stored() == before
    assert api.client().post("/v1/agents", json=enrolment(code)).status_code == 201


def test_an_agent_that_is_too_old_is_given_no_work_until_it_is_updated(api_on_both):
    device = api_on_both.enrol_with_kit()
    device.heartbeat(agent_version="0.0.9")
    refused = device.http.post("/v1/measurement-tasks/lease", json={})
    assert refused.status_code == 426
    assert refused.json()["minimum_version"] == OLDEST_AGENT
    listed = api_on_both.http.get(f"/v1/agents/{device.agent_id}").json()
    assert (listed["version"], listed["outdated"]) == ("0.0.9", True)
    device.heartbeat(agent_version=OLDEST_AGENT)
    assert len(device.lease(1)) == 1
    assert not api_on_both.http.get(f"/v1/agents/{device.agent_id}").json()["outdated"]


def test_what_an_old_agent_has_measured_is_still_taken(api_on_both):
    device = api_on_both.enrol_with_kit()
    task = device.lease_one()
    device.heartbeat(agent_version="0.0.9")
    assert device.report(device.result(task))[0]["accepted"]


@pytest.mark.parametrize(
    ("version", "outdated"),
    [
        ("0.1.0", False),
        ("0.1", False),
        ("0.1.0.dev3+g1a2b", False),
        ("0.10.0", False),
        ("1", False),
        ("12.0.1rc1", False),
        ("0.0.99", True),
        ("0.0.99-beta", True),
        ("0", True),
        ("unknown", False),
        ("", False),
        ("9" * 40, False),
    ],
)
def test_versions_are_compared_as_numbers_and_what_is_none_counts_as_new(version, outdated):
    assert is_outdated(version) is outdated


# -- heartbeats ------------------------------------------------------------------------


def lease_ends(api, device) -> list[datetime]:
    """When the leases of the tasks that a device holds end."""
    held = api.http.get(f"/v1/agents/{device.agent_id}").json()["leased"]
    return [datetime.fromisoformat(task["lease_expires_at"]) for task in held]


def test_a_heartbeat_extends_the_leases_that_the_agent_holds(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()
    other = api.enrol(**api.profile_of(device))
    tasks, others = device.lease(3), other.lease(2)
    assert len(others) == 2
    with api.database.transaction() as session:
        held = [task["id"] for task in (*tasks, *others)]
        for row in session.query(MeasurementTask).filter(MeasurementTask.id.in_(held)):
            row.lease_expires_at = row.lease_expires_at - timedelta(seconds=60)
    before, others_before = lease_ends(api, device), lease_ends(api, other)
    answer = device.heartbeat()
    assert answer == {
        "object": "heartbeat",
        "draining": False,
        "stale": [],
        "heartbeat_seconds": api.settings.heartbeat_seconds,
    }
    after = lease_ends(api, device)
    assert len(after) == 3
    assert all(b - a > timedelta(seconds=50) for a, b in zip(before, after, strict=True))
    assert lease_ends(api, other) == others_before


def test_an_agent_that_started_anew_does_not_keep_what_the_last_process_had_leased(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()
    held, lost = device.lease(2)
    with api.database.transaction() as session:
        ends = {task["id"]: session.get_one(MeasurementTask, task["id"]) for task in (held, lost)}
        for row in ends.values():
            row.lease_expires_at -= timedelta(seconds=60)
    before = lease_ends(api, device)
    device.heartbeat(holds=[held["id"], "mtk_nobody"])
    by_id = {
        task["id"]: datetime.fromisoformat(task["lease_expires_at"])
        for task in api.http.get(f"/v1/agents/{device.agent_id}").json()["leased"]
    }
    assert by_id[held["id"]] - max(before) > timedelta(seconds=50)
    assert by_id[lost["id"]] in before
    device.heartbeat(holds=[])
    assert set(lease_ends(api, device)) == set(by_id.values())


def test_no_agent_can_extend_the_lease_of_another(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()
    other = api.enrol(**api.profile_of(device))
    task = device.lease_one()
    before = lease_ends(api, device)
    other.heartbeat(holds=[task["id"]])
    assert lease_ends(api, device) == before


def test_a_heartbeat_does_not_bring_back_what_another_agent_took_over(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()
    other = api.enrol(**api.profile_of(device))
    task = device.lease_one()
    with api.database.transaction() as session:
        row = session.get_one(MeasurementTask, task["id"])
        row.lease_expires_at = row.created_at
    taken = next(t for t in other.lease_all() if t["id"] == task["id"])
    device.heartbeat()
    assert lease_ends(api, device) == []
    (late,) = device.report(device.result(task))
    assert late["reason"] == "stale_lease"
    assert other.report(other.result(taken))[0]["accepted"]


def test_a_heartbeat_tells_what_the_agent_does(api_on_both):
    api = api_on_both
    device = api.enrol_new_target()
    device.heartbeat(activity="block:x", journal_batches=3)
    listed = api.http.get(f"/v1/agents/{device.agent_id}").json()
    assert (listed["activity"], listed["journal_batches"]) == ("block:x", 3)


def test_a_heartbeat_is_a_sign_of_life(api_on_both):
    api = api_on_both
    device = api.enrol_new_target()
    with api.database.transaction() as session:
        agent = session.get_one(Agent, device.agent_id)
        agent.last_seen_at -= timedelta(hours=1)
    assert not api.http.get(f"/v1/agents/{device.agent_id}").json()["online"]
    device.heartbeat()
    assert api.http.get(f"/v1/agents/{device.agent_id}").json()["online"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"agent_version": ""}, "agent_version"),
        ({"agent_version": None}, "agent_version"),
        ({"activity": "x" * 201}, "activity"),
        ({"journal_batches": -1}, "journal_batches"),
        ({"journal_batches": 10**7}, "journal_batches"),
        ({"profiles": []}, "profiles"),
        ({"profiles": {str(n): PROFILE for n in range(9)}}, "profiles"),
        ({"profiles": {"tgt_x": {**PROFILE, "threads": 0}}}, "profiles.tgt_x.threads"),
        ({"holds": "everything"}, "holds"),
        ({"holds": ["x"] * 1001}, "holds"),
        ({"mood": "fine"}, "mood"),
    ],
)
def test_a_wrong_heartbeat_names_the_field_and_changes_nothing(api, measured, changes, field):
    path = f"/v1/agents/{measured.agent_id}"
    before = api.http.get(path).json()
    body = {"agent_version": "2", **changes}
    answer = measured.http.post("/v1/agents/self/heartbeat", json=body)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert api.http.get(path).json() == before


def test_a_profile_of_another_agents_target_means_nothing(api, measured):
    device = api.enrol_new_target()
    changed = {**PROFILE, "runtime_version": "2"}
    assert device.heartbeat(profiles={measured.target_id: changed, "tgt_x": changed})["stale"] == []
    assert api.latency_models(measured)[0]["stale"] is None


# -- drain, resume, revoke -------------------------------------------------------------


def test_a_drained_agent_hears_so_uploads_and_is_given_no_more(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()
    task = device.lease_one()
    drained = api.http.post(f"/v1/agents/{device.agent_id}/drain").json()
    assert drained["draining"]
    assert device.heartbeat()["draining"]
    assert device.http.get("/v1/agents/self").json()["draining"]
    started = time.monotonic()
    answer = device.http.post("/v1/measurement-tasks/lease", json={"wait_seconds": 25}).json()
    assert time.monotonic() - started < 20  # it is told at once
    assert (answer["items"], answer["draining"]) == ([], True)
    assert device.report(device.result(task))[0]["accepted"]


def test_an_agent_that_waits_for_work_hears_at_once_that_it_is_drained(api_on_both):
    api = api_on_both
    device = api.enrol_new_target()
    with ThreadPoolExecutor(1) as pool:
        body = {"wait_seconds": 25}
        waiting = pool.submit(device.http.post, "/v1/measurement-tasks/lease", json=body)
        api.http.post(f"/v1/agents/{device.agent_id}/drain")
        answer = waiting.result(timeout=20)
    assert answer.json()["draining"]


def test_a_resumed_agent_works_again(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()
    api.http.post(f"/v1/agents/{device.agent_id}/drain")
    assert device.lease() == []
    assert not api.http.post(f"/v1/agents/{device.agent_id}/resume").json()["draining"]
    assert not device.heartbeat()["draining"]
    assert len(device.lease(2)) == 2


@pytest.mark.parametrize("action", ["drain", "resume"])
def test_draining_and_resuming_twice_is_harmless_and_a_stranger_is_a_404(api, action):
    device = api.enrol()
    for _ in range(2):
        answer = api.http.post(f"/v1/agents/{device.agent_id}/{action}")
        assert (answer.status_code, answer.json()["draining"]) == (200, action == "drain")
    assert api.http.post(f"/v1/agents/agt_nobody/{action}").status_code == 404


def test_draining_one_agent_leaves_the_others_of_its_target_alone(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()
    other = api.enrol(**api.profile_of(device))
    api.http.post(f"/v1/agents/{device.agent_id}/drain")
    assert device.lease() == []
    assert len(other.lease(1)) == 1


# -- the list --------------------------------------------------------------------------


def test_an_agent_is_listed_with_its_record(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()

    def listed() -> dict:
        found = api.http.get("/v1/agents").json()["items"]
        (one,) = [agent for agent in found if agent["id"] == device.agent_id]
        assert one == api.http.get(f"/v1/agents/{device.agent_id}").json()
        return one

    new = listed()
    assert (new["online"], new["draining"], new["outdated"]) == (True, False, False)
    assert (new["accepted"], new["rejected"], new["flagged"]) == (0, 0, 0)
    assert (new["reject_rate"], new["leased"], new["revoked_at"]) == (None, [], None)
    tasks = device.lease(5)
    held = {task["id"]: task["subject"] for task in tasks}
    assert {task["id"]: task["subject"] for task in listed()["leased"]} == held
    device.report(
        device.result(tasks[0]),
        device.result(tasks[1], flagged=True, note="noisy"),
        device.failure(tasks[2], "unsupported"),
        device.result(tasks[0]),
    )
    worked = listed()
    assert (worked["accepted"], worked["rejected"], worked["flagged"]) == (3, 1, 1)
    assert worked["reject_rate"] == 0.25
    assert {task["id"] for task in worked["leased"]} == {task["id"] for task in tasks[3:]}
    device.upload([device.result(tasks[3])], "b" * 32)
    device.upload([device.result(tasks[3])], "b" * 32)  # the same batch counts once
    assert listed()["accepted"] == 4


def test_a_revoked_agent_is_listed_as_such(api_on_both):
    api = api_on_both
    device = api.enrol_new_target()
    api.http.delete(f"/v1/agents/{device.agent_id}")
    listed = api.http.get(f"/v1/agents/{device.agent_id}").json()
    assert not listed["online"]
    assert listed["revoked_at"] is not None


def test_what_a_revoked_agent_held_goes_to_the_others_of_its_target(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()
    other = api.enrol(**api.profile_of(device))
    held = {task["id"] for task in device.lease(3)}
    api.http.delete(f"/v1/agents/{device.agent_id}")
    assert held <= {task["id"] for task in other.lease_all()}
