"""The report of how far files are from their network."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from search_core.errors import ExportError
from search_core.export import check_parity, onnx_bytes, parity_report, python_source


def scale_of(network, images):
    with torch.no_grad():
        return float(network(images).abs().max())


def test_every_format_of_every_family_gives_the_scores_of_the_network(exported):
    report = check_parity(exported.network, exported.files, exported.images)
    assert report.keys() == exported.files.keys()
    assert report["network.py"] == 0.0
    assert report["weights.safetensors"] == 0.0
    assert max(report.values()) < 1e-5 * scale_of(exported.network, exported.images)


ELSEWHERE = """
import sys
for name in ("search_core", "predictor", "service", "onnx", "onnxruntime", "sklearn", "scipy"):
    sys.modules[name] = None  # importing it fails
import torch
from importlib import import_module
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
sys.path.insert(0, ".")
for family in sys.argv[1:]:
    images = load_file(f"{family}/images.safetensors")["images"]
    module = import_module(f"{family}.network").load(f"{family}/weights.safetensors")
    assert not module.training
    program = torch.export.load(f"{family}/network.pt2").module()
    with torch.no_grad():
        scores = {"py": module(images), "pt2": program(images), "pt2 of one": program(images[:1])}
    save_file(scores, f"{family}/scores.safetensors")
"""


def test_the_files_work_where_there_is_no_search_core(every_family, tmp_path):
    """In a fresh interpreter that can import torch and safetensors, and nothing of ours."""
    for family, exported in every_family.items():
        folder = tmp_path / family
        folder.mkdir()
        for name, content in exported.files.items():
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        save_file({"images": exported.images}, folder / "images.safetensors")
    command = [sys.executable, "-I", "-c", ELSEWHERE, *every_family]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=100)
    for family, exported in every_family.items():
        scores = load_file(tmp_path / family / "scores.safetensors")
        with torch.no_grad():
            expected = exported.network(exported.images)
        rounding = 1e-5 * float(expected.abs().max())
        assert torch.equal(scores["py"], expected)
        assert torch.allclose(scores["pt2"], expected, atol=rounding)
        assert torch.allclose(scores["pt2 of one"], expected[:1], atol=rounding)


def test_no_file_names_the_directories_of_this_machine(exported):
    here = str(Path(__file__).parents[3]).encode()
    for content in exported.files.values():
        assert here not in (content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize("name", ["model.onnx", "weights.safetensors", "network.pt2", "network.py"])
def test_a_file_of_another_network_is_refused_by_name(every_family, name):
    exported = every_family["micro"]
    other = copy.deepcopy(exported.network)
    with torch.no_grad():
        other.layers[-1].linear.weight[:] *= 0.5
    wanted = {name: exported.files[name]}
    wanted |= {"weights.safetensors": exported.files["weights.safetensors"]}
    scale = scale_of(other, exported.images)
    assert parity_report(other, wanted, exported.images)[name] > 0.1 * scale
    with pytest.raises(ExportError, match=f"{name} differs from the network by"):
        check_parity(other, wanted, exported.images)


def test_a_difference_is_judged_by_the_scale_of_the_scores(tiny, images_of, network_of):
    network = network_of(tiny, (0, 0, 0))
    images = images_of(tiny)
    model = {"model.onnx": onnx_bytes(network)}
    scale = scale_of(network, images)
    with torch.no_grad():
        network.layers[-1].linear.bias[3] += 0.5e-3 * scale
    check_parity(network, model, images)
    with torch.no_grad():
        network.layers[-1].linear.bias[3] += 1e-3 * scale
    with pytest.raises(ExportError, match="where scores reach"):
        check_parity(network, model, images)


def test_scores_that_are_no_numbers_are_no_agreement(tiny, images_of, network_of):
    network = network_of(tiny, (0, 0, 0))
    with torch.no_grad():
        network.layers[-1].linear.bias[3] = torch.nan
    with pytest.raises(ExportError):
        check_parity(network, {"model.onnx": onnx_bytes(network)}, images_of(tiny))


def test_a_module_needs_weights_and_other_files_are_left_out(tiny, images_of, network_of):
    network = network_of(tiny, (0, 0, 0))
    with pytest.raises(ExportError, match=r"network\.py has no weights"):
        check_parity(network, {"network.py": python_source(network)}, images_of(tiny))
    assert parity_report(network, {"manifest.json": "{}"}, images_of(tiny)) == {}


def test_checking_leaves_the_network_as_it_was(tiny, images_of, network_of, identical):
    network = network_of(tiny, (0, 0, 0)).train()
    before = copy.deepcopy(network.state_dict())
    check_parity(network, {"model.onnx": onnx_bytes(network)}, images_of(tiny))
    assert network.training
    assert identical(dict(network.state_dict()), dict(before))
