"""A search that has nothing left to choose is told of, and ended early if it is to be."""

import pytest

from service.searches.tasks import run_search_job

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SPACE = "nasbench201_n1_r8_i1"


@pytest.fixture
def cells(api):
    """A device that has measured a space of cells."""
    device = api.enrol_new_target()
    api.ask_for_kit(device, SPACE)
    device.answer_everything()
    api.run_fit()
    return device


def searched(api, device, limits: dict) -> dict:
    """A search whose budget only cells of nothing and skips keep."""
    (model,) = api.latency_models(device)
    budget_ms = model["fastest_ms"] + 0.02 * (model["slowest_ms"] - model["fastest_ms"])
    search = api.search(
        device.target_id,
        budget_ms,
        search_space="nasbench201_n1",
        epochs=16,
        random_baseline=False,
        hand_made_baseline=False,
        limits=limits,
    )
    claim, context = api.claim(search)
    with device.answering():
        run_search_job(context, claim.subject_id)
    return api.read(search)


def warnings(api, search: dict) -> list[str]:
    return [e["data"]["code"] for e in api.events(search) if e["type"] == "warning"]


def test_a_collapsed_search_is_ended_when_it_was_asked_to_be(api, cells):
    search = searched(api, cells, {"stop_on_collapse": True})
    assert (search["status"], search["status_reason"]["code"]) == ("failed", "search_collapsed")
    assert "keeps an operation that learns" in search["status_reason"]["text"]
    assert [code for code in warnings(api, search) if code.startswith("collapsed_to_")]
    steps = [e["data"] for e in api.events(search) if e["type"] == "metrics"]
    assert steps[-1]["phase"] == "searching"
    assert steps[-1]["step"] < steps[-1]["total"]
    assert "deriving" not in search["seconds_by_phase"]


def test_otherwise_it_is_told_of_and_goes_on(api, cells):
    search = searched(api, cells, {})
    assert search["status"] == "succeeded"
    assert [code for code in warnings(api, search) if code.startswith("collapsed_to_")]
    assert search["result"]["health"]["collapse"]["kind"]
