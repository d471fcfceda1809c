"""Kits that stop early: networks first, then only the blocks that are needed."""

import pytest
from sqlalchemy import select

from predictor.kits import (
    N_CALIBRATION_NETWORKS,
    N_HELD_OUT_NETWORKS,
    block_items,
    block_subject,
    chains,
    subject_weights,
)
from search_core.space.presets import get_space
from service.jobs.models import Job
from service.measurements.intake import FIT_JOB
from service.measurements.priorities import block_priorities

MICRO = get_space("micro")
N_NETWORKS = N_CALIBRATION_NETWORKS + N_HELD_OUT_NETWORKS
N_BLOCK_FILES = len(block_items(MICRO))


def is_network(task) -> bool:
    return task["subject"].startswith("network:")


def read_kit(api, kit):
    return api.http.get(f"/v1/kits/{kit['id']}").json()


def active(api, device):
    return next((m for m in api.latency_models(device) if m["active"]), None)


def answer(device, n: int, factor: float = 1.0) -> list[dict]:
    tasks = device.lease(n)
    device.answer(tasks, factor)
    return tasks


def waiting_fits(api, kit) -> int:
    with api.database.reading() as session:
        fits = select(Job).where(
            Job.kind == FIT_JOB, Job.subject_id == kit["id"], Job.status == "queued"
        )
        return len(session.scalars(fits).all())


def test_a_target_like_a_known_one_needs_no_block_at_all(api_on_both):
    api = api_on_both
    known, device = api.enrol_measured(), api.enrol_new_target()
    kit = api.ask_for_kit(device, until_half_width=0.05)
    assert (kit["total"], kit["until_half_width"]) == (N_NETWORKS + N_BLOCK_FILES, 0.05)
    assert all(map(is_network, answer(device, N_NETWORKS, factor=1.7)))
    assert waiting_fits(api, kit) == 1
    api.run_fit(kit)

    model = active(api, device)
    assert model["report"]["by_transfer"]["references"] == [known.target_id]
    assert len(model["report"]["spared"]) == N_BLOCK_FILES
    assert model["held_out_error"] < 0.02
    ended = read_kit(api, kit)
    assert (ended["status"], ended["total"]) == ("measured", N_NETWORKS)
    assert device.lease() == []
    reference = active(api, known)
    assert model["slowest_ms"] == pytest.approx(1.7 * reference["slowest_ms"], rel=0.05)
    body = {"architectures": [MICRO.format(MICRO.architecture([0] * 6))]}
    told = api.http.post(f"/v1/latency-models/{model['id']}/predictions", json=body).json()
    assert "has not measured" in " ".join(told["items"][0]["warnings"])


def test_without_a_known_target_blocks_are_measured_until_it_is_enough(serve):
    with serve() as api:
        blocks_are_measured_until_it_is_enough(api)


def blocks_are_measured_until_it_is_enough(api):
    n_asked = 0
    device = api.enrol_new_target()
    kit = api.ask_for_kit(device, until_half_width=0.1)
    answer(device, N_NETWORKS)
    api.run_fit(kit)
    assert active(api, device) is None  # nothing to predict blocks from
    while active(api, device) is None:
        tasks = answer(device, 8)
        assert tasks, "it measured everything and has no model"
        n_asked += len(tasks)
        api.run_fit(kit)
    model = active(api, device)
    assert 8 <= n_asked < N_BLOCK_FILES
    assert len(model["report"]["spared"]) == N_BLOCK_FILES - n_asked
    assert model["report"]["predicted_blocks"]
    assert model["report"]["intervals"]["mean_half_width"] <= 0.1
    assert read_kit(api, kit)["status"] == "measured"


def test_what_was_spared_is_measured_when_everything_is_asked_for(api_on_both):
    api = api_on_both
    api.enrol_measured()
    device = api.enrol_new_target()
    kit = api.ask_for_kit(device, until_half_width=0.1)
    answer(device, N_NETWORKS)
    api.run_fit(kit)
    assert read_kit(api, kit)["total"] == N_NETWORKS
    whole = api.ask_for_kit(device)
    assert (whole["id"], whole["until_half_width"]) == (kit["id"], None)
    assert (whole["status"], whole["total"]) == ("measuring", N_NETWORKS + N_BLOCK_FILES)
    device.answer_everything()
    api.run_fit(kit)
    model = active(api, device)
    assert model["version"] == 2
    assert model["report"]["predicted_blocks"] == {}
    assert "spared" not in model["report"]


def test_one_fit_at_a_time_looks_whether_it_is_enough(api):
    device = api.enrol_new_target()
    kit = api.ask_for_kit(device, until_half_width=0.01)
    answer(device, N_NETWORKS - 1)
    assert waiting_fits(api, kit) == 0  # a network is open
    answer(device, 1)
    answer(device, 8)
    answer(device, 8)
    assert waiting_fits(api, kit) == 1
    api.run_fit(kit)


@pytest.mark.parametrize("width", [0.0, 0.001, 0.6, -1, "wide", float("inf")])
def test_a_width_that_is_none_is_refused(api, width):
    device = api.enrol_new_target()
    body = {"target": device.target_id, "search_space": "micro", "until_half_width": str(width)}
    refused = api.http.post("/v1/kits", json=body)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "until_half_width"


def test_a_block_that_was_too_noisy_is_predicted_instead_of_failing_the_search(api_on_both):
    api = api_on_both
    device = api.enrol_new_target()
    search = api.search(device.target_id)
    kit = api.ask_for_kit(device)
    noisy = next(layer for layer in MICRO.layers if layer.slot is not None).blocks[1]
    subjects = {block_subject(noisy, n) for n in chains(noisy)}
    while tasks := device.lease():
        bad = [task for task in tasks if task["subject"] in subjects]
        if good := [task for task in tasks if task not in bad]:
            device.answer(good)
        if bad:
            device.report(*(device.failure(task, "too_noisy") for task in bad))
    api.run_fit(kit)
    model = active(api, device)
    assert list(model["report"]["predicted_blocks"]) == [str(noisy)]
    assert api.read(search)["phase"] == "waiting_for_worker"


def test_a_search_orders_open_blocks_by_the_variance_it_would_see():
    first, second = (layer for layer in MICRO.layers if layer.slot in (0, 1))
    report = {
        "predicted_blocks": {
            str(block): {"ms": 0.01, "sigma_ms": sigma, "covered": True}
            for block, sigma in ((first.blocks[0], 0.001), (second.blocks[0], 0.002))
        }
    }
    rows = [[1 / 6] * 6 for _ in MICRO.slots]
    rows[0], rows[1] = [0.9, *[0.02] * 5], [0.1, *[0.18] * 5]
    worth = block_priorities(MICRO, report, rows)
    ranked = sorted(worth, key=worth.__getitem__, reverse=True)
    of_first = {block_subject(first.blocks[0], n) for n in chains(first.blocks[0])}
    assert set(ranked[: len(of_first)]) == of_first  # (0.9 * 0.001)^2 > (0.1 * 0.002)^2
    assert worth[block_subject(first.blocks[1], 1)] == 0.0  # measured: nothing to gain
    assert block_priorities(MICRO, {}, rows) == subject_weights(MICRO, rows)
