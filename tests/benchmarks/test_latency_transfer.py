"""The benchmark on a table of its own: FBNet strings, devices that sum costs of their choices."""

import csv
import json
from argparse import Namespace
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from benchmarks import latency_transfer
from benchmarks.table_spaces import networks_of
from benchmarks.tables import read_table
from predictor.errors import BadTableError
from search_core.errors import UnknownSpaceError

N_NETWORKS = 300


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rng = np.random.default_rng(0)
    choices = rng.integers(0, 9, (N_NETWORKS, 22))
    texts = ["-".join(map(str, row)) for row in choices]
    networks = networks_of("fbnet", texts)
    macs, launches = (
        networks.features[:, networks.feature_names.index(name)]
        for name in ("dense MACs", "launches")
    )
    columns = {"op_idx": texts}
    for name, (a, b) in {"a": (9, 1), "b": (5, 5), "c": (1, 9), "x": (7, 3), "y": (2, 8)}.items():
        noise = np.exp(0.01 * rng.standard_normal(N_NETWORKS))
        columns[name] = (a * macs / macs.mean() + b * launches / launches.mean()) * noise
    path = tmp_path_factory.mktemp("table") / "devices.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def run(table, capsys, words):
    words = f"--table {table} --space fbnet --source-samples 60 --seeds 2 --json {words}"
    latency_transfer.main(words.split())
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


def test_the_last_line_holds_every_target_and_the_means(table, capsys):
    found = run(table, capsys, "--sources a,b,c --targets x,y --samples 10")
    assert found["targets"].keys() == {"x", "y"}
    for target in found["targets"].values():
        assert target["spearman"] > 0.9
        assert target["within_10"] > 0.9
        assert 0.6 < target["coverage"] <= 1.0
        assert sum(target["weights"].values()) == pytest.approx(1.0)
    for name in ("spearman", "mape", "within_10", "coverage"):
        each = [target[name] for target in found["targets"].values()]
        assert found[f"{name}_mean"] == pytest.approx(np.mean(each))


def test_targets_see_no_latency_but_their_samples(table, tmp_path, capsys):
    """Predictions are the same whatever the table says of the other networks of the target."""
    read = read_table(table)
    networks = networks_of("fbnet", read.architectures())
    measured = read.latencies_ms("x")
    sources = np.arange(60)
    references = latency_transfer.References().fit(
        {
            name: latency_transfer.Measured(
                networks.choices[sources],
                networks.features[sources],
                read.latencies_ms(name)[sources],
            )
            for name in "abc"
        }
    )
    encoded = references.encode(networks.choices, networks.features)
    everything = np.arange(N_NETWORKS)
    rows = latency_transfer.Rows(sources, everything, everything)
    arguments = Namespace(samples=10, protocol="nasflat")
    rest = (0, arguments, networks.degenerate)
    one = latency_transfer._run(references, encoded, rows, measured, *rest)
    hidden = np.full_like(measured, 1.0)
    hidden[one.rows] = measured[one.rows]
    other = latency_transfer._run(references, encoded, rows, hidden, *rest)
    np.testing.assert_array_equal(one.predicted.latency_ms, other.predicted.latency_ms)


def test_held_out_networks_were_measured_nowhere(table, capsys, monkeypatch):
    seen = []
    real = latency_transfer._run

    def spy(references, encoded, rows, *rest):
        result = real(references, encoded, rows, *rest)
        seen.append((rows.sources, result.rows, result.test))
        return result

    monkeypatch.setattr(latency_transfer, "_run", spy)
    run(table, capsys, "--sources a,b,c --targets x --samples 10 --protocol heldout")
    assert len(seen) == 2
    for sources, measured, test in seen:
        assert len(test) >= N_NETWORKS - 70
        assert not set(test) & (set(sources) | set(measured))


def test_baselines_ablation_and_plots_stand_beside_the_record(table, capsys, tmp_path):
    out = tmp_path / "record.json"
    words = f"--sources a,b,c --targets x --samples 12 --baselines --ablation --out {out}"
    found = run(table, capsys, words)
    assert {"macs", "analytic", "additive", "gradient boosting", "mlp"} <= found["baselines"].keys()
    assert found["ceiling"]["x"]["spearman"] > found["baselines"]["additive"]["spearman"]
    assert found["ablation"]["everything"]["spearman"] == pytest.approx(found["spearman_mean"])
    assert "without any reference" in found["ablation"]
    assert json.loads(out.read_text()) == found
    assert found["ablation"]["without proposals"].keys() == found["ablation"]["everything"].keys()
    for kind in ("parity", "calibration", "ablation"):
        assert ET.parse(out.with_name(f"record_{kind}.svg")).getroot().tag.endswith("svg")


def test_helps_protocol_drops_the_fastest_and_slowest_tenth():
    measured = np.random.default_rng(0).permutation(1000).astype(float) + 1.0
    kept = latency_transfer._trimmed(np.arange(1000), measured)
    assert len(kept) == 800
    assert (measured[kept].min(), measured[kept].max()) == (101.0, 900.0)


def test_helps_protocol_needs_its_rows(table, capsys):
    with pytest.raises(BadTableError, match="needs 5000 rows, the table has 300"):
        run(table, capsys, "--sources a,b --targets x --protocol help")


def test_what_cannot_be_asked_is_refused_by_name(table, capsys):
    with pytest.raises(BadTableError, match="no column nowhere"):
        run(table, capsys, "--sources a,b --targets nowhere")
    for words, text in (
        ("--sources a,b --targets b", "its own sources"),
        ("--sources a,b", "--targets"),
    ):
        with pytest.raises(SystemExit):
            run(table, capsys, words)
        assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("space", "texts"),
    [
        ("fbnet", ["-".join("8" * 22), "-".join("8" * 21)]),
        ("fbnet", ["-".join("8" * 22), "-".join("9" * 22)]),
        ("fbnet", ["-".join("8" * 22), ""]),
        (
            "nasbench201",
            [
                "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
                "|conv~0|+|none~0|none~1|+|none~0|none~1|none~2|",
            ],
        ),
    ],
)
def test_strings_that_do_not_parse_name_their_row(space, texts):
    with pytest.raises(BadTableError) as caught:
        networks_of(space, texts)
    assert caught.value.row == 1


def test_unknown_spaces_are_refused():
    with pytest.raises(UnknownSpaceError):
        networks_of("no_such_space", ["0"])


def test_fbnet_counts_what_its_blocks_compute():
    """One k3_e1 block on 32 x 32 pixels with 16 channels; the stage changes cost a skip 1 x 1."""
    skips = networks_of("fbnet", ["8" + "-8" * 21, "0" + "-8" * 21])
    column = dict(zip(skips.feature_names, skips.features.T, strict=True))
    dense, depthwise = column["dense MACs"], column["depthwise MACs"]
    assert dense[1] - dense[0] == 2 * 16 * 16 * 32**2
    assert depthwise[1] - depthwise[0] == 9 * 16 * 32**2
    assert column["launches"][1] - column["launches"][0] == 3
    channels_px = [(16, 24, 32), (24, 32, 16), (32, 64, 8), (64, 112, 8), (112, 184, 4)]
    channels_px.append((184, 352, 4))
    assert dense[0] == sum(i * o * px**2 for i, o, px in channels_px)
