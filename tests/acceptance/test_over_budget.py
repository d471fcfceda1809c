"""Nothing succeeds above its budget: devices that are slower than their latency model says."""

from collections.abc import Callable

import pytest

from search_core.space.presets import get_space
from search_core.space.space import Architecture
from service.latency_models.documents import parsed
from service.latency_models.repository import active_model
from service.searches.deciding import HEADROOM
from service.searches.tasks import run_search_job

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

Stopwatch = Callable[[dict, float], float]
"""What a device takes for a task, given what its latency model says."""


def run_search(
    api, device, budget_ms: float, stopwatch: Stopwatch, **noise
) -> tuple[dict, list[dict]]:
    """A search run in this process on a device like that, and what it was told."""
    space = get_space("micro")
    answers = []

    def answer(task: dict) -> dict:
        text = task["subject"].removeprefix("network:micro@1:")
        predicted_ms = predict(api, device, space.parse(text))
        answers.append({**task, "ms": stopwatch(task, predicted_ms)})
        return device.result(task, answers[-1]["ms"], **noise)

    spec = {"epochs": 4, "random_baseline": False, "hand_made_baseline": False}
    search = api.search(device.target_id, budget_ms, **spec)
    claim, context = api.claim(search)
    context.settings = context.settings.model_copy(update={"attempt_threads": 1})
    with device.answering(answer):
        run_search_job(context, claim.subject_id)
    return api.read(search), answers


def predict(api, device, architecture: Architecture) -> float:
    with api.database.reading() as session:
        row = active_model(session, device.target_id, get_space("micro").digest)
        return parsed(row).predict_ms(architecture)


def within_the_band(api, device, share: float) -> float:
    params = {"target": device.target_id}
    (model,) = api.http.get("/v1/latency-models", params=params).json()["items"]
    fastest_ms, slowest_ms = model["fastest_ms"], model["slowest_ms"]
    return fastest_ms + share * (slowest_ms - fastest_ms)


def middle_of_the_band(api, device) -> float:
    return within_the_band(api, device, 0.5)


def test_a_device_that_is_slower_for_a_while_gets_a_faster_network(api, measured):
    budget_ms = middle_of_the_band(api, measured)
    too_slow = {"table": [True, False], "certificate": [True]}  # in order; then never again

    def stopwatch(task: dict, predicted_ms: float) -> float:
        script = too_slow[task["effort"]]
        return 1.1 * budget_ms if script and script.pop(0) else predicted_ms

    search, answers = run_search(api, measured, budget_ms, stopwatch)
    assert search["status"] == "succeeded"
    result = search["result"]
    assert result["network"]["measured"]["median_ms"] <= budget_ms

    decodes = result["decodes"]
    assert decodes[0]["measured_ms"] > budget_ms
    assert decodes[1]["limit_ms"] < decodes[0]["limit_ms"]
    measured_ms = {decode["architecture"]: decode["measured_ms"] for decode in decodes}
    assert len(measured_ms) == len(decodes) >= 3  # one was too slow, one failed its certificate
    assert measured_ms[result["network"]["architecture"]] <= budget_ms * (1 - HEADROOM)

    certified = [answer for answer in answers if answer["effort"] == "certificate"]
    assert [answer["ms"] > budget_ms for answer in certified] == [True, False]
    assert certified[0]["subject"] != certified[1]["subject"]
    assert certified[-1]["model_sha256"] == result["onnx_sha256"]
    phases = [e["data"]["phase"] for e in api.events(search) if e["type"] == "phase"]
    assert phases == [
        "searching",
        *("deriving", "training", "verifying"),
        *("deriving", "training", "verifying"),
    ]


def test_a_device_that_is_faster_than_its_model_spends_its_budget(api, measured):
    budget_ms = within_the_band(api, measured, 0.15)  # tight: the search would like to spend more
    search, _ = run_search(api, measured, budget_ms, lambda _, predicted_ms: 0.8 * predicted_ms)
    assert search["status"] == "succeeded"
    decodes = search["result"]["decodes"]
    assert decodes[0]["limit_ms"] < budget_ms  # the model thought that no more would fit
    assert decodes[1]["limit_ms"] > 1.1 * budget_ms  # and was corrected by what was measured
    used = {decode["measured_ms"] / budget_ms: decode["architecture"] for decode in decodes}
    spent, *_ = sorted((share for share in used if share <= 1.0 - HEADROOM), reverse=True)
    assert decodes[0]["measured_ms"] / budget_ms + 0.05 < spent
    assert search["result"]["network"]["architecture"] == used[spent]


def test_a_device_on_which_nothing_meets_the_budget_ends_infeasible_with_the_nearest(api, measured):
    budget_ms = middle_of_the_band(api, measured)
    search, answers = run_search(
        api, measured, budget_ms, lambda _, predicted_ms: budget_ms + predicted_ms
    )
    assert search["status"] == "infeasible"
    assert search["status_reason"]["code"] == "budget_unreachable"
    nearest = search["result"]["network"]
    nearest_ms = min(answer["ms"] for answer in answers)
    assert nearest["measured"]["median_ms"] == nearest_ms > budget_ms
    assert f"{nearest_ms:.4g} ms" in search["status_reason"]["text"]
    assert nearest["test_accuracy"] is None  # it was never trained
    assert [answer["effort"] for answer in answers] == ["table"] * len(answers)
    assert len(search["result"]["decodes"]) == len(answers) > 1
    assert "verifying" not in search["seconds_by_phase"]
    assert search["attempts"][0]["outcome"] == "succeeded"  # the job; nothing broke

    architecture = api.http.get(f"/v1/searches/{search['id']}/architecture").json()
    assert architecture["architecture"] == nearest["architecture"]
    assert architecture["within_budget"] is False
    files = api.http.get(f"/v1/searches/{search['id']}/artifacts").json()["items"]
    assert [file["name"] for file in files] == ["supernet.pt"]  # to derive other budgets from


def test_a_device_that_is_never_quiet_has_not_said_that_nothing_meets_the_budget(api, measured):
    budget_ms = middle_of_the_band(api, measured)
    search, answers = run_search(
        api,
        measured,
        budget_ms,
        lambda _, predicted_ms: budget_ms + predicted_ms,
        flagged=True,
        note="p10 is 58% below the median",
    )
    assert (search["status"], search["status_reason"]["code"]) == ("failed", "device_too_noisy")
    assert "p10 is 58% below" in search["status_reason"]["text"]
    asked = [answer["subject"] for answer in answers]
    assert {asked.count(subject) for subject in asked} == {3}


def test_a_running_search_that_is_cancelled_stops_at_its_next_step(api, measured):
    search = api.search(measured.target_id, epochs=1000)
    claim, context = api.claim(search)
    assert api.http.post(f"/v1/searches/{search['id']}/cancel").json()["status"] == "cancelling"
    run_search_job(context, claim.subject_id)
    ended = api.read(search)
    assert (ended["status"], ended["status_reason"]["code"]) == ("cancelled", "user_cancelled")
    assert [attempt["outcome"] for attempt in ended["attempts"]] == ["cancelled"]


def test_a_device_that_cannot_run_the_network_ends_the_search_failed(api, measured):
    search = api.search(measured.target_id, epochs=4)
    claim, context = api.claim(search)
    with measured.answering(lambda task: measured.failure(task, "unsupported")):
        run_search_job(context, claim.subject_id)
    ended = api.read(search)
    assert (ended["status"], ended["status_reason"]["code"]) == ("failed", "unsupported")
    assert ended["result"] is None
