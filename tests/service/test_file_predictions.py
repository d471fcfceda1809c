"""Any ONNX file over HTTP: priced kernel by kernel, and read where it can do no harm."""

import gzip
import hashlib
import json
import os
import resource
import subprocess
import sys
import zlib
from contextlib import suppress

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from predictor.kits import calibration_architectures, network_item, plan_kit
from predictor.models.kernel_prices import KernelPrices
from predictor.network import NetworkLatencyModel
from predictor.onnx_kernels import read_kernels
from search_core.space.blocks import BlockSpec
from search_core.space.presets import get_space
from service.jobs import repository as jobs
from service.latency_models.repository import activate, add_model, mark_stale
from service.predictions import child
from service.predictions.files import PRICES_JOB
from service.predictions.repository import find_prices, keep_prices
from service.predictions.tasks import fit_kernel_prices

MICRO = get_space("micro")
ON_CPU = {"runtime": "onnxruntime", "execution_provider": "CPUExecutionProvider"}


def jitter(subject: str) -> float:
    """A factor within 2 % of one that depends on nothing but the subject."""
    return 1.0 + 0.04 * (zlib.crc32(subject.encode()) / 2**32 - 0.5)


def measure(subject: str) -> float:
    """What a device takes by the formula of the tests' devices, give or take 2 %."""
    kind, rest = subject.split(":", 1)
    if kind == "block":
        text, copies = rest.rsplit(":x", 1)
        blocks = [BlockSpec.parse(text)] * int(copies)
    else:
        blocks = MICRO.blocks(MICRO.parse(rest.split(":", 1)[1]))
    return jitter(subject) * (0.01 + sum(1e-3 + block.macs * 1e-8 for block in blocks))


@pytest.fixture(scope="module")
def document() -> dict:
    """Prices fitted to some files of a kit."""
    kit = plan_kit(MICRO)
    items = [
        *[i for i in kit if i.role == "calibration"][:12],
        *[i for i in kit if i.role == "block"][:20],
    ]
    graphs = [read_kernels(item.build()) for item in items]
    latency_ms = np.array([measure(item.subject) for item in items])
    is_network = [item.role != "block" for item in items]
    return KernelPrices().fit(graphs, latency_ms, is_network).to_document()


@pytest.fixture(scope="module")
def network() -> bytes:
    """A network of the kind that the prices were fitted to."""
    return network_item(MICRO, calibration_architectures(MICRO)[-1]).build()


@pytest.fixture(scope="module")
def priced(api_on_both, document) -> str:
    """A target whose prices of kernels are known."""
    target_id = api_on_both.enrol(device_model="priced", **ON_CPU).target_id
    with api_on_both.database.transaction() as session:
        keep_prices(session, target_id, document)
    return target_id


@pytest.fixture
def send(api_on_both, priced):
    """The answer to a file sent to a target, the priced one if none is named."""

    def post(content, target_id: str = priced, **headers: str):
        return api_on_both.http.post(
            f"/v1/targets/{target_id}/predictions",
            content=content,
            headers={"Content-Type": "application/octet-stream", **headers},
        )

    return post


def problem(answer, status: int, code: str) -> dict:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    return answer.json()


def file_of(nodes: list, shape: object = (1, 3, 8, 8), constants: object = ()) -> bytes:
    """A file with an input ``x`` of this shape and an output ``y`` of as many dimensions."""
    of_output = None if shape is None else ["open"] * len(shape)
    graph = helper.make_graph(
        nodes,
        "made up",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, of_output)],
        constants,
    )
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("nobody", 1)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def a_model() -> NetworkLatencyModel:
    """Any latency model of the space."""
    table = tuple((1.0,) * len(slot.candidates) for slot in MICRO.slots)
    return NetworkLatencyModel(MICRO.digest, 0.5, table, 0.05)


RELU = helper.make_node("Relu", ["x"], ["y"])


# -- what is answered ------------------------------------------------------------------


def test_a_file_is_priced_kernel_by_kernel(send, priced, network):
    found = send(network).json()
    assert (found["target"], found["sha256"]) == (priced, hashlib.sha256(network).hexdigest())
    parts_ms = [kernel["ms"] for kernel in found["kernels"]]
    assert found["call_ms"] + sum(parts_ms) == pytest.approx(found["predicted_ms"], rel=1e-12)
    expected_ms = measure(network_item(MICRO, calibration_architectures(MICRO)[-1]).subject)
    assert found["predicted_ms"] == pytest.approx(expected_ms, rel=0.25)
    assert found["low_ms"] < found["predicted_ms"] < found["high_ms"]
    assert found["level"] == 0.9
    assert len(found["kernels"]) > 10
    assert min(parts_ms) > 0
    shares = sum(kernel["share"] for kernel in found["kernels"])
    assert shares == pytest.approx(1 - found["call_ms"] / found["predicted_ms"])
    assert found["unknown_operators"] == []
    assert 0.0 < found["coverage"] <= 1.0


def test_operators_that_were_never_measured_are_listed_and_never_free(send):
    nodes = [
        helper.make_node("Erf", ["x"], ["a"], name="first"),
        helper.make_node("CumSum", ["a", "axis"], ["y"], name="second"),
    ]
    axis = numpy_helper.from_array(np.array(2, dtype=np.int64), "axis")
    found = send(file_of(nodes, constants=[axis])).json()
    assert found["unknown_operators"] == ["CumSum", "Erf"]
    assert [(k["name"], k["covered"]) for k in found["kernels"]] == [
        ("first", False),
        ("second", False),
    ]
    assert min(kernel["ms"] for kernel in found["kernels"]) > 0
    assert found["coverage"] < 1.0
    assert found["high_ms"] / found["predicted_ms"] > 1.1  # the interval says how little is known
    assert any("CumSum, Erf" in text for text in found["warnings"])


def test_an_open_batch_is_taken_for_one(send):
    open_, fixed = (send(file_of([RELU], (batch, 3, 8, 8))).json() for batch in ("n", 1))
    assert open_["kernels"] == fixed["kernels"]
    assert len(fixed["kernels"]) == 1


def test_another_runtime_or_machine_than_the_target_s_is_told(send, network):
    (warning,) = [text for text in send(network).json()["warnings"] if "the target runs" in text]
    assert "the target runs onnxruntime 1 on x86_64" in warning


def test_stale_prices_say_so(api_on_both, document, network, send):
    target_id = api_on_both.enrol(device_model="stale", **ON_CPU).target_id
    with api_on_both.database.transaction() as session:
        keep_prices(session, target_id, document)
        activate(session, add_model(session, target_id, "micro", a_model(), {}))
    assert not any("stale" in text for text in send(network, target_id).json()["warnings"])
    with api_on_both.database.transaction() as session:
        mark_stale(session, target_id, "drifted", "it drifted")
    assert "the prices are stale: it drifted" in send(network, target_id).json()["warnings"]


# -- targets that have no prices -------------------------------------------------------


def test_a_target_of_another_runtime_says_what_can_be_priced(api_on_both, send, network):
    told = problem(send(network, api_on_both.enrol_new_target().target_id), 409, "no_latency_model")
    assert "onnxruntime's CPUExecutionProvider" in told["detail"]
    assert "arithmetic none" in told["detail"]


def test_a_target_without_prices_says_what_to_do(api_on_both, send, network):
    target_id = api_on_both.enrol(device_model="unmeasured", **ON_CPU).target_id
    told = problem(send(network, target_id), 409, "no_latency_model")
    assert f"tailor measure {target_id}" in told["detail"]
    with api_on_both.database.transaction() as session:
        fit = jobs.enqueue(session, PRICES_JOB, target_id, max_attempts=1, priority=-99)
    told = problem(send(network, target_id), 409, "no_latency_model")
    assert "ask again in a minute" in told["detail"]
    with api_on_both.database.transaction() as session:
        failed = session.get_one(type(fit), fit.id)
        failed.status, failed.failure = "failed", "3 samples, and at least 20 are needed"
    told = problem(send(network, target_id), 409, "no_latency_model")
    assert "3 samples, and at least 20" in told["detail"]


def test_an_unknown_target_is_a_404(send, network):
    problem(send(network, "tgt_nobody"), 404, "not_found")


def test_prices_of_another_runtime_are_not_used(api_on_both, send, document, network):
    target_id = api_on_both.enrol(device_model="of an old runtime", **ON_CPU).target_id
    with api_on_both.database.transaction() as session:
        keep_prices(session, target_id, {**document, "runtime": "onnxruntime 0.1"})
    told = problem(send(network, target_id), 409, "conflict")
    assert "onnxruntime 0.1" in told["detail"]
    assert f"tailor measure {target_id} --again" in told["detail"]


# -- files that mean harm --------------------------------------------------------------


def elsewhere() -> bytes:
    """A file whose weights are another file of the machine that reads it."""
    weights = numpy_helper.from_array(np.ones(4, np.float32), "w")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="/etc/passwd")
    return file_of([helper.make_node("Add", ["x", "w"], ["y"])], (1, 4), [weights])


def unfolding() -> bytes:
    """A few bytes that constant folding makes 40 GB of."""
    shape = numpy_helper.from_array(np.array([100_000, 100_000], np.int64), "s")
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    return file_of(nodes, (1, 4), [shape])


NO_FILE = "ONNX file"
HARMFUL = {
    "text": (lambda _: b"not an ONNX file", NO_FILE),
    "zeros": (lambda _: bytes(1000), NO_FILE),
    "a quarter": (lambda network: network[: len(network) // 4], NO_FILE),
    "all but the end": (lambda network: network[:-100], NO_FILE),
    "bits turned": (lambda network: bytes(b ^ 0x55 for b in network), NO_FILE),
    "a page": (lambda _: b"<html></html>", NO_FILE),
    "a pickle": (lambda _: b"cos\nsystem\n(S'true'\ntR.", NO_FILE),
    "data elsewhere": (lambda _: elsewhere(), "lies in another file"),
    "an open height": (lambda _: file_of([RELU], (1, 3, "height", 8)), "is open (height)"),
    "no shape": (lambda _: file_of([RELU], None), "shape"),
    "an operator of nobody": (
        lambda _: file_of([helper.make_node("Nothing", ["x"], ["y"], domain="nobody")]),
        "Nothing",
    ),
    "no nodes": (lambda _: file_of([]), ""),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_file_that_cannot_be_read_is_a_422_and_hurts_nobody(api_on_both, send, network, name):
    make, told = HARMFUL[name]
    before = api_on_both.stored()
    refused = problem(send(make(network)), 422, "invalid_request")
    assert [error["field"] for error in refused["errors"]] == ["file"]
    assert told in refused["detail"]
    assert api_on_both.stored() == before
    assert api_on_both.http.get("/healthz").status_code == 200


def test_a_file_that_unfolds_to_forty_gigabytes_is_answered_all_the_same(api_on_both, send):
    assert send(unfolding()).status_code in (200, 422)
    assert api_on_both.http.get("/healthz").status_code == 200


def test_no_file_at_all_is_a_422(send):
    assert "send an ONNX file" in problem(send(b""), 422, "invalid_request")["detail"]


def test_a_packed_file_is_a_415(send, network):
    answer = send(gzip.compress(network), **{"Content-Encoding": "gzip"})
    problem(answer, 415, "unsupported_encoding")


def test_a_file_that_takes_too_long_is_given_up(send, network, monkeypatch):
    monkeypatch.setattr("service.predictions.files._SECONDS", 0.01)
    told = problem(send(network), 422, "invalid_request")
    assert "longer than 0.01 s" in told["detail"]


@pytest.mark.parametrize("program", ["import os; os.abort()", "import sys; sys.exit(3)"])
def test_a_reader_that_dies_is_a_422(send, network, monkeypatch, tmp_path, program):
    dying = tmp_path / "python"
    dying.write_text(f"#!{sys.executable}\n{program}\n")
    dying.chmod(0o755)
    monkeypatch.setattr("service.confined.sys.executable", str(dying))
    told = problem(send(network), 422, "invalid_request")
    assert "crash" in told["detail"]


@pytest.mark.parametrize("announced", [True, False])
def test_a_file_over_the_limit_is_a_413(serve, document, network, announced):
    with serve(max_model_bytes=len(network)) as api:
        target_id = api.enrol(**ON_CPU).target_id
        with api.database.transaction() as session:
            keep_prices(session, target_id, document)
        path = f"/v1/targets/{target_id}/predictions"
        assert api.http.post(path, content=network).status_code == 200
        content = network + b"\0"
        body = content if announced else iter([content[:1000], content[1000:]])
        told = problem(api.http.post(path, content=body), 413, "payload_too_large")
        assert str(len(network)) in told["detail"]


def test_files_may_be_larger_than_other_bodies(serve, document, network):
    with serve(max_body_bytes=1000) as api:
        target_id = api.enrol(**ON_CPU).target_id
        with api.database.transaction() as session:
            keep_prices(session, target_id, document)
        assert api.http.post(f"/v1/targets/{target_id}/predictions", content=network).is_success
        other = api.http.post("/v1/predictions", content=b" " * 2000)
        problem(other, 413, "payload_too_large")


@pytest.fixture
def reader(document, tmp_path, eventually):
    """A reader that waits for its file to be written, which it does under its limits."""
    path = tmp_path / "model.onnx"
    os.mkfifo(path)
    process = subprocess.Popen(
        [sys.executable, "-m", "service.predictions.child"], stdin=subprocess.PIPE
    )
    process.stdin.write(json.dumps({"path": str(path), "prices": document}).encode() + b"\n")
    process.stdin.flush()

    def opened() -> int | None:
        assert process.poll() is None, "it has ended"
        with suppress(OSError):  # nobody reads yet
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        return None

    file = eventually(opened, "it does not read")
    yield process
    os.close(file)
    process.stdin.close()
    process.wait(60)


def test_the_reader_has_no_more_than_it_is_given(reader):
    limits = {
        resource.RLIMIT_AS: child.MEMORY_BYTES,
        resource.RLIMIT_CPU: child.CPU_SECONDS,
        resource.RLIMIT_FSIZE: child.FILE_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        assert resource.prlimit(reader.pid, kind) == (most, most)


def test_a_reader_whose_parent_is_gone_is_gone_too(reader):
    reader.stdin.close()
    assert reader.wait(60) == 1


# -- where prices come from ------------------------------------------------------------


def test_a_measured_kit_gives_its_target_prices_of_kernels(api, network, monkeypatch):
    fitted = a_model(), {"leave_one_out": {"mape": 0.0}}  # a real fit would only take longer
    monkeypatch.setattr("service.latency_models.tasks.fit_latency_model", lambda *_, **__: fitted)
    device = api.enrol(device_model="measured", **ON_CPU)
    api.ask_for_kit(device)
    while tasks := device.lease():
        device.report(*(device.result(t, measure(t["subject"])) for t in tasks))
    api.run_fit()
    path = f"/v1/targets/{device.target_id}/predictions"
    assert api.http.post(path, content=network).status_code == 409  # not yet
    with api.database.transaction() as session:
        job = jobs.of_subject(session, device.target_id)
        assert job.available_at > job.created_at  # a search goes first
        job.available_at = job.created_at
    claim, context = api.claim()
    assert (claim.kind, claim.subject_id) == (PRICES_JOB, device.target_id)
    fit_kernel_prices(context, device.target_id)
    found = api.http.post(path, content=network).json()
    expected_ms = measure(network_item(MICRO, calibration_architectures(MICRO)[-1]).subject)
    assert found["predicted_ms"] == pytest.approx(expected_ms, rel=0.05)
    assert found["coverage"] == 1.0
    with api.database.reading() as session:
        assert jobs.of_subject(session, device.target_id).status == "succeeded"


def test_too_little_to_price_kernels_by_ends_the_job_with_the_reason(api):
    target_id = api.enrol(device_model="hardly measured", **ON_CPU).target_id
    with api.database.transaction() as session:
        jobs.enqueue(session, PRICES_JOB, target_id, max_attempts=1, priority=99)
    _, context = api.claim()
    fit_kernel_prices(context, target_id)
    with api.database.reading() as session:
        assert find_prices(session, target_id) is None
        ended = jobs.of_subject(session, target_id)
        assert ended.status == "failed"
        assert "0 samples" in ended.failure


def test_kernels_of_other_runtimes_are_not_priced(api, measured):
    with api.database.reading() as session:
        assert jobs.of_subject(session, measured.target_id) is None
