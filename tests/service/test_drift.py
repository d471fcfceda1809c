"""Targets that are no longer what was measured: another runtime, or drifting canaries."""

import pytest

from predictor.kits import canary_items

CANARIES = {item.subject for item in canary_items()}
TINY_HOURS = 1e-9
POSTGRES = pytest.mark.postgres


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=POSTGRES)])
def watchful(request, serve, new_store):
    """An API that has its canaries measured with every heartbeat."""
    url = new_store(request.param, migrated=True)
    with serve(canary_hours=TINY_HOURS, database_url=url) as api:
        yield api


def beat(api, device) -> dict:
    """A heartbeat that tells the profile as it is."""
    return device.heartbeat(api.profile_of(device))


def canaries(tasks: list[dict]) -> list[dict]:
    return [task for task in tasks if task["subject"] in CANARIES]


def measure_canaries(api, device, factor: float = 1.0) -> None:
    """A heartbeat, and the canaries that it has planned, answered."""
    beat(api, device)
    tasks = device.lease_all()
    assert {task["subject"] for task in tasks} == CANARIES
    device.answer(tasks, factor)


def watched(api):
    """A target whose model was fitted after its agent's first canaries."""
    device = api.enrol_with_kit()
    beat(api, device)
    device.answer_everything()
    api.run_fit(api.ask_for_kit(device))
    return device


def stale(api, device) -> dict | None:
    """Why the active model of a device's target no longer holds, if it does not."""
    (active,) = [model for model in api.latency_models(device) if model["active"]]
    return active["stale"]


def preflight(api, device) -> dict:
    body = {"target": device.target_id, "latency_budget_ms": 0.03}
    return api.http.post("/v1/searches?dry_run=true", json=body).json()


# -- a changed profile -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("runtime_version", "1.1"),
        ("system", "Linux 7"),
        ("device_model", "another processor"),
        ("clock_state", "governor powersave"),
        ("threads", 2),
    ],
)
def test_a_changed_profile_marks_the_models_stale_within_one_heartbeat(api_on_both, field, value):
    api = api_on_both
    device = api.enrol_measured()
    profile = api.profile_of(device)
    assert beat(api, device)["stale"] == []
    assert preflight(api, device)["stale"] is None
    (told,) = device.heartbeat({**profile, field: value})["stale"]
    assert told["target_id"] == device.target_id
    words = field.replace("_", " ")
    assert f"{words} {profile[field]} -> {value}" in told["text"]
    assert "enrol it again" in told["text"]
    found = stale(api, device)
    assert (found["code"], found["text"]) == ("profile_changed", told["text"])
    assert preflight(api, device)["stale"] == told["text"]
    assert preflight(api, device)["feasible"] is True  # it can still be searched
    (own,) = device.http.get("/v1/agents/self").json()["targets"]
    assert own["latency_models"][0]["stale"] == found
    assert api.profile_of(device) == profile  # a target never changes


def test_a_changed_profile_is_told_with_every_heartbeat_and_noted_once(api_on_both):
    api = api_on_both
    device = api.enrol_measured()
    changed = {**api.profile_of(device), "runtime_version": "2"}
    first = device.heartbeat(changed)["stale"]
    noted = stale(api, device)
    assert device.heartbeat(changed)["stale"] == first
    assert stale(api, device) == noted


def test_a_search_keeps_that_its_model_was_stale(api_on_both):
    api = api_on_both
    device = api.enrol_measured()
    device.heartbeat({**api.profile_of(device), "runtime_version": "2"})
    search = api.search(device.target_id)
    assert search["feasibility"]["stale"] == stale(api, device)["text"]


def test_a_change_of_one_target_leaves_the_others_alone(api_on_both):
    api = api_on_both
    device, other = api.enrol_measured(), api.enrol_measured()
    device.heartbeat({**api.profile_of(device), "threads": 7})
    assert stale(api, device) is not None
    assert stale(api, other) is None


def test_a_heartbeat_without_a_profile_says_nothing_of_the_target(api_on_both):
    api = api_on_both
    device = api.enrol_measured()
    assert device.heartbeat()["stale"] == []
    assert stale(api, device) is None
    assert device.lease_all() == []


def test_the_changed_device_is_a_new_target_when_it_enrols_again(api_on_both):
    api = api_on_both
    device = api.enrol_measured()
    changed = {**api.profile_of(device), "runtime_version": "2"}
    device.heartbeat(changed)
    again = api.enrol(**changed)
    assert again.target_id != device.target_id
    assert api.latency_models(again) == []


# -- canaries --------------------------------------------------------------------------


def test_the_first_heartbeat_asks_for_the_canaries_before_anything_else(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()
    beat(api, device)
    assert {task["subject"] for task in device.lease(3)} == CANARIES
    assert not canaries(device.lease_all())


def test_canaries_are_not_asked_for_again_before_their_time(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()
    for _ in range(3):
        beat(api, device)
    assert len(canaries(device.lease_all())) == len(CANARIES)


def test_a_device_without_files_to_measure_has_no_canaries(serve):
    with serve() as api:
        device = api.enrol_new_target()
        beat(api, device)
        assert device.lease_all() == []


def test_each_agent_measures_its_own_canaries(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()
    other = api.enrol(**api.profile_of(device))
    device.answer_everything()
    beat(api, other)
    assert device.lease_all() == []
    assert {task["subject"] for task in other.lease_all()} == CANARIES


def test_canaries_are_no_part_of_a_kit(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()
    total = api.ask_for_kit(device)["total"]
    beat(api, device)
    device.answer(device.lease(3))
    kit = api.ask_for_kit(device)
    assert (kit["completed"], kit["total"]) == (0, total)


def test_canaries_are_asked_for_again_when_their_time_has_come(watchful):
    device = watched(watchful)
    for _ in range(2):
        measure_canaries(watchful, device)
    assert stale(watchful, device) is None


def test_the_canaries_of_a_revoked_agent_are_left(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()
    other = api.enrol(**api.profile_of(device))
    beat(api, device)
    api.http.delete(f"/v1/agents/{device.agent_id}")
    assert not canaries(other.lease_all())


# -- drift -----------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.02, 0.98])
def test_a_drift_within_the_tolerance_changes_nothing(watchful, factor):
    device = watched(watchful)
    measure_canaries(watchful, device, factor)
    assert stale(watchful, device) is None
    assert watchful.ask_for_kit(device)["status"] == "measured"


@pytest.mark.parametrize("factor", [1.04, 0.96, 2.0])
def test_a_larger_drift_marks_the_model_stale_and_has_the_kit_measured_anew(watchful, factor):
    device = watched(watchful)
    before = watchful.stored()["measurements"]
    measure_canaries(watchful, device, factor)
    found = stale(watchful, device)
    assert found["code"] == "drifted"
    assert f"{factor:.3g} times" in found["text"]
    assert preflight(watchful, device)["stale"] == found["text"]
    kit = watchful.ask_for_kit(device)
    assert (kit["status"], kit["completed"]) == ("measuring", 0)
    assert watchful.stored()["measurements"] == before + len(CANARIES)  # nothing is forgotten
    device.answer_everything(factor)
    watchful.run_fit(kit)
    assert stale(watchful, device) is None
    new, old = watchful.latency_models(device)
    assert new["fastest_ms"] == pytest.approx(factor * old["fastest_ms"], rel=1e-6)
    measure_canaries(watchful, device, factor)  # the new model was fitted to the device as it is
    assert stale(watchful, device) is None


def test_a_slow_drift_is_seen_against_the_fit_and_not_from_day_to_day(watchful):
    device = watched(watchful)
    for factor in (1.012, 1.024):
        measure_canaries(watchful, device, factor)
        assert stale(watchful, device) is None
    measure_canaries(watchful, device, 1.036)
    assert stale(watchful, device)["code"] == "drifted"


def test_one_odd_canary_of_three_is_no_drift(watchful):
    device = watched(watchful)
    beat(watchful, device)
    first, *rest = device.lease_all()
    device.answer([first], 3.0)
    device.answer(rest)
    assert stale(watchful, device) is None


def test_drift_is_told_when_the_last_canary_is_in(watchful):
    device = watched(watchful)
    beat(watchful, device)
    first, second, third = device.lease_all()
    device.answer([first, second], 1.5)
    assert stale(watchful, device) is None
    device.answer([third], 1.5)
    assert stale(watchful, device)["code"] == "drifted"


def test_a_canary_that_failed_a_noise_gate_says_nothing(watchful):
    device = watched(watchful)
    beat(watchful, device)
    tasks = device.lease_all()
    device.report(*(device.result(t, 99.0, flagged=True, note="noisy") for t in tasks))
    assert stale(watchful, device) is None
    measure_canaries(watchful, device, 1.5)
    assert stale(watchful, device)["code"] == "drifted"


def test_an_agent_that_joined_after_the_fit_is_compared_with_its_own_first_canaries(watchful):
    device = watched(watchful)
    other = watchful.enrol(**watchful.profile_of(device))
    measure_canaries(watchful, other, 1.2)  # a little slower all its life
    measure_canaries(watchful, other, 1.2)
    assert stale(watchful, device) is None
    measure_canaries(watchful, other, 1.3)
    assert stale(watchful, device)["code"] == "drifted"


def test_all_spaces_of_a_target_drift_together_and_share_what_is_measured_anew(watchful):
    device = watchful.enrol_new_target()
    kits = [watchful.ask_for_kit(device, space) for space in ("nasbench201", "nasbench201_n1")]
    beat(watchful, device)
    device.answer_everything()
    for kit in kits:
        watchful.run_fit(kit)
    before = watchful.stored()["measurement_tasks"]
    measure_canaries(watchful, device, 1.1)
    models = [model for model in watchful.latency_models(device) if model["active"]]
    assert [model["stale"]["code"] for model in models] == ["drifted"] * 2
    subjects = {task["subject"] for task in device.lease_all()}
    again = watchful.stored()["measurement_tasks"] - before - len(CANARIES)
    assert again == len(subjects)
