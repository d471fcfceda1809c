"""The benchmark that predicts ONNX files, on a table made up from the files' own kernels."""

import json
import random
import sys

import pytest

from benchmarks import onnx_file_prediction
from predictor.errors import BadTableError
from predictor.kits import block_items, network_item
from predictor.onnx_kernels import read_kernels
from search_core.space.presets import get_space


def made_up_ms(item):
    kernels = read_kernels(item.build()).kernels
    return 0.005 + sum(0.001 + 1e-8 * k.macs + 1e-8 * k.bytes_written for k in kernels)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    space, rng = get_space("micro"), random.Random(0)
    items = [*block_items(space)[::4], *(network_item(space, space.sample(rng)) for _ in range(34))]
    path = tmp_path_factory.mktemp("tables") / "measured.csv"
    rows = [f"{item.subject},{made_up_ms(item)},0" for item in items]
    rows.append(f"{items[0].subject},1000.0,1")  # flagged, hence left out
    path.write_text("\n".join(["subject,latency_ms,flagged", *rows]) + "\n", "utf-8")
    return path


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["onnx_file_prediction", *map(str, arguments)])
    return onnx_file_prediction.main()


def test_the_last_line_says_how_good_the_predictions_are(table, tmp_path, monkeypatch, capsys):
    arguments = ["--measured", table, "--space", "micro", "--elsewhere", table]
    arguments += ["--calibration", 14, "--seeds", 1, "--json", "--out", tmp_path / "record.json"]
    assert run(monkeypatch, *arguments) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["n_held_out"] == 20
    assert found["mape_mean"] < 0.02
    assert found["within_10_mean"] == 1.0
    assert found["elsewhere"]["micro/kernel_prices"]["mape_mean"] < 0.02
    assert json.loads((tmp_path / "record.json").read_text("utf-8"))["points"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".svg"}


@pytest.mark.parametrize(
    "subject",
    ["block:nonsense:x1", "block:conv_k1_e1_s1_i8_o8_r4:x3", "network:micro@1:k9", "what:is this"],
)
def test_a_subject_that_does_not_parse_is_named_by_its_row(subject, tmp_path, monkeypatch):
    path = tmp_path / "bad.csv"
    path.write_text(f"subject,latency_ms\nblock:conv_k1_e1_s1_i8_o8_r4:x1,1.0\n{subject},1.0\n")
    with pytest.raises(BadTableError, match="row 1, column subject"):
        run(monkeypatch, "--measured", path, "--space", "micro")


def test_too_few_networks_are_refused(table, monkeypatch):
    with pytest.raises(BadTableError, match="34 networks of micro: at least 62"):
        run(monkeypatch, "--measured", table, "--space", "micro")
