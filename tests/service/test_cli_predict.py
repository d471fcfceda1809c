"""`tailor predict` and `tailor models` against a served API."""

import random
from dataclasses import replace

import numpy as np
import pytest

from predictor.intervals import ConformalIntervals
from predictor.kits import calibration_architectures, network_item, plan_kit
from predictor.models.kernel_prices import KernelPrices
from predictor.network import NetworkLatencyModel, Pair
from predictor.onnx_kernels import read_kernels
from search_core.space.presets import get_space
from service.cli.models import Judged, parity
from service.latency_models.repository import activate, add_model, get_model
from service.predictions.repository import keep_prices

MICRO = get_space("micro")
FIRST = MICRO.format(MICRO.architecture([0] * 6))
SECOND = MICRO.format(MICRO.architecture([1] * 6))


def made_up(**changes: object) -> NetworkLatencyModel:
    rng = random.Random(0)

    def row(n: int) -> tuple[float, ...]:
        return tuple(rng.uniform(0.1, 1.0) for _ in range(n))

    model = NetworkLatencyModel(
        space_digest=MICRO.digest,
        offset_ms=0.5,
        table_ms=tuple(row(len(slot.candidates)) for slot in MICRO.slots),
        margin=0.05,
        pairs=(Pair(0, 1, tuple(row(6) for _ in range(6))),),
        intervals=ConformalIntervals(0.9, (), (0.1,), (0.08,), (30,)),
    )
    return replace(model, **changes)


QUALITY = {"n": 30, "mape": 0.0123, "bias": -0.004, "within_10": 0.97, "spearman": 0.991}
NETWORKS = [
    {"architecture": FIRST, "predicted_ms": 1.0 + 0.1 * i, "measured_ms": 1.1 + 0.09 * i}
    for i in range(12)
]
REPORT = {
    "leave_one_out": QUALITY,
    "held_out": {**QUALITY, "within_5": 0.9},
    "held_out_networks": NETWORKS,
    "intervals": {"level": 0.9, "coverage": 0.93, "mean_half_width": 0.041},
    "interactions": {"kept": True},
    "measurements": {"n": 117, "flagged": 3},
    "unsupported_blocks": [],
    "promotion": {"promoted": True, "reason": "it is the first"},
}


@pytest.fixture
def target(api) -> str:
    return api.enrol_new_target().target_id


@pytest.fixture
def model_of(api, target):
    """Stores a model as the active one of `target` and gives its id."""

    def store(report: dict = REPORT, **changes: object) -> str:
        with api.database.transaction() as session:
            row = add_model(session, target, "micro", made_up(**changes), report)
            activate(session, row)
            return row.id

    return store


# -- a network -------------------------------------------------------------------------


def test_a_network_is_priced_layer_by_layer(tailor, tailor_json, target, model_of):
    model_id = model_of()
    (item,) = tailor_json("predict", FIRST, "--target", target)["items"]
    ran = tailor("predict", FIRST, "--target", target)
    assert ran.status == 0
    lines = ran.out.splitlines()
    assert lines[0] == FIRST
    assert f"{item['predicted_ms']:.4g} ms predicted; 90% of measurements lie in" in lines[1]
    assert f"by {model_id} (version 1)" in lines[1]
    for slot in item["waterfall"]["slots"]:
        (line,) = [line for line in lines if line.startswith(slot["name"])]
        assert slot["layers"][0]["block"] in line
        assert f"{slot['ms']:.4g}" in line
        assert f"{slot['ms'] / item['predicted_ms']:.1%}" in line
        assert "█" in line
    assert any(line.startswith("call, fixed layers") for line in lines)
    assert any(line.startswith("between slots") for line in lines)
    assert "--what-if" in ran.err
    assert "warning" not in ran.err


def test_what_speaks_against_a_prediction_is_said(tailor, target, model_of, api):
    model_id = model_of(predicted=((1, 1), (2, 1)), outside=((2, 1),), measured_ms=(90.0, 91.0))
    with api.database.transaction() as session:
        get_model(session, model_id).stale = {"code": "drifted", "text": "it drifted", "since": ""}
    ran = tailor("predict", SECOND, "--target", target)
    warnings = [line for line in ran.err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 4
    assert "it drifted" in warnings[0]
    lines = {line.split()[0]: line for line in ran.out.splitlines()}
    assert lines["stage1.1"].rstrip().endswith("predicted")
    assert lines["stage2.0"].rstrip().endswith("extrapolated")
    assert not lines["stage2.1"].rstrip().endswith("predicted")


def test_a_network_that_does_not_run_has_no_figure(tailor, target, model_of):
    model_of(unsupported=((0, 1),))
    ran = tailor("predict", SECOND, "--target", target, "--budget-ms", 100)
    assert "the target cannot run it" in ran.out
    assert "cannot run stage1.0" in ran.err


@pytest.mark.parametrize(("factor", "told"), [(1.01, "within the budget"), (0.99, "over the")])
def test_a_budget_is_held_against_the_upper_bound(
    tailor, tailor_json, target, model_of, factor, told
):
    model_of()
    (item,) = tailor_json("predict", FIRST, "--target", target)["items"]
    budget_ms = item["upper_ms"] * factor
    assert told in tailor("predict", FIRST, "--target", target, "--budget-ms", budget_ms).out


# -- what if ---------------------------------------------------------------------------


@pytest.mark.parametrize("slot", ["stage2.0", "2"])
def test_every_candidate_of_a_slot_is_compared(tailor, tailor_json, target, model_of, slot):
    model_of()
    words = ("predict", FIRST, "--target", target, "--what-if", slot)
    (found,) = tailor_json(*words)["slots"]
    assert found["name"] == "stage2.0"
    ran = tailor(*words)
    for other in found["candidates"]:
        (line,) = [
            line
            for line in ran.out.splitlines()
            if line.split()[:2] == [found["name"], other["candidate"]]
        ]
        assert f"{other['delta_ms']:+.4g} ms" in line
        assert ("as it is" in line) == other["chosen"]


def test_every_slot_may_be_asked_for(tailor_json, target, model_of):
    model_of()
    found = tailor_json("predict", FIRST, "--target", target, "--what-if", "all")
    assert [slot["name"] for slot in found["slots"]] == [slot.name for slot in MICRO.slots]


# -- files -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def priced(api) -> str:
    """A target whose prices of kernels are known, roughly."""
    kit = [item for item in plan_kit(MICRO) if item.role != "held_out"]
    items = [*kit[:10], *kit[-10:]]
    graphs = [read_kernels(item.build()) for item in items]
    rng = np.random.default_rng(0)
    latency_ms = np.array([0.01 + sum(1e-3 + 1e-8 * k.macs for k in g.kernels) for g in graphs])
    latency_ms *= np.exp(0.01 * rng.standard_normal(len(items)))
    prices = KernelPrices().fit(graphs, latency_ms, [i.role != "block" for i in items])
    made = {"runtime": "onnxruntime", "execution_provider": "CPUExecutionProvider"}
    target_id = api.enrol(device_model="priced", **made).target_id
    with api.database.transaction() as session:
        keep_prices(session, target_id, prices.to_document())
    return target_id


def test_a_file_is_priced_kernel_by_kernel(tailor, tailor_json, priced, tmp_path):
    path = tmp_path / "network.onnx"
    path.write_bytes(network_item(MICRO, calibration_architectures(MICRO)[0]).build())
    found = tailor_json("predict", path, "--target", priced)
    ran = tailor("predict", path, "--target", priced)
    assert f"{found['predicted_ms']:.4g} ms predicted" in ran.out
    rows = [line for line in ran.out.splitlines() if "Conv" in line]
    assert len(rows) == sum("Conv" in kernel["op"] for kernel in found["kernels"]) > 5
    assert "the kernels are those of onnxruntime" in ran.err


@pytest.mark.parametrize("words", [("--what-if", "0"), ("--budget-ms", "1")])
def test_a_file_takes_no_options_of_networks(tailor, priced, words):
    ran = tailor("predict", "network.onnx", "--target", priced, *words)
    assert (ran.status, ran.out) == (2, "")
    assert "not for files" in ran.err


def test_a_file_that_is_not_there_or_no_onnx_is_one_line(tailor, priced, tmp_path):
    path = tmp_path / "network.onnx"
    for content, told in ((None, "cannot be read"), (b"hello", "invalid_request")):
        if content is not None:
            path.write_bytes(content)
        ran = tailor("predict", path, "--target", priced)
        assert (ran.status, ran.out) == (2, "")
        assert told in ran.err
        assert len(ran.err.strip().splitlines()) == 1


# -- errors that help ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((FIRST, "--space", "nowhere"), "nasbench201"),
        ((FIRST,), "tailor measure"),
    ],
)
def test_what_is_missing_is_told_in_one_line(tailor, target, words, told):
    ran = tailor("predict", *words, "--target", target)
    assert (ran.status, ran.out) == (2, "")
    (line,) = ran.err.strip().splitlines()
    assert told in line


def test_a_string_that_does_not_parse_names_the_slot(tailor, target, model_of):
    model_of()
    ran = tailor("predict", FIRST.replace("c40", "c41"), "--target", target)
    assert ran.status == 2
    assert "stage2.0 knows k3e1c40" in ran.err


# -- models ----------------------------------------------------------------------------


def test_models_are_listed_with_version_error_and_coverage(tailor, tailor_json, target, model_of):
    first, second = model_of(), model_of()
    assert [m["id"] for m in tailor_json("models", "list", "--target", target)] == [second, first]
    out = tailor("models", "list", "--target", target).out
    line = next(line for line in out.splitlines() if line.startswith(second))
    assert line.split()[2:] == ["micro", "2", "yes", "1.2%", "97%", "93%", "-"]
    line = next(line for line in out.splitlines() if line.startswith(first))
    assert line.split()[3:5] == ["1", "no"]


def test_a_model_is_shown_with_its_report(tailor, tailor_json, model_of):
    model_id = model_of()
    assert tailor_json("models", "show", model_id)["report"] == REPORT
    out = tailor("models", "show", model_id).out
    for told in (
        "1.23% error, -0.40% bias, 90% within 5 %, 97% within 10 %",
        "promise 90%, hold 93%",
        "took over: it is the first",
        "117, 3 of them flagged",
        "12 networks it never saw",
        "●",
    ):
        assert told in out
    thirds = [line.split() for line in out.strip().splitlines()[-3:]]
    assert [third[3] for third in thirds] == ["4", "4", "4"]
    assert thirds[0][1] == "1-1.3"


def test_a_report_of_version_0_1_is_shown(tailor, model_of):
    networks = [
        {"architecture": FIRST, "measured_ms": 1.0 + i, "left_out_prediction_ms": 1.1 + i}
        for i in range(4)
    ]
    model_id = model_of({"leave_one_out": QUALITY, "networks": networks}, intervals=None)
    out = tailor("models", "show", model_id).out
    assert "4 networks left out in turn" in out
    assert "1.23% error" in out
    assert "promise" not in out


def test_an_earlier_version_is_made_active(tailor, tailor_json, target, model_of):
    first, _ = model_of(), model_of()
    assert tailor_json("models", "activate", first)["active"] is True
    assert [m["active"] for m in tailor_json("models", "list", "--target", target)] == [False, True]
    assert "1, active" in tailor("models", "activate", first).out


def test_perfect_predictions_lie_on_the_diagonal():
    judged = [Judged(ms, ms) for ms in (1.0, 2.0, 3.0)]
    picture = [line.split("┤")[1] for line in parity(judged) if "┤" in line]
    points = [(line.index("●"), place) for place, line in enumerate(picture) if "●" in line]
    (right, top), (_, middle), (left, bottom) = points
    assert (left, bottom, right, top) == (0, len(picture) - 1, len(picture[0]) - 1, 0)
    assert top < middle < bottom


def test_a_prediction_too_high_lies_above_the_diagonal():
    lines = parity([Judged(2.0, 1.0), Judged(1.0, 1.0)])
    picture = [line.split("┤")[1] for line in lines if "┤" in line]
    assert picture[0][0] == picture[-1][0] == "●"


def test_from_whom_a_target_was_learnt_and_what_it_spared_is_shown(tailor, model_of):
    transfer = {
        "references": ["tgt_a", "tgt_b"],
        "nearest": "tgt_b",
        "rank_correlation": 0.62,
        "weights": {"transfer": 0.4, "analytic": 0.6, "additive": 0.0},
        "warning": "no similar device is registered",
        "additive_mape": 0.004,
    }
    report = {
        "leave_one_out": QUALITY,
        "by_transfer": transfer,
        "spared": ["block:a:x1", "block:a:x4"],
        "predicted_blocks": {"a": {}},
        "n_blocks": 39,
        "next_networks": [{"architecture": SECOND}],
    }
    lines = tailor("models", "show", model_of(report)).out
    told = " ".join(lines.split())
    assert "learnt from 2 other targets; tgt_b is nearest, rank correlation 0.62" in told
    assert "no similar device is registered" in told
    assert "spared 2 files that were not needed" in told
    assert "blocks predicted 1 of 39" in told
    assert f"would tell most {SECOND}" in told
