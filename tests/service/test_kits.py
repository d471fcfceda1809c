"""Kits: what they share, what comes first, and what is measured anew."""

import base64
import json

import pytest
from sqlalchemy import text

from predictor.agent.signing import check_signature, task_message
from predictor.errors import NotAuthenticError
from predictor.kits import (
    N_CALIBRATION_NETWORKS,
    N_HELD_OUT_NETWORKS,
    anchor_item,
    block_items,
    canary_items,
    plan_kit,
    subject_weights,
)
from search_core.space.presets import get_space
from service.measurements.repository import prioritise

ONE, OTHER = "nasbench201", "nasbench201_n1"  # of the same blocks, and of other networks


GIVE_ALL_BACK = text("UPDATE measurement_tasks SET status = 'queued' WHERE status = 'leased'")


def progress(api, kit: dict) -> tuple[str, int, int, int]:
    now = api.http.get(f"/v1/kits/{kit['id']}").json()
    return now["status"], now["completed"], now["failed"], now["total"]


def subjects_of(space: str) -> list[str]:
    return [item.subject for item in plan_kit(get_space(space))]


# -- kits share tasks ------------------------------------------------------------------


def test_blocks_that_two_spaces_have_in_common_are_measured_once(api_on_both):
    api = api_on_both
    device = api.enrol_new_target()
    before = api.stored()
    one, other = (api.ask_for_kit(device, space) for space in (ONE, OTHER))
    after = api.stored()
    everything = {*subjects_of(ONE), *subjects_of(OTHER)}
    common = {item.subject for item in block_items(get_space(ONE))}
    assert after["measurement_tasks"] - before["measurement_tasks"] == len(everything)
    assert one["total"] + other["total"] == len(everything) + len(common)
    tasks = device.lease_all()
    assert sorted(task["subject"] for task in tasks) == sorted(everything)
    shared = next(task for task in tasks if task["subject"] in common)
    device.answer([shared])
    assert progress(api, one)[1] == progress(api, other)[1] == 1
    own = next(task for task in tasks if task["subject"] in set(subjects_of(ONE)) - common)
    device.answer([own])
    assert (progress(api, one)[1], progress(api, other)[1]) == (2, 1)


def test_each_of_two_kits_that_share_tasks_is_fitted_when_it_is_whole(api_on_both):
    api = api_on_both
    device = api.enrol_new_target()
    kits = {space: api.ask_for_kit(device, space) for space in (ONE, OTHER)}
    tasks = device.lease_all()
    fits = api.stored()["jobs"]
    own = set(subjects_of(ONE))
    device.answer([task for task in tasks if task["subject"] in own])
    assert progress(api, kits[ONE])[0] == "measured"
    assert progress(api, kits[OTHER])[0] == "measuring"
    assert api.stored()["jobs"] == fits + 1
    device.answer([task for task in tasks if task["subject"] not in own])
    assert api.stored()["jobs"] == fits + 2
    for kit in kits.values():
        api.run_fit(kit)
    assert {model["search_space"] for model in api.latency_models(device)} == {ONE, OTHER}


def test_a_space_that_comes_later_finds_its_blocks_measured(api_on_both):
    api = api_on_both
    device = api.enrol_new_target()
    api.ask_for_kit(device, ONE)
    device.answer_everything()
    other = api.ask_for_kit(device, OTHER)
    assert other["completed"] == len(block_items(get_space(OTHER)))
    remaining = {task["subject"] for task in device.lease_all()}
    assert all(subject.startswith("network:") for subject in remaining)
    assert len(remaining) == N_CALIBRATION_NETWORKS + N_HELD_OUT_NETWORKS


def test_targets_share_no_tasks(api_on_both):
    api = api_on_both
    devices = [api.enrol_new_target() for _ in range(2)]
    kits = [api.ask_for_kit(device) for device in devices]
    devices[0].answer_everything()
    assert progress(api, kits[0])[0] == "measured"
    assert progress(api, kits[1])[:2] == ("measuring", 0)


def test_asking_twice_adds_nothing(api_on_both):
    api = api_on_both
    device = api.enrol_new_target()
    kit = api.ask_for_kit(device, ONE)
    device.answer(device.lease(3))
    before = api.stored()
    again = api.ask_for_kit(device, ONE)
    assert again["id"] == kit["id"]
    assert again["completed"] == 3
    assert api.stored() == before


def test_what_was_too_noisy_for_one_kit_is_asked_for_again_by_the_next(api_on_both):
    api = api_on_both
    device = api.enrol_new_target()
    kit = api.ask_for_kit(device, ONE)
    block = block_items(get_space(ONE))[0].subject
    while tasks := device.lease():
        noisy = [task for task in tasks if task["subject"] == block]
        quiet = [task for task in tasks if task not in noisy]
        device.report(*map(device.result, quiet), *(device.failure(t, "too_noisy") for t in noisy))
    assert progress(api, kit)[2] == 1
    assert api.ask_for_kit(device, OTHER)["failed"] == 0
    assert block in {task["subject"] for task in device.lease_all()}


# -- measured anew ---------------------------------------------------------------------


def test_a_kit_that_is_asked_for_again_is_measured_anew_and_the_old_is_kept(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()
    device.answer_everything()
    api.run_fit(api.ask_for_kit(device))
    before = api.stored()["measurements"]
    kit = api.ask_for_kit(device, again=True)
    assert (kit["status"], kit["completed"]) == ("measuring", 0)
    assert api.stored()["measurements"] == before
    device.answer_everything(factor=2.0)
    assert api.stored()["measurements"] == before + kit["total"]
    api.run_fit(kit)
    new, old = api.latency_models(device)
    assert (new["active"], old["active"]) == (True, False)
    assert new["fastest_ms"] == pytest.approx(2.0 * old["fastest_ms"], rel=1e-6)


def test_another_agents_old_readings_count_for_nothing_when_a_kit_is_measured_anew(api_on_both):
    """Else the two would disagree, and a model would be half of then and half of now."""
    api = api_on_both
    device = api.enrol_with_kit()
    other = api.enrol(**api.profile_of(device))
    tasks = device.lease_all()
    device.answer(tasks[:60])
    with api.database.transaction() as session:
        session.execute(GIVE_ALL_BACK)
    other.answer_everything()
    kit = api.ask_for_kit(device)
    api.run_fit(kit)
    (before,) = api.latency_models(device)
    api.ask_for_kit(device, again=True)
    first_half = {task["subject"] for task in tasks[:60]}
    again = device.lease_all()
    device.answer([task for task in again if task["subject"] not in first_half], 1.5)
    with api.database.transaction() as session:
        session.execute(GIVE_ALL_BACK)
    other.answer_everything(1.5)
    api.run_fit(kit)
    after, _ = api.latency_models(device)
    assert after["fastest_ms"] == pytest.approx(1.5 * before["fastest_ms"], rel=1e-6)
    assert after["slowest_ms"] == pytest.approx(1.5 * before["slowest_ms"], rel=1e-6)
    assert all(verdict["trusted"] for verdict in after["report"]["agents"])


# -- what comes first ------------------------------------------------------------------


def test_calibration_comes_first_then_heavy_blocks_and_the_test_last(api_on_both):
    device = api_on_both.enrol_with_kit()
    order = [task["subject"] for task in device.lease_all()]
    roles = {item.subject: item.role for item in plan_kit(get_space("micro"))}
    assert [roles[subject] for subject in order] == [
        *["calibration"] * N_CALIBRATION_NETWORKS,
        *["block"] * (len(order) - N_CALIBRATION_NETWORKS - N_HELD_OUT_NETWORKS),
        *["held_out"] * N_HELD_OUT_NETWORKS,
    ]
    weights = subject_weights(get_space("micro"))
    weighed = [weights[subject] for subject in order if subject in weights]
    assert weighed == sorted(weighed, reverse=True)
    assert len(set(weighed)) > 1


def test_queued_blocks_go_by_the_weights_a_search_gives_them(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()
    (held,) = device.lease(1)
    blocks = [item.subject for item in block_items(get_space("micro"))]
    weights = {subject: float(i) for i, subject in enumerate(blocks)}
    with api.database.transaction() as session:
        prioritise(session, device.target_id, {**weights, held["subject"]: -5.0, "nothing": 9.0})
    order = [task["subject"] for task in device.lease_all()]
    assert [subject for subject in order if subject in weights] == blocks[::-1]
    assert all(subject.startswith("network:") for subject in order[: N_CALIBRATION_NETWORKS - 1])


def test_weights_of_one_target_move_no_other(api_on_both):
    api = api_on_both
    device, other = api.enrol_with_kit(), api.enrol_with_kit()
    last = block_items(get_space("micro"))[-1].subject
    with api.database.transaction() as session:
        prioritise(session, device.target_id, {last: 1e8})
    assert device.lease_one()["subject"] == last
    assert other.lease_one()["subject"].startswith("network:")


# -- signatures and files --------------------------------------------------------------


@pytest.fixture(scope="module")
def enrolled(api) -> tuple[dict, list[dict]]:
    """The answer to an enrolment with a space, and some tasks of it."""
    made = api.http.post("/v1/enrolment-codes", json={"search_space": "micro"}).json()
    target = api.enrol_new_target()
    profile = {**api.profile_of(target), "device_model": "signed for"}
    body = {"code": made["code"], "name": "x", "agent_version": "1", "profiles": [profile]}
    agent = api.client().post("/v1/agents", json=body).json()
    client = api.client(agent["token"])
    tasks = client.post("/v1/measurement-tasks/lease", json={"limit": 4}).json()["items"]
    return agent, tasks


PARTS = ("target_id", "subject", "model_sha256", "anchor_sha256")


def test_every_leased_task_is_signed_with_the_key_told_at_enrolment(enrolled):
    agent, tasks = enrolled
    assert len({task["signature"] for task in tasks}) == len(tasks) == 4
    for task in tasks:
        message = task_message(*(task[part] for part in PARTS))
        check_signature(message, task["signature"], agent["signing_key"])


@pytest.mark.parametrize("part", PARTS)
def test_a_task_of_which_anything_was_changed_is_not_authentic(enrolled, part):
    agent, (task, other, *_) = enrolled
    changed = {**task, part: other[part] if other[part] != task[part] else task[part] + "0"}
    with pytest.raises(NotAuthenticError):
        check_signature(
            task_message(*(changed[part] for part in PARTS)),
            task["signature"],
            agent["signing_key"],
        )


def test_an_installation_keeps_its_key_and_another_has_another(api, enrolled, serve):
    again = api.http.get("/v1/kit-files", params={"search_space": "micro"}).json()
    assert again["signing_key"] == enrolled[0]["signing_key"]
    with serve() as elsewhere:
        found = elsewhere.http.get("/v1/kit-files", params={"search_space": "micro"}).json()
        assert found["signing_key"] != again["signing_key"]
        assert found["items"] == again["items"]


@pytest.fixture(scope="module")
def kit_files(api) -> dict:
    """The signed list of `micro`'s files."""
    answer = api.http.get("/v1/kit-files", params={"search_space": "micro"})
    assert answer.status_code == 200
    return answer.json()


def signed_part(document: dict) -> bytes:
    rest = {name: value for name, value in document.items() if name != "signature"}
    return json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()


def test_the_list_of_a_kits_files_is_whole_and_signed(kit_files):
    items = plan_kit(get_space("micro"))
    assert [item["subject"] for item in kit_files["items"]] == [item.subject for item in items]
    assert [item["role"] for item in kit_files["items"]] == [item.role for item in items]
    assert (kit_files["search_space"], kit_files["precision"]) == ("micro", "float32")
    assert (kit_files["format"], kit_files["batch"]) == ("tailor-kit/1", 1)
    check_signature(signed_part(kit_files), kit_files["signature"], kit_files["signing_key"])


def test_a_list_with_a_changed_byte_is_not_authentic(kit_files):
    message = signed_part(kit_files)
    for at in range(0, len(message), len(message) // 50):
        changed = bytearray(message)
        changed[at] ^= 1
        with pytest.raises(NotAuthenticError):
            check_signature(bytes(changed), kit_files["signature"], kit_files["signing_key"])
    signature = bytearray(base64.b64decode(kit_files["signature"]))
    signature[3] ^= 1
    forged = base64.b64encode(signature).decode()
    with pytest.raises(NotAuthenticError):
        check_signature(message, forged, kit_files["signing_key"])


def test_every_file_of_the_list_can_be_downloaded_and_is_what_it_says(api, kit_files):
    built = {item.subject: item.build() for item in plan_kit(get_space("micro"))[:3]}
    for item in kit_files["items"]:
        if item["subject"] in built:
            content = api.http.get(f"/v1/kit-files/{item['model_sha256']}").content
            assert content == built[item["subject"]]
            assert len(content) == item["n_bytes"]
    anchor = api.http.get(f"/v1/kit-files/{kit_files['anchor_sha256']}").content
    assert anchor == anchor_item().build()


@pytest.mark.parametrize("sha256", ["0" * 64, "..", "%2e%2e%2ftailor.db", "x" * 500])
def test_a_file_of_no_kit_is_a_404(api, kit_files, sha256):
    assert api.http.get(f"/v1/kit-files/{sha256}").status_code == 404


def test_what_a_search_has_measured_is_no_file_of_a_kit(api, kit_files):
    from service.artifacts import ArtifactStore

    store = ArtifactStore(api.settings.resolved_artifacts_url)
    sha256 = store.put(b"trained weights of somebody")
    assert api.http.get(f"/v1/kit-files/{sha256}").status_code == 404


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({}, "search_space"),
        ({"search_space": "nowhere"}, "search_space"),
        ({"search_space": "micro", "precision": "float16"}, "precision"),
        ({"search_space": "micro", "batch": 0}, "batch"),
        ({"search_space": "micro", "batch": 4097}, "batch"),
    ],
)
def test_a_wrong_request_for_files_names_the_field_and_builds_nothing(api, query, field):
    before = api.stored()
    answer = api.http.get("/v1/kit-files", params=query)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert api.stored() == before


def test_a_batch_has_files_of_its_own(api, kit_files):
    query = {"search_space": "micro", "batch": 2}
    two = api.http.get("/v1/kit-files", params=query).json()
    assert two["batch"] == 2
    ones = {item["model_sha256"] for item in kit_files["items"]}
    assert ones.isdisjoint(item["model_sha256"] for item in two["items"])
    assert two["anchor_sha256"] != kit_files["anchor_sha256"]


def test_the_files_of_the_canaries_are_built_with_the_first_kit(api, kit_files):
    from service.measurements.repository import find_files

    subjects = [item.subject for item in canary_items()]
    with api.database.reading() as session:
        assert set(find_files(session, subjects, "float32", 1)) == set(subjects)
