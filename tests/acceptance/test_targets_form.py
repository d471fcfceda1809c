"""A search serves its target in the target's own form: precision, batch, and what it needs next."""

import pytest
from onnx import load_from_string
from sqlalchemy import select, update

from search_core.space.presets import get_space
from service.measurements.models import MeasurementTask
from service.searches.tasks import run_search_job

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

ALONE = {"random_baseline": False, "hand_made_baseline": False}


def measured_device(api, **profile):
    """A device of a new target whose kit of `micro` is measured and fitted."""
    device = api.enrol(device_model=f"formula {profile}", **profile)
    assert api.http.post("/v1/kits", json={"target": device.target_id}).status_code == 201
    device.answer_everything()
    api.run_fit()
    return device


def succeeded(api, device):
    params = {"target": device.target_id}
    (model,) = api.http.get("/v1/latency-models", params=params).json()["items"]
    budget_ms = (model["fastest_ms"] + model["slowest_ms"]) / 2
    search = api.search(device.target_id, budget_ms, epochs=4, **ALONE)
    claim, context = api.claim(search)
    context.settings = context.settings.model_copy(update={"attempt_threads": 1})
    with device.answering():
        run_search_job(context, claim.subject_id)
    search = api.read(search)
    assert search["status"] == "succeeded", search["status_reason"]
    return search


def artifact(api, search, name):
    answer = api.http.get(f"/v1/searches/{search['id']}/artifacts/{name}")
    assert answer.status_code == 200, answer.text
    return answer


def test_the_network_of_an_int8_target_is_quantised_and_judged_as_it_is_deployed(api):
    device = measured_device(api, precision="int8")
    search = succeeded(api, device)
    deployed = load_from_string(artifact(api, search, "model.onnx").content)
    operators = {node.op_type for node in deployed.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    in_float = load_from_string(artifact(api, search, "model_float32.onnx").content)
    assert "QuantizeLinear" not in {node.op_type for node in in_float.graph.node}

    manifest = artifact(api, search, "manifest.json").json()
    assert manifest["parity"]["model_float32.onnx"] < manifest["parity"]["model.onnx"]
    with api.database.reading() as session:
        certificate = session.scalars(
            select(MeasurementTask).where(MeasurementTask.effort == "certificate")
        ).one()
    assert certificate.model_sha256 == manifest["files"]["model.onnx"]
    assert search["result"]["network"]["test_accuracy"] > 0.5


def test_the_file_of_a_target_with_a_batch_has_that_batch(api):
    device = measured_device(api, batch=4)
    search = succeeded(api, device)
    deployed = load_from_string(artifact(api, search, "model.onnx").content)
    shape = [d.dim_value for d in deployed.graph.input[0].type.tensor_type.shape.dim]
    assert shape == [4, 1, 8, 8]


def test_what_a_running_search_is_likely_to_choose_is_measured_first(api):
    """Tasks queued while a search runs go by its probabilities, not by the order they came in."""
    device = measured_device(api)
    answer = api.http.post("/v1/kits", json={"target": device.target_id, "again": True})
    assert answer.json()["status"] == "measuring"
    with api.database.transaction() as session:
        session.execute(update(MeasurementTask).values(priority=-5.0))
    search = api.search(device.target_id, epochs=4, **ALONE)
    claim, context = api.claim(search)
    context.settings = context.settings.model_copy(update={"attempt_threads": 1})
    with api.database.transaction() as session:  # nobody measures the kit meanwhile
        session.execute(
            update(MeasurementTask)
            .where(MeasurementTask.status == "queued", MeasurementTask.purpose == "kit")
            .values(only_agent_id=api.enrol(threads=7).agent_id)
        )
    with device.answering():
        run_search_job(context, claim.subject_id)
    with api.database.reading() as session:
        rows = session.scalars(
            select(MeasurementTask).where(
                MeasurementTask.status == "queued", MeasurementTask.purpose == "kit"
            )
        ).all()
    priorities = {row.subject: row.priority for row in rows if row.subject.startswith("block:")}
    space = get_space("micro")
    assert min(priorities.values()) >= 0.0
    assert sum(p for s, p in priorities.items() if s.endswith(":x1")) == pytest.approx(
        len(space.layers), rel=1e-6
    )  # what an average network holds
    likely = [s for s, p in priorities.items() if p > 0.5 and s.endswith(":x1")]
    assert len(likely) == len(space.layers)  # by its end a search has made up its mind
