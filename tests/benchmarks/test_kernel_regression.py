"""The benchmark on small tables of its own, with sizes at which its figures mean little."""

import csv
import json
from itertools import product

import numpy as np
import pytest

from benchmarks import kernel_blocks, kernel_convolutions, kernel_regression
from benchmarks.kernel_baselines import BASELINES, Rows
from benchmarks.kernel_tables import is_convolutions, read_blocks, read_convolutions
from benchmarks.tables import read_table
from predictor.errors import BadTableError, UnusableMeasurementsError
from predictor.models import block_regressor
from search_core.space.blocks import BlockSpec

SHAPES = ["batch", "in_c", "in_h", "in_w", "out_c", "kernel", "stride", "elmt_fused"]
CONVOLUTIONS = ["precision", "conv_type", *SHAPES, "latency_ms"]
MBCONV = ["expand", "kernel", "stride", "idskip", "se", "hs"]
BLOCKS = ["device", "key", "op", "input", "output", "mean_ms", "std_ms", "count", *MBCONV]
ASKED_FOR = {"mape_mean", "within_10_mean", "spearman_mean", "targets", "split", "noise_ceiling"}


def convolution_rows():
    rng = np.random.default_rng(0)
    sizes = product(
        ("fp32", "int8"), (1, 8), (16, 24, 32, 64), (7, 14, 28), (16, 32, 48, 64), (1, 3)
    )
    for precision, batch, in_c, side, out_c, kernel in sizes:
        macs = batch * in_c * out_c * (side * kernel) ** 2
        ms = (0.01 + macs / 1e9) * rng.uniform(0.95, 1.05)
        kinds = ("Regular", "Depthwise") if in_c == out_c else ("Regular",)
        for kind in kinds:
            yield [precision, kind, batch, in_c, side, side, out_c, kernel, 1, 0, ms]


def block_rows(devices=("phone_r32", "phone_r64", "tablet")):
    rng = np.random.default_rng(0)
    for device, expand, kernel, channels in product(devices, (1, 3, 6), (3, 5), (16, 24, 40)):
        side = {"phone_r32": 8, "phone_r64": 16}.get(device, 12)
        shape = f"{side}x{side}x{channels}"
        hidden = expand * channels
        macs = side**2 * (2 * hidden * channels + hidden * kernel**2)
        ms = (0.02 + macs / 1e8) * rng.uniform(0.99, 1.01)
        cells = [shape, shape, ms, 0.01 * ms, 25, hidden if "phone" in device else expand]
        yield [device, "key", "expanded_conv", *cells, kernel, 1, 1, "", ""]
    for device in devices:
        yield [device, "key", "Conv", "64x64x3", "32x32x16", 0.5, 0.01, 25, *[""] * 6]


def write(path, heading, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([heading, *rows])
    return path


@pytest.fixture
def convolutions(tmp_path):
    return write(tmp_path / "convolutions.csv", CONVOLUTIONS, convolution_rows())


@pytest.fixture
def blocks(tmp_path):
    return write(tmp_path / "blocks.csv", BLOCKS, block_rows())


@pytest.fixture(autouse=True)
def small(monkeypatch):
    trees = {"iterations": 5, "leaves": 7}
    monkeypatch.setattr(kernel_convolutions, "FULL", trees)
    monkeypatch.setattr(kernel_convolutions, "SMALLER", trees)
    monkeypatch.setattr(kernel_convolutions, "SMALLEST", trees)
    monkeypatch.setattr(kernel_blocks, "FOLDS", 2)
    monkeypatch.setattr(kernel_blocks, "FEW_SEEDS", 1)
    monkeypatch.setattr(block_regressor, "_STEPS", 5)
    monkeypatch.setattr(kernel_blocks, "PARTS", ("roofline",))
    monkeypatch.setattr(kernel_blocks, "BASELINES", {"linear": BASELINES["linear"]})


def run(capsys, *words):
    kernel_regression.main([str(word) for word in words])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_convolutions_are_held_out_at_random_and_by_what_was_never_seen(convolutions, capsys):
    figures = run(capsys, "--table", convolutions, "--json")
    assert figures.keys() >= ASKED_FOR
    assert figures["targets"].keys() == {"fp32", "int8"}
    assert figures["split"] == "random"
    assert figures["covered_share"] == 1.0
    assert figures["unseen_channels"]["covered_share"] == 0.0
    assert figures["unseen_kernel"]["mape_mean"] > figures["mape_mean"]


def test_a_test_table_is_predicted_from_the_whole_table(convolutions, tmp_path, capsys):
    rows = list(convolution_rows())
    test = write(tmp_path / "test.csv", CONVOLUTIONS, rows[::7])
    train = write(tmp_path / "train.csv", CONVOLUTIONS, [r for r in rows if r not in rows[::7]])
    out = tmp_path / "record.json"
    words = ("--table", train, "--test-table", test, "--ablation", "--json", "--out", out)
    figures = run(capsys, *words)
    assert figures["split"] == "test_table"
    assert figures["n"] == len(rows[::7])
    assert figures["ablation"].keys() > {"everything", "without corners"}
    assert json.loads(out.read_text()) == figures
    assert {path.name for path in tmp_path.glob("*.svg")} == {
        "record_parity.svg",
        "record_errors.svg",
    }


def test_the_same_convolution_twice_tells_the_noise_ceiling(tmp_path, capsys):
    rows = list(convolution_rows())
    again = [*rows[0][:-1], 1.1 * rows[0][-1]]
    table = write(tmp_path / "table.csv", CONVOLUTIONS, [*rows, again])
    ceiling = run(capsys, "--table", table, "--json")["noise_ceiling"]
    assert ceiling["repeats"] == 1
    assert ceiling["mape"] == pytest.approx(0.1, abs=0.01)


def test_blocks_are_left_out_by_block_and_by_resolution(blocks, tmp_path, capsys):
    out = tmp_path / "record.json"
    figures = run(capsys, "--table", blocks, "--json", "--baselines", "--ablation", "--out", out)
    assert figures.keys() >= ASKED_FOR
    assert figures["targets"].keys() == {"phone", "tablet"}
    assert figures["n"] == 54
    assert figures["one_of_a_kind"]["n"] == 3
    assert figures["one_of_a_kind"]["covered_share"] == 0.0
    assert figures["left_out_resolution"]["resolutions"].keys() == {"32", "64"}
    assert figures["few_blocks"].keys() == {"phone", "tablet"}
    assert figures["contradictions"]["pairs"] > 0
    assert figures["baselines"].keys() == {"linear"}
    assert figures["ablation"].keys() == {"everything", "without roofline"}
    assert len(list(tmp_path.glob("record_*.svg"))) == 3


def test_blocks_of_a_test_table_are_predicted_at_its_resolution(tmp_path, capsys):
    rows = list(block_rows())
    train = write(tmp_path / "train.csv", BLOCKS, [r for r in rows if r[0] != "phone_r64"])
    test = write(tmp_path / "test.csv", BLOCKS, [r for r in rows if r[0] == "phone_r64"])
    figures = run(capsys, "--table", train, "--test-table", test, "--json")
    assert figures["targets"].keys() == {"phone"}
    assert figures["n"] == 19
    assert figures["left_out_blocks"]["n"] == 36


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_predicts_better_than_a_constant(name):
    rng = np.random.default_rng(0)
    asked = 2.0 ** rng.uniform(10.0, 20.0, (200, 6))
    prices_ms = np.array([0.0, 0.0, 5.0, 5.0, 1.0, 1.0]) / 1e6
    latency_ms = asked @ prices_ms
    rows = Rows(asked, asked, np.array(["phone"] * 200))
    known = np.arange(200) < 150
    found = BASELINES[name](rows[known], latency_ms[known], rows[~known])
    errors = np.abs(np.log(found / latency_ms[~known]))
    constant = np.abs(np.log(np.median(latency_ms[known]) / latency_ms[~known]))
    assert errors.mean() < 0.8 * constant.mean()


def test_left_out_resolutions_can_lead(blocks, capsys):
    figures = run(capsys, "--table", blocks, "--split", "resolution", "--json")
    assert figures["split"] == "left_out_resolution"
    assert figures["targets"].keys() == {"phone"}
    assert figures["n"] == 38


def test_a_device_of_the_test_table_alone_is_refused(blocks, tmp_path, capsys):
    test = write(tmp_path / "test.csv", BLOCKS, block_rows(("watch",)))
    with pytest.raises(UnusableMeasurementsError, match="no measurements of watch"):
        run(capsys, "--table", blocks, "--test-table", test)


def test_blocks_of_a_table_are_blocks_of_the_grammar(blocks):
    table = read_blocks(read_table(blocks))
    first, last = table.blocks[0], table.blocks[-1]
    assert first.block == BlockSpec.parse("mbconv_k3_e1_s1_i16_o16_r8")
    assert last.block == BlockSpec.parse("conv_k3_e1_s2_i3_o16_r64")
    assert (table.devices[0], table.network_px[0]) == ("phone", 32)
    assert (table.devices[-1], table.network_px[-1]) == ("tablet", 0)
    assert table.sigma_ms[0] == pytest.approx(0.01 * table.latency_ms[0] / 5.0)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("mean_ms", "nan", "row 2, column mean_ms"),
        ("mean_ms", "fast", "row 2, column mean_ms"),
        ("op", "Softmax", "row 2, column op: unknown operation 'Softmax'"),
        ("input", "8x9x16", "row 2, column input"),
        ("output", "wide", "row 2, column output"),
        ("kernel", "2.5", "row 2, column kernel"),
        ("expand", "25", "row 2, column expand: 25 hidden channels are no multiple of 40"),
        ("count", "0", "row 2, column count"),
    ],
)
def test_a_wrong_cell_of_a_block_table_is_named(tmp_path, column, value, message):
    rows = list(block_rows())
    rows[2][BLOCKS.index(column)] = value
    with pytest.raises(BadTableError, match=message):
        read_blocks(read_table(write(tmp_path / "table.csv", BLOCKS, rows)))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("latency_ms", "-1", "row 2, column latency_ms"),
        ("precision", "fp12", "row 2, column precision: 'fp12' is no precision"),
        ("conv_type", "Odd", "row 2, column conv_type"),
        ("conv_type", "Depthwise", "row 2, column out_c: depthwise"),
        ("in_w", "8", "row 2, column in_w"),
        ("kernel", "0", "row 2, column kernel"),
        ("batch", "1.5", "row 2, column batch"),
    ],
)
def test_a_wrong_cell_of_a_table_of_convolutions_is_named(tmp_path, column, value, message):
    rows = [row for row in convolution_rows() if row[3] != row[6]]
    rows[2][CONVOLUTIONS.index(column)] = value
    with pytest.raises(BadTableError, match=message):
        read_convolutions(read_table(write(tmp_path / "table.csv", CONVOLUTIONS, rows)))


def test_a_table_of_something_else_is_refused(tmp_path):
    table = read_table(write(tmp_path / "table.csv", ["arch_str", "phone_ms"], [["a", 1.0]]))
    with pytest.raises(BadTableError, match="neither a table of convolutions"):
        is_convolutions(table)


def test_a_heading_in_another_unit_is_refused(tmp_path):
    heading = [*CONVOLUTIONS[:-1], "latency_us"]
    table = read_table(write(tmp_path / "table.csv", heading, convolution_rows()))
    with pytest.raises(BadTableError, match="neither a table of convolutions"):
        is_convolutions(table)
