"""`tailor demo`, as a newcomer runs it: every process real, and nothing left afterwards."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest
from safetensors.numpy import load_file

from search_core.data.digits import digits
from search_core.space.presets import get_space

pytestmark = [pytest.mark.slow, pytest.mark.alone]  # it measures this machine

MAX_SECONDS = 900  # not the promise (that is a benchmark's), only an end to waiting


def run_demo(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TAILOR_HOME": str(home), "TAILOR_CALIBRATE": "true"}
    environment.pop("OMP_NUM_THREADS", None)  # which only `make` sets
    return subprocess.run(
        [sys.executable, "-m", "service.cli", "demo", "--json", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=MAX_SECONDS,
        check=False,
    )


def processes_of(home: Path) -> list[psutil.Process]:
    def belongs(process: psutil.Process) -> bool:
        try:
            return process.environ().get("TAILOR_HOME") == str(home)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False

    return [process for process in psutil.process_iter() if belongs(process)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "home"


@pytest.fixture(scope="module")
def finished(home):
    return run_demo(home)


@pytest.fixture(scope="module")
def document(finished):
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return json.loads(finished.stdout)


@pytest.fixture(scope="module")
def files(document):
    return {Path(path).name: Path(path) for path in document["files"]}


def test_the_demo_keeps_the_promise(document):
    assert document["status"] == "succeeded"
    assert document["measured_ms"] <= document["budget_ms"]
    assert document["fastest_ms"] < document["budget_ms"] < document["slowest_ms"]
    assert document["test_accuracy"] >= 0.93
    assert document["random_baseline_accuracy"] is not None


def test_the_demo_tells_the_effort_before_the_search(document):
    assert document["predicted_seconds"] == pytest.approx(
        sum(document["predicted_seconds_by_phase"].values())
    )
    phases = {"searching", "deriving", "training", "verifying", "comparing"}
    assert phases <= set(document["predicted_seconds_by_phase"])
    effort = document["search"]["feasibility"]["effort"]
    assert (effort["gpu_hours"], effort["basis"]) == (0.0, "model")
    assert effort["memory_bytes"] > 0


def test_the_architecture_is_one_of_the_space_and_its_counts_are_right(document):
    space = get_space("micro")
    architecture = space.parse(document["architecture"])
    network = document["search"]["result"]["network"]
    assert network["macs"] == space.macs(architecture)
    assert network["parameters"] == space.parameters(architecture)


def test_the_onnx_file_is_the_one_measured_and_is_as_accurate_as_said(document, files):
    model = files["model.onnx"].read_bytes()
    sha256 = hashlib.sha256(model).hexdigest()
    manifest = json.loads(files["manifest.json"].read_text())
    assert sha256 == manifest["files"]["model.onnx"] == manifest["result"]["onnx_sha256"]
    data = digits()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    mean, std = manifest["preprocessing"]["mean"], manifest["preprocessing"]["std"]
    right = 0
    for image, label in zip(data.test_images.numpy(), data.test_labels.numpy(), strict=True):
        pixels = ((image.astype(np.float32) - mean) / std).astype(np.float32)[None]
        right += int(session.run(None, {"input": pixels})[0].argmax() == label)
    # ties aside, the file's accuracy is the network's
    assert abs(right / len(data.test_labels) - document["test_accuracy"]) <= 2 / 360


def test_the_weights_hold_every_parameter(document, files):
    tensors = load_file(files["weights.safetensors"])
    trainable = [t for n, t in tensors.items() if n.endswith(("weight", "bias"))]
    counted = document["search"]["result"]["network"]["parameters"]
    assert sum(t.size for t in trainable) == counted


def test_nothing_is_left_running(document, home):
    assert processes_of(home) == []


def test_a_second_demo_refuses_an_impossible_budget_and_says_what_is_possible(document, home):
    refused = run_demo(home, "--budget-ms", "0.0001")
    problem = json.loads(refused.stdout)
    assert refused.returncode == 3
    assert problem["code"] == "budget_unreachable"
    assert problem["errors"][0]["field"] == "latency_budget_ms"
    assert problem["fastest_ms"] > 0.0001
    assert processes_of(home) == []
