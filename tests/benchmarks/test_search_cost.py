"""The cost benchmarks, at a size where their figures mean nothing: what they print and write."""

import csv
import json
from xml.etree import ElementTree as ET

import pytest
import torch

from benchmarks import cost_growth, search_cost
from benchmarks.step_cases import Bench, at_resolution, repeated, sampled, saved_bytes
from search_core.estimators.presets import ESTIMATORS
from search_core.space.presets import get_space

ASKED_FOR = {
    "dsnas_step_ratio",
    "proxyless_weight_ratio",
    "proxyless_two_path_ratio",
    "proxyless_recompute_ratio",
    "proxyless_schedule_ratio",
    "saved_bytes_ratio",
    "candidates_growth_ratio",
    "plain_vs_naive_ratio",
}


def test_the_last_line_holds_every_figure_and_the_record_what_it_is_made_of(tmp_path, capsys):
    out = tmp_path / "record.json"
    words = f"--space micro --batch 8 --paths 1 --repeats 2 --quick --out {out}".split()
    search_cost.main(words)
    printed = capsys.readouterr().out
    figures = json.loads(printed.splitlines()[-1])
    assert figures.keys() > ASKED_FOR
    assert all(value > 0.0 for value in figures.values())
    assert figures["saved_bytes_growth_ratio"] == pytest.approx(1.0, abs=0.01)  # logits, too
    two_levels = figures["proxyless_weight_ratio"] + figures["proxyless_two_path_ratio"] / 5
    assert figures["proxyless_schedule_ratio"] == pytest.approx(two_levels, abs=2e-4)
    for meaning in ("DSNAS step", "two-path logits step", "naive PyTorch step"):
        assert meaning in printed
    record = json.loads(out.read_text())
    assert record["figures"] == figures
    assert record["command"].startswith("python -m benchmarks.search_cost --space micro")
    assert record["details"]["milliseconds"].keys() == {"plain", "naive", "weight", *ESTIMATORS}
    assert set(record["details"]["saved_bytes_ratio"]) == {"weight", *ESTIMATORS} - {"reinforce"}

    search_cost.main([*words, "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line).keys() == figures.keys()


def test_the_profile_adds_up():
    shares = search_cost.profiles(Bench(get_space("micro"), 4))
    for name in ("plain", "dsnas", "proxyless_two_path", "proxyless"):
        parts = {part: share for part, share in shares[name].items() if part != "aten_calls"}
        assert sum(parts.values()) == pytest.approx(1.0, abs=0.01)
        assert parts["convolution backward"] > 0.0
        assert shares[name]["aten_calls"] > 100


@pytest.mark.parametrize("kind", ["search", "plain"])
def test_resident_memory_leaves_out_what_the_run_owns(capsys, kind):
    words = f"--space micro --batch 16 --threads 1 --resident {kind}".split()
    before = torch.get_num_threads()
    search_cost.main(words)
    torch.set_num_threads(before)
    assert json.loads(capsys.readouterr().out)["bytes"] > 2**20


def test_a_path_costs_the_same_among_any_number_of_copies():
    space = at_resolution(get_space("proxyless_cifar_mb"), 16)
    architecture = sampled(space, 1)[0]
    blocks = [str(block) for block in space.blocks(architecture)]
    for n in (1, 4):
        many = repeated(space, architecture, n)
        path = many.architecture([n - 1] * len(space.slots))
        assert [str(block) for block in many.blocks(path)] == blocks
        assert [len(slot.candidates) for slot in many.slots] == [n] * len(space.slots)


def test_saved_bytes_leave_out_weights_and_count_a_storage_once():
    layer = torch.nn.Linear(3, 3)
    x = torch.randn(4, 3)

    def step():  # keeps x, read twice, and both outputs
        (layer(x) * layer(x)).sum()

    assert saved_bytes(step, layer) == 3 * 4 * 3 * 4


def test_growth_is_a_table_a_picture_and_exponents(tmp_path, capsys):
    out = tmp_path / "growth"
    words = ["--curves", "layers", "candidates", "--resolution", "16", "--batch", "2"]
    cost_growth.main([*words, "--quick", "--space", "proxyless_cifar_mb", "--out", str(out)])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found.keys() == {"layers", "candidates"}
    assert found["layers"].keys() == set(cost_growth.STEPS)
    rows = list(csv.DictReader(out.with_suffix(".csv").read_text().splitlines()))
    assert len(rows) == 2 * 2 * len(cost_growth.STEPS)
    kept = {
        (row["curve"], row["x"]): int(row["saved_bytes"]) for row in rows if row["step"] == "dsnas"
    }
    assert kept["candidates", "3"] == pytest.approx(kept["candidates", "12"], rel=1e-3)
    assert kept["layers", "4"] > 1.5 * kept["layers", "2"]
    root = ET.parse(out.with_suffix(".svg")).getroot()
    assert root.tag.endswith("svg")
    assert len(list(root.iter("{http://www.w3.org/2000/svg}use"))) >= len(rows)
