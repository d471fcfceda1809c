"""The search quality benchmark on the bundled digits, with a handful of images and one epoch."""

import json

import pytest
import torch

from benchmarks.search_quality import MacMeter, main, reduced, summary
from predictor.network import NetworkLatencyModel
from search_core.costs import macs_cost
from search_core.data.digits import digits
from search_core.nn.network import Network
from search_core.randomness import stream
from search_core.space.micro import micro

ARMS = ["dsnas_paired+playoff", "proxyless_two_path", "random_search", "largest_macs"]


@pytest.fixture
def latency_path(tmp_path):
    """A latency model that charges MACs, so that nothing has to be measured before the start."""
    space = micro()
    cost = macs_cost(space)
    table = tuple(tuple(1e-7 * macs for macs in row) for row in cost.table)
    model = NetworkLatencyModel(space.digest, 0.01, table, margin=0.01)
    path = tmp_path / "latency.json"
    path.write_text(json.dumps({"model": model.to_document()}))
    return path


def test_arms_share_budget_and_computation_and_a_second_start_goes_on(
    tmp_path, latency_path, capsys, monkeypatch
):
    monkeypatch.setattr("benchmarks.search_quality.MEASURING_TRIES", 1)
    out = tmp_path / "record.json"
    fixed = (
        f"--dataset digits --resolution 8 --images 160 --epochs 3 --batch-size 16 --rounds 0 "
        f"--budget-shares 0.4 --out {out} --latency-model {latency_path}"
    ).split()
    main([*fixed, "--seeds", "0", "--arms", *ARMS])
    record = json.loads(out.read_text())
    assert [row["arm"] for row in record["runs"]] == ARMS
    for row in record["runs"]:
        assert row["predicted_ms"] <= row["budget_ms"] * (1 + 1e-9)
        assert row["computation_share"] == pytest.approx(1.0, abs=0.15), row["arm"]
    by_arm = {row["arm"]: row for row in record["runs"]}
    largest = by_arm["largest_macs"]["macs"]
    assert all(row["macs"] <= largest for row in record["runs"])  # this latency is MACs
    assert len(by_arm["random_search"]["playoff"]) == 4
    assert by_arm["proxyless_two_path"]["search_steps"] > 0
    assert by_arm["largest_macs"]["decision_share"] == 0.0

    capsys.readouterr()
    main([*fixed, "--seeds", "0", "1", "--arms", "largest_macs", "--rounds", "1"])
    again = json.loads(out.read_text())
    kept = {key: row for key, row in by_arm["largest_macs"].items() if "ms" not in key}
    assert [row["seed"] for row in again["runs"]] == [0] * len(ARMS) + [1]
    assert kept.items() <= again["runs"][ARMS.index("largest_macs")].items()
    assert {len(row["readings_ms"]) for row in again["runs"]} <= {0, 1}  # 0: too noisy
    assert "searching" not in capsys.readouterr().out
    main(["--report", str(out)])
    heading, *rows = capsys.readouterr().out.splitlines()[1:-2]
    assert heading.startswith("arm ")
    assert sorted(row.split()[0] for row in rows) == sorted(ARMS)

    with pytest.raises(SystemExit, match="other settings"):
        main([*fixed, "--epochs", "5"])


def test_the_meter_counts_what_the_space_counts_and_backward_by_its_mask():
    space = micro()
    architecture = space.parse("k3e1c24 k5e3c24 k3e6c40 k5e1c40 k3e3c80 k3e6c80")
    network = Network.initialised(space.graph(architecture), stream(0, "weights"))
    images = torch.zeros(2, 1, 8, 8)
    with MacMeter() as forward, torch.no_grad():
        network(images)
    assert forward.macs == 2 * space.macs(architecture)
    with MacMeter() as both:
        network(images).sum().backward()
    first = 2 * space.blocks(architecture)[0].macs  # nothing asks for the images' gradient
    assert both.macs == 3 * forward.macs - first


def test_reduced_images_are_balanced_box_averages_with_their_own_statistics():
    data = digits()
    small = reduced(data, 4, 500)
    assert small.shape == (1, 4, 4)
    assert small.n_train == 500
    assert small.n_test == data.n_test
    share = torch.bincount(data.train_labels) * 500 / data.n_train
    assert (torch.bincount(small.train_labels) - share).abs().max() < 1
    corner = data.test_images[0, 0, :2, :2].float().mean().round()
    assert small.test_images[0, 0, 0, 0] == corner
    pixels = torch.cat([batch.images for batch in small.train_batches(100)])
    assert pixels.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert pixels.std().item() == pytest.approx(1.0, abs=1e-4)


def test_summary_pairs_runs_by_seed():
    def row(arm, seed, test_accuracy):
        numbers = dict.fromkeys(
            ("budget_ms", "predicted_ms", "macs", "parameters", "computation_share", "seconds"), 1
        )
        return {
            "arm": arm,
            "seed": seed,
            "budget_share": 0.5,
            "measured_ms": None,
            "test_accuracy": test_accuracy,
            **numbers,
        }

    rows = [row("dsnas", 0, 0.5), row("dsnas", 1, 0.7), row("dsnas", 2, 0.9)]
    rows += [row("random", 1, 0.6), row("random", 0, 0.5)]
    dsnas, random = summary(rows)
    assert (dsnas["arm"], random["arm"]) == ("dsnas", "random")
    assert dsnas["test_accuracy_mean"] == pytest.approx(0.7)
    assert dsnas["test_accuracy_std"] == pytest.approx(0.2)
    gain = dsnas["differences"]["random"]
    assert gain["seeds"] == [0, 1]
    assert gain["mean"] == pytest.approx(0.05)
    assert gain["standard_error"] == pytest.approx(0.05)
    assert random["differences"] == {}
