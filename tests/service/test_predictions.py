"""Predictions over HTTP: networks of known spaces, exchanges, and what is wrong with a request."""

import json
import random
from dataclasses import replace

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error

from predictor.intervals import ConformalIntervals
from predictor.measurements import PROTOCOL_VERSION
from predictor.network import NetworkLatencyModel, Pair, Similarity
from search_core.space.presets import get_space
from service.latency_models.repository import activate, add_model, get_model

MICRO, CELLS = get_space("micro"), get_space("nasbench201_n1")
FIRST = MICRO.format(MICRO.architecture([0] * 6))
SECOND = MICRO.format(MICRO.architecture([1] * 6))


def made_up(space=MICRO, **changes: object) -> NetworkLatencyModel:
    """A model with pairs and similarities, every number another."""
    rng = random.Random(0)
    widths = [len(slot.candidates) for slot in space.slots]
    nets = [space.sample(rng).choices for _ in range(5)]

    def row(n: int) -> tuple[float, ...]:
        return tuple(rng.uniform(0.1, 1.0) for _ in range(n))

    model = NetworkLatencyModel(
        space_digest=space.digest,
        offset_ms=0.5,
        table_ms=tuple(map(row, widths)),
        margin=0.05,
        pairs=(Pair(0, 1, tuple(row(widths[1]) for _ in range(widths[0]))),),
        similarity=Similarity(0.5, tuple(nets), row(len(nets))),
        intervals=ConformalIntervals(0.9, (), (0.1,), (0.08,), (30,)),
    )
    return replace(model, **changes)


@pytest.fixture
def target(api_on_both) -> str:
    """A target without any latency model."""
    return api_on_both.enrol_new_target().target_id


@pytest.fixture
def model_of(api_on_both, target):
    """Stores a model as the active one of `target` and gives its id."""

    def store(model: NetworkLatencyModel, space=MICRO) -> str:
        with api_on_both.database.transaction() as session:
            row = add_model(session, target, space.name, model, {"leave_one_out": {"mape": 0.01}})
            activate(session, row)
            return row.id

    return store


@pytest.fixture
def asked(api_on_both, target):
    """The answer to a request for predictions with the active model."""

    def ask(*architectures: str, **changes: object):
        body = {"target": target, "architectures": architectures, **changes}
        return api_on_both.http.post("/v1/predictions", json=body)

    return ask


def problem(answer, status: int, code: str) -> dict:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    return answer.json()


def fields(answer) -> list[str]:
    return [error["field"] for error in answer.json()["errors"]]


# -- predictions -----------------------------------------------------------------------


def test_a_prediction_adds_up_and_says_what_it_rests_on(api_on_both, target, model_of, asked):
    model = made_up()
    model_id = model_of(model)
    found = asked(FIRST, SECOND).json()
    assert (found["latency_model"], found["version"], found["active"]) == (model_id, 1, True)
    assert (found["target"], found["search_space"], found["warnings"]) == (target, "micro", [])
    assert [item["architecture"] for item in found["items"]] == [FIRST, SECOND]
    for item in found["items"]:
        expected_ms = model.predict_ms(MICRO.parse(item["architecture"]))
        falls = item["waterfall"]
        parts_ms = falls["call_ms"] + sum(s["ms"] for s in falls["slots"])
        assert item["predicted_ms"] == expected_ms
        assert parts_ms + falls["interactions_ms"] == pytest.approx(expected_ms, rel=1e-14)
        assert (item["low_ms"], item["high_ms"]) == pytest.approx(
            (0.9 * expected_ms, 1.1 * expected_ms)
        )
        assert item["upper_ms"] == pytest.approx(1.08 * expected_ms)
        assert (item["level"], item["within_target"], item["warnings"]) == (0.9, None, [])
        assert item["coverage"] == {
            "is_full": True,
            "predicted_share": 0.0,
            "outside": [],
            "extrapolates": False,
        }
        assert [slot["name"] for slot in falls["slots"]] == [slot.name for slot in MICRO.slots]
    by_id = api_on_both.http.post(
        f"/v1/latency-models/{model_id}/predictions", json={"architectures": [FIRST, SECOND]}
    )
    assert by_id.json() == found


def test_a_budget_is_held_against_the_upper_bound(model_of, asked):
    model_of(made_up())
    upper_ms = asked(FIRST).json()["items"][0]["upper_ms"]
    for budget_ms, within in ((upper_ms * 1.001, True), (upper_ms * 0.999, False)):
        (item,) = asked(FIRST, target_ms=budget_ms).json()["items"]
        assert item["within_target"] is within


def test_predicting_stores_nothing(api_on_both, model_of, asked):
    model_of(made_up())
    before = api_on_both.stored()
    assert asked(FIRST).status_code == 200
    assert api_on_both.stored() == before


def test_a_model_of_version_0_1_answers_without_intervals_and_says_that_it_is_old(model_of, asked):
    table = tuple((1.0,) * len(slot.candidates) for slot in MICRO.slots)
    old = NetworkLatencyModel(MICRO.digest, 0.5, table, 0.05, versions={"protocol": 0})
    model_of(old)
    found = asked(FIRST).json()
    (warning,) = found["warnings"]
    assert f"protocol 0, and agents follow {PROTOCOL_VERSION}" in warning
    (item,) = found["items"]
    assert (item["low_ms"], item["high_ms"], item["level"]) == (None, None, None)
    assert item["upper_ms"] == pytest.approx(1.05 * item["predicted_ms"])


def test_a_stale_model_answers_and_says_why_it_is_stale(api_on_both, model_of, asked):
    model_id = model_of(made_up())
    with api_on_both.database.transaction() as session:
        get_model(session, model_id).stale = {"code": "drifted", "text": "it drifted", "since": ""}
    found = asked(FIRST).json()
    assert found["warnings"] == ["the model is stale: it drifted"]
    assert found["items"][0]["predicted_ms"] > 0


def test_an_earlier_version_says_that_another_one_is_active(api_on_both, model_of):
    first, second = model_of(made_up()), model_of(made_up(offset_ms=1.5))
    body = {"architectures": [FIRST]}
    answers = [
        api_on_both.http.post(f"/v1/latency-models/{model_id}/predictions", json=body).json()
        for model_id in (first, second)
    ]
    assert [(answer["version"], answer["active"]) for answer in answers] == [(1, False), (2, True)]
    assert [len(answer["warnings"]) for answer in answers] == [1, 0]
    before_ms, now_ms = (answer["items"][0]["predicted_ms"] for answer in answers)
    assert now_ms - before_ms == pytest.approx(1.0)


def test_what_was_not_measured_is_flagged_in_every_answer(model_of, asked):
    model_of(made_up(predicted=((0, 1), (2, 1)), outside=((2, 1),), measured_ms=(1.0, 1.1)))
    measured, guessed = asked(FIRST, SECOND).json()["items"]
    assert {slot["measured"] for slot in measured["waterfall"]["slots"]} == {True}
    assert [slot["measured"] for slot in guessed["waterfall"]["slots"]].count(False) == 2
    assert [slot["in_range"] for slot in guessed["waterfall"]["slots"]].count(False) == 1
    assert not guessed["coverage"]["is_full"]
    assert guessed["coverage"]["outside"] == [MICRO.slots[2].name]
    assert guessed["coverage"]["predicted_share"] > 0.0
    assert guessed["coverage"]["extrapolates"]
    assert len(guessed["warnings"]) == 3


def test_a_network_that_the_target_cannot_run_has_no_latency(model_of, asked):
    model_of(made_up(unsupported=((3, 1),)))
    runs, refused = asked(FIRST, SECOND, target_ms=1e5).json()["items"]
    assert (runs["predicted_ms"] > 0, runs["within_target"]) == (True, True)
    assert (refused["predicted_ms"], refused["upper_ms"]) == (None, None)
    assert refused["within_target"] is False
    assert [slot["supported"] for slot in refused["waterfall"]["slots"]].index(False) == 3
    assert f"cannot run {MICRO.slots[3].name}" in refused["warnings"][0]


def test_a_degenerate_network_is_told_as_such(model_of, asked):
    model_of(made_up(CELLS), CELLS)
    nothing = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    dangling = "|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|"
    items = asked(nothing, dangling, search_space=CELLS.name).json()["items"]
    assert [item["degenerate"] for item in items] == [True, False]
    assert "does not depend on its input" in items[0]["warnings"][0]
    assert len(items[1]["dead"]) == 3
    assert {layer["block"].split("_")[0] for layer in items[1]["dead"]} == {"reluconv"}


# -- what is wrong with a request ------------------------------------------------------


def test_every_string_that_does_not_parse_is_named(model_of, asked):
    model_of(made_up())
    bad = SECOND.replace(SECOND.split()[2], "k3e1c7")
    answer = asked(FIRST, "k3e1", SECOND, bad)
    told = problem(answer, 422, "invalid_request")
    assert fields(answer) == ["architectures.1", "architectures.3"]
    assert "needs 6 tokens, got 1" in told["errors"][0]["message"]
    assert MICRO.slots[2].name in told["errors"][1]["message"]
    assert "k3e1c7" in told["errors"][1]["message"]
    assert "and 1 more" in told["detail"]


def test_a_target_without_a_model_says_how_to_have_it_measured(target, asked):
    told = problem(asked(FIRST), 409, "no_latency_model")
    assert f"tailor measure {target} --space micro" in told["detail"]


def test_an_unknown_target_and_an_unknown_space_are_404s(asked):
    assert "tgt_nobody" in problem(asked(FIRST, target="tgt_nobody"), 404, "not_found")["detail"]
    unknown = asked(FIRST, search_space="nowhere")
    assert "nasbench201" in problem(unknown, 404, "not_found")["detail"]  # the known ones
    assert fields(unknown) == ["search_space"]


def test_an_unknown_model_is_a_404(api_on_both):
    for action, body in (
        ("predictions", {"architectures": [FIRST]}),
        ("what-if", {"architecture": FIRST}),
    ):
        answer = api_on_both.http.post(f"/v1/latency-models/lmd_nobody/{action}", json=body)
        problem(answer, 404, "not_found")


def test_a_model_of_another_edition_of_its_space_is_a_409(model_of, asked, api_on_both):
    model_id = model_of(replace(made_up(), space_digest="d" * 64))
    body = {"architectures": [FIRST]}
    answer = api_on_both.http.post(f"/v1/latency-models/{model_id}/predictions", json=body)
    assert "another edition of micro" in problem(answer, 409, "conflict")["detail"]


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": []},
        {"architectures": [FIRST] * 101},
        {"architectures": FIRST},
        {"architectures": [1, None, True]},
        {"architectures": [[FIRST]]},
        {"architectures": [""]},
        {"architectures": ["k" * 5000]},
        {"architectures": [f"{FIRST}\0"]},
        {"architectures": ["\ud800"]},
        {"architectures": ["{}", "{0.__class__}"]},
        {"target_ms": float("nan")},
        {"target_ms": float("inf")},
        {"target_ms": 0.0},
        {"target_ms": -1.0},
        {"target_ms": "soon"},
        {"target_ms": 1e300},
        {"target": None},
        {"search_space": ["micro"]},
        {"of": "which nobody knows"},
    ],
)
def test_a_wrong_request_is_a_422_that_names_the_field(api_on_both, model_of, target, changes):
    model_of(made_up())
    before = api_on_both.stored()
    content = json.dumps({"target": target, "architectures": [FIRST], **changes})
    answer = api_on_both.http.post(
        "/v1/predictions", content=content, headers={"Content-Type": "application/json"}
    )
    problem(answer, 422, "invalid_request")
    (name,) = changes
    assert all(field.startswith(name) for field in fields(answer))
    assert api_on_both.stored() == before


def test_predictions_need_a_key(api_on_both, target):
    stranger = api_on_both.client()
    for path in (
        "/v1/predictions",
        "/v1/latency-models/lmd_nobody/predictions",
        "/v1/latency-models/lmd_nobody/what-if",
        f"/v1/targets/{target}/predictions",
    ):
        assert stranger.post(path, content=b"{}").status_code == 401


# -- exchanges -------------------------------------------------------------------------


def test_an_exchange_is_the_prediction_of_the_changed_network(api_on_both, model_of, asked):
    model_id = model_of(made_up())
    path = f"/v1/latency-models/{model_id}/what-if"
    whole = api_on_both.http.post(path, json={"architecture": FIRST}).json()
    assert [slot["name"] for slot in whole["slots"]] == [slot.name for slot in MICRO.slots]
    for slot in whole["slots"][:2]:
        changed = []
        for other in slot["candidates"]:
            tokens = FIRST.split()
            tokens[slot["slot"]] = other["candidate"]
            changed.append(" ".join(tokens))
        predicted = [item["predicted_ms"] for item in asked(*changed).json()["items"]]
        assert [other["predicted_ms"] for other in slot["candidates"]] == predicted
        assert [other["delta_ms"] for other in slot["candidates"]] == pytest.approx(
            [ms - whole["predicted_ms"] for ms in predicted], abs=1e-15
        )
        assert [other["chosen"] for other in slot["candidates"]] == [True, *[False] * 5]
    for named in (3, MICRO.slots[3].name):
        alone = api_on_both.http.post(path, json={"architecture": FIRST, "slot": named}).json()
        assert alone["slots"] == whole["slots"][3:4]


@pytest.mark.parametrize("slot", [6, -1, 10**9, "nowhere", "", True, 1.5, [0], "\0"])
def test_a_slot_that_the_space_does_not_have_is_a_422(api_on_both, model_of, slot):
    path = f"/v1/latency-models/{model_of(made_up())}/what-if"
    answer = api_on_both.http.post(path, json={"architecture": FIRST, "slot": slot})
    problem(answer, 422, "invalid_request")
    assert fields(answer)[0].startswith("slot")


def test_an_architecture_that_does_not_parse_is_a_422(api_on_both, model_of):
    path = f"/v1/latency-models/{model_of(made_up())}/what-if"
    answer = api_on_both.http.post(path, json={"architecture": "k3e1"})
    problem(answer, 422, "invalid_request")
    assert fields(answer) == ["architecture"]


# -- what the description of the API gives rise to -------------------------------------


@pytest.mark.parametrize(
    "route",
    [
        "/v1/predictions",
        "/v1/latency-models/{model_id}/predictions",
        "/v1/latency-models/{model_id}/what-if",
    ],
)
def test_cases_made_from_the_openapi_description_are_answered(api, route):
    device = api.enrol_new_target()
    with api.database.transaction() as session:
        row = add_model(
            session, device.target_id, "micro", made_up(), {"leave_one_out": {"mape": 0.0}}
        )
        activate(session, row)
    schema = schemathesis.openapi.from_url(f"{api.url}/openapi.json")
    operation = schema[route]["POST"]
    before = api.stored()
    asked: list[int] = []

    @settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=25,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(
        case=st.one_of(
            *[operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]
        ),
        known=st.booleans(),
    )
    def send(case, known):
        if known and "model_id" in case.path_parameters:
            case.path_parameters["model_id"] = row.id
        response = case.call(headers={"Authorization": f"Bearer {api.admin_key}"})
        asked.append(response.status_code)
        case.validate_response(response, checks=[not_a_server_error])

    send()
    assert len(asked) >= 20
    assert api.stored() == before
