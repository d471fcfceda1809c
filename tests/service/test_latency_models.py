"""Versions of latency models: which one prices searches, and who may go back to another.

Fits are stood in for by models of a known error; `test_fits.py` has real ones.
"""

from dataclasses import replace

import pytest

from predictor.kits import held_out_architectures, network_subject
from predictor.measurements import PROTOCOL_VERSION
from predictor.network import NetworkLatencyModel
from search_core.space.presets import get_space
from service.latency_models.models import LatencyModel
from service.latency_models.promotion import judge
from service.latency_models.repository import get_model

MICRO = get_space("micro")


def formula(factor: float = 1.0, **changes: object) -> NetworkLatencyModel:
    """What the synthetic device takes, times `factor`."""
    fixed_ms, rows_ms = MICRO.slot_costs(lambda block: 1e-3 + block.macs * 1e-8)
    table_ms = tuple(tuple(factor * ms for ms in row) for row in rows_ms)
    offset_ms = factor * (0.01 + fixed_ms)
    return replace(NetworkLatencyModel(MICRO.digest, offset_ms, table_ms, 0.05), **changes)


@pytest.fixture
def fit(api_on_both, monkeypatch):
    """Measures the kit of a device, anew if need be, and fits `factor` times the formula to it."""

    def measure(device, factor: float = 1.0, slower: float = 1.0) -> dict:
        report = {"leave_one_out": {"mape": abs(factor - 1.0)}}
        fitted = formula(factor), report
        fit = "service.latency_models.tasks.fit_latency_model"
        monkeypatch.setattr(fit, lambda *_, **__: fitted)
        again = bool(api_on_both.latency_models(device))
        kit = api_on_both.ask_for_kit(device, again=again)
        device.answer_everything(slower)
        api_on_both.run_fit(kit)
        return api_on_both.latency_models(device)[0]

    return measure


@pytest.fixture
def device(api_on_both):
    """An agent of a target that nothing was measured on."""
    return api_on_both.enrol_new_target()


def active(api, device) -> dict:
    (found,) = [model for model in api.latency_models(device) if model["active"]]
    return found


def preflight(api, device) -> dict:
    body = {"target": device.target_id, "latency_budget_ms": 0.03}
    return api.http.post("/v1/searches?dry_run=true", json=body).json()


def activate(api, model: dict):
    return api.http.post(f"/v1/latency-models/{model['id']}/activate")


# -- which one prices searches ---------------------------------------------------------


def test_the_first_fit_is_version_1_and_active(api_on_both, device, fit):
    model = fit(device, 1.5)
    assert (model["version"], model["active"]) == (1, True)
    assert model["report"]["promotion"] == {
        "promoted": True,
        "reason": "it is the first model of this space on this target",
        "mape": None,
        "mape_of_active": None,
        "active": None,
    }
    assert model["versions"]["protocol"] == PROTOCOL_VERSION
    assert preflight(api_on_both, device)["latency_model"] == model["id"]


def test_a_fit_that_predicts_the_held_out_networks_worse_is_stored_and_not_active(
    api_on_both, device, fit
):
    first, worse = fit(device, 1.1), fit(device, 1.2)
    assert (worse["version"], worse["active"]) == (2, False)
    assert active(api_on_both, device)["id"] == first["id"]
    assert preflight(api_on_both, device)["latency_model"] == first["id"]
    decided = worse["report"]["promotion"]
    assert (decided["promoted"], decided["active"]) == (False, first["id"])
    assert decided["mape"] == pytest.approx(0.2)
    assert decided["mape_of_active"] == pytest.approx(0.1)
    assert "20.00%, and 10.00% is that of version 1" in decided["reason"]


def test_the_active_model_is_judged_by_what_is_measured_now(api_on_both, device, fit):
    fit(device, 1.0)
    slower = fit(device, 1.2, slower=1.5)
    assert (slower["version"], slower["active"]) == (2, True)
    assert preflight(api_on_both, device)["latency_model"] == slower["id"]
    decided = slower["report"]["promotion"]
    assert decided["mape_of_active"] == pytest.approx(1 / 3)
    assert decided["mape"] == pytest.approx(0.2)


def test_a_fit_as_good_as_the_active_model_takes_over(api_on_both, device, fit):
    fit(device, 1.1)
    again = fit(device, 1.1)
    assert (again["active"], again["report"]["promotion"]["promoted"]) == (True, True)
    assert active(api_on_both, device) == again


def test_anything_is_better_than_a_stale_model(api_on_both, device, fit):
    fit(device, 1.1)
    device.heartbeat({**api_on_both.profile_of(device), "threads": 2})
    worse = fit(device, 1.2)
    assert worse["active"]
    assert worse["report"]["promotion"]["reason"].startswith("version 1 is stale: the device has")


def test_no_version_stays_stale_when_the_reason_is_over(api_on_both, device, fit):
    fit(device)
    fit(device)
    profile = api_on_both.profile_of(device)
    device.heartbeat({**profile, "threads": 2})
    stale = [model["stale"]["code"] for model in api_on_both.latency_models(device)]
    assert stale == ["profile_changed"] * 2
    device.heartbeat(profile)
    assert [model["stale"] for model in api_on_both.latency_models(device)] == [None, None]


def test_each_target_counts_its_own_versions(api_on_both, device, fit):
    fit(device)
    fit(device)
    other = api_on_both.enrol_new_target()
    fit(other)
    assert [m["version"] for m in api_on_both.latency_models(device)] == [2, 1]
    assert [m["version"] for m in api_on_both.latency_models(other)] == [1]


# -- judging ---------------------------------------------------------------------------


HELD_OUT = held_out_architectures(MICRO)
MEASURED_MS = {network_subject(MICRO, a): formula().predict_ms(a) for a in HELD_OUT}


def stored(model: NetworkLatencyModel, **changes: object) -> LatencyModel:
    row = {"id": "lmd_1", "version": 7, "document": model.to_document(), "stale": None}
    return LatencyModel(**{**row, **changes})


def test_of_two_models_the_one_of_less_error_is_kept():
    good, bad = formula(0.9), formula(1.2)
    assert judge(MICRO, good, stored(bad), MEASURED_MS).promoted
    refused = judge(MICRO, bad, stored(good), MEASURED_MS)
    assert not refused.promoted
    assert (refused.mape, refused.mape_of_active) == pytest.approx((0.2, 0.1))
    assert f"same {len(HELD_OUT)} held-out networks" in refused.reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (stored(formula(), stale={"code": "x", "text": "it is hot"}), "version 7 is stale: it is"),
        (stored(formula(versions={"protocol": 1})), "measuring protocol 1"),
        (stored(formula(unsupported=((0, 0),))), "what the target runs has changed"),
        (stored(formula(), document={"format": "another"}), "version 7 cannot be read"),
    ],
)
def test_what_cannot_be_held_against_a_fit_makes_room_for_it(row, reason):
    decided = judge(MICRO, formula(1.2), row, MEASURED_MS)
    assert decided.promoted
    assert reason in decided.reason
    assert (decided.mape, decided.active) == (None, "lmd_1")


def test_a_single_held_out_network_judges_nobody():
    (first, *_) = MEASURED_MS.items()
    decided = judge(MICRO, formula(1.2), stored(formula()), dict([first]))
    assert decided.promoted
    assert "fewer than two" in decided.reason


# -- going back ------------------------------------------------------------------------


def test_an_admin_may_go_back_to_an_earlier_version(api_on_both, device, fit):
    first, _ = fit(device), fit(device)
    for _ in range(2):  # the second time it is active already
        answer = activate(api_on_both, first)
        assert answer.status_code == 200
        assert (answer.json()["id"], answer.json()["active"]) == (first["id"], True)
        assert active(api_on_both, device)["id"] == first["id"]
    assert preflight(api_on_both, device)["latency_model"] == first["id"]


def test_a_fit_is_held_against_the_version_that_was_gone_back_to(api_on_both, device, fit):
    first, second = fit(device, 1.2), fit(device, 1.0)
    assert second["active"]
    activate(api_on_both, first)
    third = fit(device, 1.1)
    assert (third["version"], third["active"]) == (3, True)
    assert third["report"]["promotion"]["active"] == first["id"]


def test_a_user_may_not_change_what_prices_searches(api_on_both, device, fit):
    first, second = fit(device), fit(device)
    key = api_on_both.http.post("/v1/keys", json={"name": "user", "scope": "user"}).json()
    answer = api_on_both.client(key["token"]).post(f"/v1/latency-models/{first['id']}/activate")
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert active(api_on_both, device)["id"] == second["id"]


def test_a_version_of_another_protocol_cannot_be_made_active(api_on_both, device, fit):
    first, second = fit(device), fit(device)
    with api_on_both.database.transaction() as session:
        row = get_model(session, first["id"])
        row.document = {**row.document, "versions": {"protocol": 1}}
    answer = activate(api_on_both, first)
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert f"protocol 1, and agents follow {PROTOCOL_VERSION}" in answer.json()["detail"]
    assert active(api_on_both, device)["id"] == second["id"]


def test_a_stale_version_that_is_made_active_stays_stale(api_on_both, device, fit):
    first, _ = fit(device), fit(device)
    with api_on_both.database.transaction() as session:
        get_model(session, first["id"]).stale = {"code": "drifted", "text": "t", "since": "s"}
    assert activate(api_on_both, first).json()["stale"]["code"] == "drifted"
    assert preflight(api_on_both, device)["stale"] == "t"


def test_an_unknown_model_is_a_404(api_on_both):
    assert activate(api_on_both, {"id": "lmd_nobody"}).status_code == 404


# -- reading ---------------------------------------------------------------------------


def test_errors_are_read_off_reports_of_every_version(api_on_both, device, fit):
    model = fit(device, 1.1)
    assert (model["left_out_error"], model["held_out_error"]) == (pytest.approx(0.1), None)
    with api_on_both.database.transaction() as session:
        row = get_model(session, model["id"])
        row.report = {"leave_one_out": {"mape": 0.3}, "held_out": {"mape": 0.2}}
    read = api_on_both.http.get(f"/v1/latency-models/{model['id']}").json()
    assert (read["left_out_error"], read["held_out_error"]) == (0.3, 0.2)
    assert active(api_on_both, device) == read
