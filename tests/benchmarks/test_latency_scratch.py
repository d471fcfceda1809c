"""The benchmark of latency from scratch, on a table small enough to write here."""

import csv
import json
import random

import pytest

from benchmarks import latency_scratch
from predictor.errors import BadTableError
from search_core.space.presets import get_space

COLUMNS = ["arch_idx", "arch_str", "rep_arch_idx", "device_ms", "other_ms"]


@pytest.fixture
def table(tmp_path):
    """Ninety networks and ten more under the name of the first; a device that counts MACs."""
    space, rng = get_space("nasbench201_n1"), random.Random(0)
    networks = list({space.sample(rng): None for _ in range(90)})
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for number, network in enumerate(networks):
            latency_ms = 1.0 + 1e-6 * space.macs(network)
            rows.writerow([number, space.format(network), number, latency_ms, 2 * latency_ms])
        for number in range(90, 100):
            rows.writerow([number, space.format(space.sample(rng)), 0, 99.0, 99.0])
    return path


def run(monkeypatch, capsys, path, *words):
    line = ["latency_scratch", "--table", str(path), "--space", "nasbench201_n1", *words]
    monkeypatch.setattr("sys.argv", line)
    latency_scratch.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_last_line_holds_what_is_asked_for(table, monkeypatch, capsys, tmp_path):
    words = "--target device_ms,other_ms --samples 20,40 --seeds 2 --baselines --ablation --json"
    out = tmp_path / "records" / "scratch.json"
    record = run(monkeypatch, capsys, table, *words.split(), "--out", str(out))
    assert {"spearman_mean", "mape_mean", "within_10_mean"} <= set(record)
    assert set(record["targets"]) == {"device_ms", "other_ms"}
    assert set(record["targets"]["device_ms"]) == set(record["by_samples"]) == {"20", "40"}
    assert record["measured_networks"] == 90
    assert record["by_samples"]["40"]["spearman"] > 0.99
    assert set(record["baselines"]) == set(latency_scratch.BASELINES)
    assert set(record["ablation"]) == set(latency_scratch.ABLATION)
    assert json.loads(out.read_text(encoding="utf-8")) == record
    plots = {path.name for path in out.parent.glob("*.svg")}
    assert plots == {"scratch_parity.svg", "scratch_calibration.svg"}


def test_a_row_measured_as_another_is_neither_fitted_nor_asked_for(table, monkeypatch, capsys):
    words = ["--target", "device_ms", "--samples", "30", "--seeds", "1", "--json"]
    good = run(monkeypatch, capsys, table, *words)
    bad = run(monkeypatch, capsys, table, *words, "--each-row")
    assert (good["measured_networks"], bad["measured_networks"]) == (90, 100)
    assert good["mape_mean"] < 0.02 < bad["mape_mean"]


def test_a_row_measured_as_one_that_is_not_there_is_named(table):
    read = latency_scratch.read_table(table)
    read.columns["rep_arch_idx"][4] = "1234"
    with pytest.raises(BadTableError, match="row 4, column rep_arch_idx"):
        latency_scratch.measured_rows(read)


def test_a_string_that_does_not_parse_is_named(table, monkeypatch, capsys):
    text = table.read_text(encoding="utf-8").replace("nor_conv_3x3", "nor_conv_9x9")
    table.write_text(text, encoding="utf-8")
    with pytest.raises(BadTableError, match="row"):
        run(monkeypatch, capsys, table, "--target", "device_ms", "--samples", "20")


def test_more_samples_than_the_table_holds_are_refused(table, monkeypatch, capsys):
    with pytest.raises(BadTableError, match="device_ms"):
        run(monkeypatch, capsys, table, "--target", "device_ms", "--samples", "85")


def test_networks_asked_for_are_no_measured_ones_under_another_name(table):
    read = latency_scratch.read_table(table)
    networks = latency_scratch.networks_of("nasbench201_n1", read.architectures())
    case = latency_scratch.Case(networks, read.latencies_ms("device_ms"))
    for _, fitted, asked in latency_scratch.draw(case, [30], 3, "isomorphic"):
        known = {networks.digests[row] for row in fitted}
        assert not known & {networks.digests[row] for row in asked}
        assert not set(fitted) & set(asked)
