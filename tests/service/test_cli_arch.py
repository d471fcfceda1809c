"""`tailor arch`: every published count, through the command line and without a server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from search_core.space.presets import get_space, space_names
from service.cli.main import app

COUNTS = json.loads(
    (Path(__file__).parents[1] / "search_core/space/published_counts.json").read_text()
)
CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|+|none~0|nor_conv_1x1~1|avg_pool_3x3~2|"


def tailor(*words):
    """What `tailor arch` answers: exit status, standard output, standard error."""
    return CliRunner().invoke(app, ["arch", *words])


def described(space, arch, *words):
    """The document of `tailor arch describe --json`."""
    ran = tailor("describe", "--space", space, "--arch", arch, "--json", *words)
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


def counts(found):
    return [found["params"], found["macs"]]


@pytest.mark.parametrize("name", COUNTS["networks"])
def test_published_networks_have_their_exact_counts(name):
    space = {"spos": "spos_imagenet", "proxyless_cifar": "proxyless_cifar_tree"}.get(
        name, "proxyless_imagenet"
    )
    found = described(space, name)
    assert found["space"] == f"{space}@1"
    assert counts(found) == COUNTS["networks"][name]
    assert sum(layer["params"] for layer in found["layers"]) == found["params"]
    assert sum(layer["macs"] for layer in found["layers"]) == found["macs"]


@pytest.mark.parametrize("name", COUNTS["layers"])
def test_every_layer_has_its_published_counts(name):
    layers = described("proxyless_imagenet", name)["layers"]
    rows = [[layer["block"], layer["params"], layer["macs"]] for layer in layers]
    assert rows == COUNTS["layers"][name]


@pytest.mark.parametrize("choice", [0, 1, 2, 3])
def test_every_choice_of_the_shuffle_space_has_its_published_counts(choice):
    layers = described("spos_imagenet", "-".join([str(choice)] * 20))["layers"]
    by_slot = [layer for layer in layers if layer["name"].startswith("stage")]
    for rows in COUNTS["spos_choices"]:
        for slot in range(rows["slots"][0], rows["slots"][1] + 1):
            assert by_slot[slot]["macs"] == rows["macs"][choice]
            assert by_slot[slot]["params"] == rows["parameters"][choice]
    fixed = [[layer["params"], layer["macs"]] for layer in layers if layer not in by_slot]
    assert fixed == list(COUNTS["spos_fixed"].values())


def test_the_extremes_of_the_shuffle_space_have_their_published_counts():
    assert counts(described("spos_imagenet", "-".join("0" * 20))) == [3_154_880, 295_842_496]
    assert counts(described("spos_imagenet", "-".join("3" * 20))) == [3_870_816, 358_825_920]


@pytest.mark.parametrize(
    ("name", "parameters_m", "macs_m"),
    [("proxyless_gpu", 7.12, 465.3), ("proxyless_mobile_14", 6.86, 580.9)],
)
def test_the_others_round_to_what_was_published(name, parameters_m, macs_m):
    found = described("proxyless_imagenet", name)
    assert (round(found["params"] / 1e6, 2), round(found["macs"] / 1e6, 1)) == (
        parameters_m,
        macs_m,
    )


def test_the_dsnas_child_is_known():
    found = described("spos_imagenet", "dsnas")
    assert found["architecture"] == "0-0-3-0-3-2-0-0-3-3-2-3-3-3-2-0-0-3-3-0"
    assert found == described("spos_imagenet", found["architecture"])


@pytest.mark.parametrize("name", ["proxyless_cpu", "proxyless_mobile", "mobilenet_v2"])
def test_a_string_that_equals_a_published_one_is_that_network(name):
    found = described("proxyless_imagenet", name)
    assert described("proxyless_imagenet", found["architecture"]) == found


def test_a_string_of_22_tokens_takes_foreign_widths():
    text = described("proxyless_imagenet", "proxyless_cpu")["architecture"].replace("c360", "c352")
    plain = described("proxyless_imagenet", text)
    assert [plain["layers"][i]["out_channels"] for i in (0, -2)] == [32, 1280]
    wide = described("proxyless_imagenet", text, "--stem-channels", "40", "--mix-channels", "1432")
    assert [wide["layers"][i]["out_channels"] for i in (0, 22, -2)] == [40, 352, 1432]


def test_a_string_of_the_space_itself_has_21_tokens():
    space = get_space("proxyless_imagenet")
    text = space.format(space.architecture([0] * 21))
    found = described("proxyless_imagenet", text)
    assert found["architecture"] == text
    assert found["macs"] == space.macs(space.parse(text))
    assert [layer["name"] for layer in found["layers"]][:4] == [
        "stem",
        "mbconv",
        "stage1.0",
        "stage1.1",
    ]


def test_a_cell_is_read_in_the_public_form_and_shown_with_its_nodes():
    found = described("nasbench201", CELL)
    assert found["architecture"] == CELL
    assert len(found["layers"]) == 1 + 15 * 6 + 2 + 2
    names = [layer["name"] for layer in found["layers"]]
    assert len(set(names)) == len(names)
    second, third = found["layers"][1:3]
    assert (second["name"], second["source"], second["target"]) == ("0->1#1", 1, 2)
    assert (third["name"], third["source"], third["target"]) == ("0->2#1", 1, 3)
    assert all(not layer["params"] for layer in found["layers"] if layer["kind"] == "skip")


def test_a_width_multiplier_is_part_of_the_name():
    narrow = described(
        "proxyless_imagenet_w0.75",
        " ".join(slot.candidates[0] for slot in get_space("proxyless_imagenet_w0.75").slots),
    )
    assert narrow["space"] == "proxyless_imagenet_w0.75@1"
    assert narrow["layers"][0]["out_channels"] == 24


def test_the_table_ends_in_the_totals():
    ran = tailor("describe", "--space", "proxyless_imagenet", "--arch", "proxyless_mobile")
    lines = ran.stdout.splitlines()
    assert lines[0].split()[-3:] == ["px", "params", "MACs"]
    assert lines[1].split() == ["stem", "conv", "3", "32", "3", "2", "224", "928", "10,838,016"]
    assert lines[-1].split() == ["total", "-", "-", "-", "-", "-", "-", "4,080,512", "320,427,584"]
    assert len(lines) == 1 + 25 + 1


@pytest.mark.parametrize(
    ("space", "arch", "complaint"),
    [
        ("marco", "k3e1c24", "no search space is called 'marco'; known: micro, nasbench201"),
        ("proxyless_imagenet", "nasnet", "published: mobilenet_v2, proxyless_cpu"),
        ("proxyless_imagenet", " ".join(["k3e3c24"] * 21 + ["k3"]), "token 21 is 'k3'"),
        ("proxyless_imagenet", " ".join(["k3e3c24"] * 21), "slot stage2.0 knows k3e3c40"),
        ("proxyless_imagenet_w0", "x", "width of proxyless_imagenet cannot be 0"),
        ("proxyless_imagenet_x2", "x", "has no variant 'x2'; it takes _w width"),
        ("proxyless_imagenet_w1.0", "x", "is written 'proxyless_imagenet'"),
        ("nasbench201_n1.5", "x", "cells_per_stage of nasbench201 cannot be 1.5"),
        ("spos_imagenet", "0-1", "writes an architecture as '0-0-0"),
        ("nasbench201", CELL.replace("none", "conv_9x9"), "slot 0->3 knows none, skip_connect"),
    ],
)
def test_what_is_not_known_is_one_line_and_a_usage_error(space, arch, complaint):
    ran = tailor("describe", "--space", space, "--arch", arch)
    assert ran.exit_code == 2
    assert ran.stdout == ""
    (line,) = ran.stderr.strip().splitlines()
    assert complaint in line


def test_widths_are_refused_where_the_string_decides_them():
    words = ("describe", "--space", "micro", "--arch", "x", "--stem-channels", "8")
    ran = tailor(*words)
    assert ran.exit_code == 2
    assert "only a string of 22 tokens of proxyless_imagenet" in ran.stderr


def test_every_space_is_listed_with_its_published_networks():
    found = {
        space["name"]: space for space in json.loads(tailor("list", "--json").stdout)["spaces"]
    }
    assert list(found) == list(space_names())
    assert found["spos_imagenet"]["published"] == ["dsnas", "spos"]
    assert found["proxyless_imagenet"]["size"] == 6**6 * 7**15
    assert found["micro"]["digest"] == get_space("micro").digest
    assert all(name in tailor("list").stdout for name in space_names())


def test_describing_loads_no_torch():
    script = (
        "import sys; from typer.testing import CliRunner; from service.cli.main import app; "
        "ran = CliRunner().invoke(app, ['arch', 'describe', '--space', 'spos_imagenet', "
        "'--arch', 'dsnas']); assert ran.exit_code == 0; print(*sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert {"torch", "numpy", "onnx"}.isdisjoint(ran.stdout.split())


def test_a_space_of_ones_own_is_described_from_its_file(tmp_path):
    guide = (Path(__file__).parents[2] / "docs" / "howto" / "own-space.md").read_text()
    path = tmp_path / "my_space.yaml"
    path.write_text(guide.split("```yaml\n")[1].split("```")[0])
    text = "mbconv_k3_e6 zero mbconv_k7_e4 sepconv_k5 zero"
    found = described(str(path), text)
    assert (found["space"], found["architecture"]) == ("my_space@1", text)
    assert [layer["name"] for layer in found["layers"]][:3] == ["stem", "stage1.0", "stage1.1"]
    path.write_text("name: 3 words here")
    ran = tailor("describe", "--space", str(path), "--arch", text)
    assert ran.exit_code == 2
    (line,) = ran.stderr.strip().splitlines()
    assert line.startswith(f"error {path}:1:1: the file lacks input, stem, stages")
