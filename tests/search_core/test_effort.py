"""What a search is said to cost: laws of the sums, not seconds of this machine."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_core.effort import (
    CONVOLUTIONS,
    LOGIT_STEPS,
    UNITS,
    Effort,
    MachineProfile,
    SearchPlan,
    block_work,
    even,
    predict,
    predict_step,
    spending,
    trains_weights,
)
from search_core.errors import ProfileDocumentError, UnknownEstimatorError
from search_core.estimators.presets import ESTIMATORS
from search_core.space.blocks import BlockSpec
from search_core.space.presets import get_space, space_names


@pytest.fixture
def machine(new_profile) -> MachineProfile:
    return new_profile()


def plan(name: str = "micro", **changes: object) -> SearchPlan:
    steps = {"search_steps": 100, "warmup_steps": 20, "training_steps": 200}
    return SearchPlan(get_space(name), 1000, 200, 32, **{**steps, **changes})


def one_hot(space, choices):
    return [
        tuple(float(k == choice) for k in range(len(slot.candidates)))
        for slot, choice in zip(space.slots, choices, strict=True)
    ]


# -- work ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", space_names())
def test_every_block_is_work_that_a_profile_prices(name, machine):
    space = get_space(name)
    for block in space.distinct_blocks:
        work = block_work(block, 4)
        assert machine.price("forward", work) > 0.0, block
        convolved = sum(work.get(unit, 0.0) for unit in CONVOLUTIONS)
        linear = sum(step.macs for step in block.steps if step.primitive == "linear")
        assert convolved == 4 * (block.macs - linear)


def test_a_shortcut_is_one_more_sum():
    block = BlockSpec.parse("mbconv_k3_e3_s1_i24_o24_r8")
    bare, whole = block_work(block, 2, shortcut=False), block_work(block, 2)
    assert whole["call"] == bare["call"] + 1
    assert whole["pass"] == bare.get("pass", 0.0) + 2 * 24 * 8 * 8


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("mbconv_k5_e1_s1_i24_o24_r8", "depthwise5"),
        ("mbconv_k7_e1_s1_i24_o24_r8", "depthwise7"),
        ("conv_k3_e1_s1_i3_o16_r32", "stem"),
        ("reluconv_k3_e1_s1_i16_o16_r32", "dense"),
        ("groupconv_k3_e1_s1_i32_o64_r32", "grouped"),
        ("dilconv_k3_e1_s1_i30_o30_r32", "dilated"),
    ],
)
def test_convolutions_of_a_kind_are_kept_apart(text, unit):
    assert block_work(BlockSpec.parse(text), 1)[unit] > 0


# -- which networks --------------------------------------------------------------------


@given(
    st.lists(
        st.lists(st.floats(0.01, 10.0), min_size=1, max_size=5).map(tuple), min_size=1, max_size=6
    ),
    st.floats(0.0, 1.0),
)
def test_a_network_spends_its_budget(costs, share):
    least, most = sum(map(min, costs)), sum(map(max, costs))
    budget = least + share * (most - least)
    rows = spending(costs, budget)
    assert all(sum(row) == pytest.approx(1.0) for row in rows)
    spent = sum(
        p * t for row, ts in zip(rows, costs, strict=True) for p, t in zip(row, ts, strict=True)
    )
    assert spent == pytest.approx(budget, rel=0.02, abs=0.02 * (most - least))


def test_a_budget_out_of_reach_gives_the_cheapest_or_the_dearest():
    costs = [(1.0, 2.0, 4.0), (3.0, 1.0)]
    assert [row.index(max(row)) for row in spending(costs, 0.0)] == [0, 1]
    assert [row.index(max(row)) for row in spending(costs, 99.0)] == [2, 0]


def test_the_middle_of_even_costs_is_even():
    rows = spending([(1.0, 2.0, 3.0)] * 4, 8.0)
    assert rows[0] == pytest.approx((1 / 3, 1 / 3, 1 / 3), abs=1e-3)


# -- time ------------------------------------------------------------------------------


def test_every_estimator_is_known_and_trains_what_it_says():
    assert set(LOGIT_STEPS) == set(ESTIMATORS)
    for name, make in ESTIMATORS.items():
        assert trains_weights(name) == make().trains_weights


def test_an_unknown_estimator_is_named(machine):
    with pytest.raises(UnknownEstimatorError, match="darts"):
        predict(plan(estimator="darts"), machine)


def test_phases_are_those_of_a_search(machine):
    found = predict(plan(baseline_steps=300), machine)
    assert list(found.seconds_by_phase) == [
        "starting",
        "searching",
        "deriving",
        "training",
        "verifying",
        "comparing",
    ]
    assert found.seconds == pytest.approx(sum(found.seconds_by_phase.values()))
    assert "comparing" not in predict(plan(), machine).seconds_by_phase


def test_a_machine_twice_as_slow_takes_twice_as_long(new_profile):
    still = {"start_up_seconds": 0.0, "set_up_seconds": 0.0}
    once = predict(plan(), new_profile(1e-9, **still)).seconds
    assert predict(plan(), new_profile(2e-9, **still)).seconds == pytest.approx(2 * once)


def test_more_steps_take_longer_in_their_phase_alone(machine):
    short, long = predict(plan(), machine), predict(plan(training_steps=400), machine)
    differing = {
        phase
        for phase, seconds in short.seconds_by_phase.items()
        if seconds != long.seconds_by_phase[phase]
    }
    assert differing == {"training"}


def test_a_cheaper_network_trains_faster(machine):
    space = get_space("micro")
    small, large = (one_hot(space, [k] * len(space.slots)) for k in (0, 5))
    seconds = [predict(plan(), machine, rows).seconds_by_phase for rows in (small, large)]
    assert seconds[0]["training"] < seconds[1]["training"]
    assert seconds[0]["searching"] < seconds[1]["searching"]


@pytest.mark.parametrize("dearer", ["dsnas_paired", "proxyless", "proxyless_two_path", "reinforce"])
def test_a_method_that_runs_more_costs_more(machine, dearer):
    assert (
        predict_step(plan(), machine).logits < predict_step(plan(estimator=dearer), machine).logits
    )


def test_two_paths_cost_less_than_every_candidate(machine):
    two, all_ = (
        predict_step(plan(estimator=e), machine).logits for e in ("proxyless_two_path", "proxyless")
    )
    assert two < all_


def test_the_logits_of_a_two_level_method_may_move_less_often(machine):
    often, rarely = (
        predict(plan(estimator="proxyless", alpha_every=every), machine).seconds_by_phase
        for every in (1, 5)
    )
    assert rarely["searching"] < often["searching"]
    assert rarely["training"] == often["training"]


def test_what_no_gradient_reaches_is_not_run_backward(machine):
    space = get_space("nasbench201_n1")
    none, whole = space.slots[0].candidates.index("none"), 3
    reached = one_hot(space, [whole] * 6)
    # the node in the middle leads nowhere: its edges run forward for nothing
    cut = one_hot(space, [whole, whole, none, whole, none, none])
    running = plan("nasbench201_n1")
    forward = replace(
        machine,
        coefficients={
            **machine.coefficients,
            **{a: dict.fromkeys(UNITS[a], 0.0) for a in ("inputs", "weights")},
        },
    )
    backward = [
        predict_step(running, machine, rows).network - predict_step(running, forward, rows).network
        for rows in (reached, cut)
    ]
    alone = [predict_step(running, forward, rows).network for rows in (reached, cut)]
    assert backward[1] / alone[1] < backward[0] / alone[0]


# -- hours and memory ------------------------------------------------------------------


def test_hours_are_of_what_computes():
    effort = Effort({"searching": 1800.0, "training": 1800.0}, 1, "cpu", 4)
    assert (effort.seconds, effort.gpu_hours, effort.core_hours) == (3600.0, 0.0, 4.0)
    assert replace(effort, device="cuda").gpu_hours == 1.0


def test_an_effort_is_corrected_phase_by_phase():
    effort = Effort({"searching": 10.0, "training": 20.0}, 1, "cpu", 1)
    corrected = effort.corrected({"training": 1.5}, 3).plus({"verifying": 2.0})
    assert corrected.seconds_by_phase == {"searching": 10.0, "training": 30.0, "verifying": 2.0}
    assert (corrected.basis, corrected.n_earlier) == ("history", 3)


def test_memory_is_the_base_the_weights_and_what_a_step_keeps(machine):
    least = predict(plan(), machine).memory_bytes
    assert least > machine.base_bytes
    assert predict(replace(plan(), batch_size=128), machine).memory_bytes > least
    assert predict(replace(plan(), n_train=100_000), machine).memory_bytes > least
    space = get_space("micro")
    supernet = sum(block.parameters for layer in space.layers for block in layer.blocks)
    assert least - machine.base_bytes > 2 * 4 * supernet


# -- documents -------------------------------------------------------------------------


def test_a_profile_survives_its_document(machine):
    document = json.loads(json.dumps(machine.to_document()))
    assert MachineProfile.from_document(document) == machine


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(format="tailor-machine-profile/0"),
        lambda d: d.pop("coefficients"),
        lambda d: d["coefficients"].pop("epoch"),
        lambda d: d["coefficients"]["step"].update(call=float("nan")),
        lambda d: d["coefficients"]["step"].update(call=-1.0),
        lambda d: d.update(base_bytes="much"),
    ],
)
def test_a_damaged_document_is_refused(machine, damage):
    document = json.loads(json.dumps(machine.to_document()))
    damage(document)
    with pytest.raises(ProfileDocumentError):
        MachineProfile.from_document(document)


def test_even_is_even():
    assert all(
        sum(row) == pytest.approx(1.0) and len(set(row)) == 1 for row in even(get_space("micro"))
    )
