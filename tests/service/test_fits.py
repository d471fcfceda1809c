"""Fits over HTTP: blocks that a target refuses, agents that lie, and what the report says."""

import pytest

from predictor.kits import block_subject, canary_items, chains
from search_core.space.presets import get_space
from service.measurements.models import MeasurementTask

CANARIES = {item.subject for item in canary_items()}
MICRO = get_space("micro")


def beat(api, device) -> None:
    """A heartbeat that tells the profile, so that canaries are planned."""
    device.heartbeat(api.profile_of(device))


def siblings(api, n: int, kit: bool = True) -> list:
    """Agents of one new target, whose kit and canaries wait."""
    first = api.enrol_with_kit() if kit else api.enrol_new_target()
    devices = [first, *(api.enrol(**api.profile_of(first)) for _ in range(n - 1))]
    for device in devices:
        beat(api, device)
    return devices


def share_out(devices: list, factors: list[float], limit: int = 10) -> dict[str, list[str]]:
    """Every agent in turn takes and answers its share; what each has measured."""
    measured: dict[str, list[str]] = {device.agent_id: [] for device in devices}
    while any(
        answered := [answer_some(d, f, limit) for d, f in zip(devices, factors, strict=True)]
    ):
        for device, subjects in zip(devices, answered, strict=True):
            measured[device.agent_id] += subjects
    return measured


def answer_some(device, factor: float, limit: int) -> list[str]:
    tasks = device.lease(limit)
    if tasks:
        device.answer(tasks, factor)
    return [task["subject"] for task in tasks]


def active_model(api, device) -> dict:
    (active,) = [model for model in api.latency_models(device) if model["active"]]
    return active


def verdicts(model: dict) -> dict[str, dict]:
    return {verdict["agent"]: verdict for verdict in model["report"]["agents"]}


# -- blocks that a target refuses ------------------------------------------------------


def refuses(block):
    """Whether a target that does not run `block` refuses a subject."""

    def refused(subject: str) -> bool:
        kind, rest = subject.split(":", 1)
        if kind == "block":
            return rest.rsplit(":x", 1)[0] == str(block)
        return block in MICRO.blocks(MICRO.parse(rest.split(":", 1)[1]))

    return refused


def answer_but_refuse(api, device, refused) -> int:
    """Answer everything, what is refused with a failure; how much was."""
    n = 0
    while tasks := device.lease():
        no = [task for task in tasks if refused(task["subject"])]
        if yes := [task for task in tasks if task not in no]:
            device.answer(yes)
        if no:
            device.report(*(device.failure(task, "unsupported") for task in no))
        n += len(no)
    return n


def test_a_space_with_blocks_that_a_target_refuses_is_fitted_without_them(api_on_both):
    api = api_on_both
    device, whole = api.enrol_with_kit(), api.enrol_measured()
    block = next(layer for layer in MICRO.layers if layer.slot is not None).blocks[0]
    kit = api.ask_for_kit(device)
    n_refused = answer_but_refuse(api, device, refuses(block))
    assert n_refused > len(chains(block))
    api.run_fit(kit)
    model = active_model(api, device)
    assert model["report"]["unsupported_blocks"] == [str(block)]
    assert model["fastest_ms"] > active_model(api, whole)["fastest_ms"]  # it was the smallest
    assert model["slowest_ms"] == pytest.approx(active_model(api, whole)["slowest_ms"])
    assert model["report"]["leave_one_out"]["mape"] < 0.001


def test_the_report_says_what_is_refused_and_why(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()
    kit = api.ask_for_kit(device)
    block = next(layer for layer in MICRO.layers if layer.slot is not None).blocks[3]
    n_refused = answer_but_refuse(api, device, refuses(block))
    ended = api.http.get(f"/v1/kits/{kit['id']}").json()
    assert (ended["status"], ended["failed"]) == ("incomplete", n_refused)
    assert ended["completed"] == ended["total"] - n_refused
    api.run_fit(kit)
    told = active_model(api, device)["report"]["unsupported"]
    assert len(told) == n_refused
    assert {block_subject(block, copies) for copies in chains(block)} <= set(told)
    assert all(set(failure) == {"code", "reason", "detail"} for failure in told.values())
    reasons = {(failure["code"], failure["reason"]) for failure in told.values()}
    assert reasons == {("unsupported", "refused")}


def test_no_budget_has_room_for_a_refused_block(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()
    kit = api.ask_for_kit(device)
    slots = [layer for layer in MICRO.layers if layer.slot is not None]
    block = slots[0].blocks[0]
    answer_but_refuse(api, device, refuses(block))
    api.run_fit(kit)
    fastest_ms = active_model(api, device)["fastest_ms"]
    body = {"target": device.target_id, "latency_budget_ms": fastest_ms * 0.99}
    refused = api.http.post("/v1/searches", json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "budget_unreachable")
    search = api.search(device.target_id, fastest_ms * 1.01)
    assert search["feasibility"]["feasible"] is True


def test_a_target_that_refuses_a_block_of_every_network_has_no_model_and_says_why(api_on_both):
    api = api_on_both
    device = api.enrol_new_target()
    search = api.search(device.target_id)
    kit = api.ask_for_kit(device)
    stem = MICRO.distinct_blocks[0]
    answer_but_refuse(api, device, refuses(stem))
    api.run_fit(kit)
    failed = api.read(search)
    assert (failed["status"], failed["status_reason"]["code"]) == ("failed", "no_latency_model")
    assert f"does not support {stem}" in failed["status_reason"]["text"]


def test_measurements_that_no_model_fits_are_taken_anew_for_the_next_search(api_on_both):
    api = api_on_both
    device = api.enrol_new_target()
    first = api.search(device.target_id)
    kit = api.ask_for_kit(device)
    while tasks := device.lease():
        device.report(*(device.result(task, 1.0) for task in tasks))
    api.run_fit(kit)
    assert api.read(first)["status_reason"]["code"] == "no_latency_model"
    second = api.search(device.target_id)
    device.answer(device.lease(5))
    third = api.search(device.target_id)
    assert api.ask_for_kit(device)["completed"] == 5  # and not anew for every search
    device.answer_everything()
    api.run_fit(kit)
    for search in (second, third):
        assert api.read(search)["phase"] == "waiting_for_worker"


@pytest.mark.parametrize("again", [False, True])
def test_a_fit_leaves_a_kit_that_is_measured_anew_to_the_fit_after_it(api_on_both, again):
    api = api_on_both
    device = api.enrol_new_target()
    search = api.search(device.target_id)
    kit = api.ask_for_kit(device)
    block = next(layer for layer in MICRO.layers if layer.slot is not None).blocks[0]
    answer_but_refuse(api, device, refuses(block))
    api.ask_for_kit(device, again=again)  # asks for what was refused once more, at least
    api.run_fit(kit)
    assert api.latency_models(device) == []
    assert api.read(search)["status_reason"]["code"] == "awaiting_measurements"
    answer_but_refuse(api, device, refuses(block))
    api.run_fit(kit)
    assert active_model(api, device)["report"]["unsupported_blocks"] == [str(block)]
    assert api.read(search)["phase"] == "waiting_for_worker"


# -- agents that differ ----------------------------------------------------------------


@pytest.mark.parametrize("lie", [1.3, 0.7])
def test_of_three_agents_the_one_that_lies_does_not_touch_the_model(api_on_both, lie):
    api = api_on_both
    *honest, liar = devices = siblings(api, 3)
    kit = api.ask_for_kit(liar)
    measured = share_out(devices, [1.0, 1.0, lie])
    of_liar = set(measured[liar.agent_id]) - CANARIES
    assert len(of_liar) > 20
    total = kit["total"]
    assert api.http.get(f"/v1/kits/{kit['id']}").json()["completed"] == total
    api.run_fit(kit)

    # what only it has measured is measured again by an agent that is believed
    assert api.latency_models(liar) == []
    now = api.http.get(f"/v1/kits/{kit['id']}").json()
    assert (now["status"], now["completed"]) == ("measuring", total - len(of_liar))
    assert liar.lease_all() == []
    again = share_out(honest, [1.0, 1.0])
    assert {subject for subjects in again.values() for subject in subjects} == of_liar
    assert sorted(map(bool, again.values())) == [False, True]  # one of the honest was asked
    api.run_fit(kit)

    model = active_model(api, liar)
    untouched = active_model(api, api.enrol_measured())
    assert model["fastest_ms"] == pytest.approx(untouched["fastest_ms"], rel=1e-9)
    assert model["slowest_ms"] == pytest.approx(untouched["slowest_ms"], rel=1e-9)
    told = verdicts(model)
    assert {agent: verdict["trusted"] for agent, verdict in told.items()} == {
        honest[0].agent_id: True,
        honest[1].agent_id: True,
        liar.agent_id: False,
    }
    assert "differ from the other agents'" in told[liar.agent_id]["reason"]
    assert told[liar.agent_id]["n_shared"] >= len(CANARIES)
    assert (told[liar.agent_id]["offset"] > 0) == (lie > 1)
    assert told[honest[0].agent_id]["reason"] == ""


def test_what_a_liar_has_measured_stays_stored(api_on_both):
    api = api_on_both
    *honest, liar = devices = siblings(api, 3)
    share_out(devices, [1.0, 1.0, 1.3])
    before = api.stored()["measurements"]
    api.run_fit(api.ask_for_kit(liar))
    share_out(honest, [1.0, 1.0])
    api.run_fit(api.ask_for_kit(liar))
    assert api.stored()["measurements"] > before
    params = {"target": liar.target_id, "limit": 200}
    page = api.http.get("/v1/measurements", params=params).json()
    stored = {item["agent_id"] for item in page["items"]}
    assert liar.agent_id in stored


def test_of_two_agents_that_disagree_the_longer_record_stays(api_on_both):
    api = api_on_both
    long, short = siblings(api, 2)
    kit = api.ask_for_kit(long)
    tasks = short.lease(len(CANARIES) + 5)
    short.answer(tasks, 1.3)
    long.answer_everything()
    api.run_fit(kit)
    assert short.lease_all() == []
    assert len(long.lease(64)) == 5
    with api.database.transaction() as session:
        for task in session.query(MeasurementTask).filter_by(agent_id=long.agent_id):
            task.lease_expires_at = task.lease_expires_at and task.created_at
    long.answer_everything()
    api.run_fit(kit)
    model = active_model(api, long)
    told = verdicts(model)
    assert told[long.agent_id]["trusted"]
    assert not told[short.agent_id]["trusted"]
    assert "only other agent" in told[short.agent_id]["reason"]
    untouched = active_model(api, api.enrol_measured())
    assert model["slowest_ms"] == pytest.approx(untouched["slowest_ms"], rel=1e-9)


def test_agents_that_agree_are_all_believed_and_share_the_work(api_on_both):
    api = api_on_both
    devices = siblings(api, 3)
    kit = api.ask_for_kit(devices[0])
    share_out(devices, [1.0, 1.01, 0.99])
    api.run_fit(kit)
    told = verdicts(active_model(api, devices[0]))
    assert [verdict["trusted"] for verdict in told.values()] == [True] * 3
    assert sum(verdict["n"] for verdict in told.values()) == kit["total"] + 3 * len(CANARIES)


def test_a_believed_agent_that_was_revoked_is_not_asked_again(api_on_both):
    api = api_on_both
    first, second, liar = devices = siblings(api, 3)
    kit = api.ask_for_kit(liar)
    share_out(devices, [1.0, 1.0, 1.3])
    api.http.delete(f"/v1/agents/{second.agent_id}")
    api.run_fit(kit)
    assert first.lease(1)


def test_what_a_revoked_agent_alone_was_to_measure_goes_to_the_others(api_on_both):
    api = api_on_both
    first, second, liar = devices = siblings(api, 3)
    kit = api.ask_for_kit(liar)
    share_out(devices, [1.0, 1.0, 1.3])
    api.run_fit(kit)
    asked = next(device for device in (first, second) if device.lease(1))
    left = second if asked is first else first
    assert left.lease(1) == []
    api.http.delete(f"/v1/agents/{asked.agent_id}")
    left.answer_everything()
    api.run_fit(kit)
    assert verdicts(active_model(api, left))[left.agent_id]["trusted"]


def test_when_no_believed_agent_is_left_the_search_fails_instead_of_waiting(api_on_both):
    api = api_on_both
    first, second, liar = devices = siblings(api, 3, kit=False)
    search = api.search(liar.target_id)
    kit = api.ask_for_kit(liar)
    for device in devices:
        beat(api, device)
    share_out(devices, [1.0, 1.0, 1.3])
    for device in (first, second):
        api.http.delete(f"/v1/agents/{device.agent_id}")
    api.run_fit(kit)
    failed = api.read(search)
    assert (failed["status"], failed["status_reason"]["code"]) == ("failed", "no_latency_model")
    assert "have no measurement" in failed["status_reason"]["text"]


def test_the_report_counts_flagged_measurements_and_grades(api_on_both):
    api = api_on_both
    device = api.enrol_with_kit()
    kit = api.ask_for_kit(device)
    flagged, graded, *rest = device.lease_all()
    device.answer(rest)
    formula = {t["subject"]: m for t, m in zip((flagged, graded), (0.2, 0.3), strict=True)}
    device.report(
        device.result(flagged, formula[flagged["subject"]], flagged=True, note="noisy"),
        device.result(graded, formula[graded["subject"]], grade="B"),
    )
    api.run_fit(kit)
    found = active_model(api, device)["report"]["measurements"]
    assert (found["n"], found["flagged"]) == (kit["total"], 1)
    assert found["grades"] == {"A": kit["total"] - 2, "B": 1, "C": 1}
