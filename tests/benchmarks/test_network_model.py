"""What judges the latency model."""

import csv
from argparse import Namespace

import pytest

from benchmarks.measure_space import COLUMNS, draw_networks
from benchmarks.network_model import (
    _wide_space,
    fit_cost,
    noise,
    own_target,
    reached,
    read_rounds,
    relaxation,
)
from predictor.kits import block_subject, chains, network_subject
from search_core.space.presets import get_space

MICRO = get_space("micro")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two rounds over `micro` on an additive device; the second is 2 % slower for networks."""

    def block_ms(block):
        return 0.002 + 2e-7 * block.macs

    path = tmp_path_factory.mktemp("measured") / "measured.csv"
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for number, slower in enumerate((1.0, 1.02)):
            latency_ms = {
                block_subject(b, n): 0.01 + n * block_ms(b)
                for b in MICRO.distinct_blocks
                for n in chains(b)
            }
            for a in draw_networks(MICRO, 100, 0):
                latency_ms[network_subject(MICRO, a)] = slower * (
                    0.02 + sum(map(block_ms, MICRO.blocks(a)))
                )
            for subject, ms in latency_ms.items():
                row = {"round": number, "subject": subject, "latency_ms": ms}
                table.writerow({**row, "sigma_ms": 0.0, "flagged": 0, "seconds": 0.5})
    return path


def arguments(path):
    return Namespace(measured=path, space="micro", calibration=40, out=None)


def test_an_additive_device_is_predicted_and_only_rounds_differ(measured):
    found = own_target(arguments(measured))
    assert found["n"] == 60
    assert found["mape"] < 1e-4
    assert found["rounds"] == 2
    assert found["noise"]["mape_of_a_round"] == pytest.approx(0.02, abs=0.0005)
    assert found["ablation"]["without calibration (block sums)"]["mape"] > 0.05
    assert found["baselines"]["gradient boosting"]["mape"] > found["mape"]


def test_the_noise_ceiling_is_told_by_rounds_of_networks_alone(measured):
    rounds = read_rounds(measured)
    blocks = {s: by for s, by in rounds.items() if s.startswith("block:")}
    assert noise(blocks) == {}
    assert noise({s: {0: by[0]} for s, by in rounds.items()}) == {}


def test_the_relaxation_equals_the_mean_of_drawn_architectures():
    found = relaxation(n_slots=5, width=3, n_networks=4)
    assert found["largest_gap"] < 1e-3
    assert found["swap_gradient_error_ms"] < 1e-9


def test_the_space_that_is_timed_has_the_blocks_it_says():
    assert len(_wide_space(1000).distinct_blocks) >= 1000
    assert fit_cost(n_blocks=80, n_networks=20)["blocks"] >= 80


def test_what_was_not_looked_at_is_neither_reached_nor_missed():
    assert reached({}) == {}
    told = {"largest_gap": 0.1, "swap_gradient_error_ms": 0.0, "expected_with_gradient_ms": 1.0}
    found = reached({"relaxation": told, "fit": {"seconds": 1.0}})
    assert found == {
        "relaxation_gap": False,
        "swap_gradient_error": True,
        "expected_ms": True,
        "fit_seconds": True,
    }
