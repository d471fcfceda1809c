"""The Python client against a served API."""

import hashlib
import socket
import threading

import pytest

from service.artifacts import ArtifactStore
from service.client.client import Client
from service.client.errors import (
    ApiError,
    ApiUnreachableError,
    SearchCancelledError,
    SearchFailedError,
    SearchInfeasibleError,
    SearchTimeoutError,
)
from service.searches.lifecycle import end
from service.searches.models import SearchArtifact
from service.searches.repository import append_event, get_search


@pytest.fixture(scope="module")
def client(api):
    with Client(api.url, api.admin_key) as session:
        yield session


@pytest.fixture
def patience(monkeypatch) -> None:
    """A client that gives up soon."""
    monkeypatch.setattr("service.client.retrying.PATIENCE_SECONDS", 0.2)


def spec(measured, **changes: object) -> dict:
    return {"target": measured.target_id, "latency_budget_ms": 0.03, **changes}


def test_a_client_follows_the_road_to_a_search(client, api):
    code = client.create_enrolment_code()
    assert len(code.code) == 14
    device = api.enrol_new_target()
    assert device.target_id in [target.id for target in client.targets()]
    assert client.target(device.target_id).agents_online == 1
    kit = client.create_kit(device.target_id, "micro")
    assert client.kit(kit.id).status == "measuring"
    assert client.active_latency_model(device.target_id, "micro") is None
    device.answer_everything()
    assert client.kit(kit.id).status == "measured"
    api.run_fit()
    model = client.active_latency_model(device.target_id, "micro")
    budget_ms = (model.fastest_ms + model.slowest_ms) / 2
    wanted = {"target": device.target_id, "latency_budget_ms": budget_ms}
    assert client.preflight(**wanted).feasible is True
    search = client.create_search(**wanted)
    assert client.search(search.id) == search
    assert client.cancel_search(search.id).status == "cancelled"


def test_a_client_predicts_without_measuring(client, measured):
    model = client.active_latency_model(measured.target_id, "micro")
    assert client.latency_model(model.id) == model
    networks = ["k3e1c24 k3e1c24 k3e1c40 k3e1c40 k3e1c80 k3e1c80"] * 2
    found = client.predict(measured.target_id, "micro", networks, target_ms=1.0)
    assert [item.within_target for item in found.items] == [True, True]
    assert client.predict_with(model.id, networks, target_ms=1.0) == found
    whole, alone = client.what_if(model.id, networks[0]), client.what_if(model.id, networks[0], 2)
    assert alone.slots == whole.slots[2:3]
    assert whole.predicted_ms == found.items[0].predicted_ms
    assert client.activate_latency_model(model.id) == model
    with pytest.raises(ApiError) as refused:
        client.predict_file(measured.target_id, b"no file")
    assert refused.value.code == "no_latency_model"  # it does not run onnxruntime


def test_a_creation_with_a_key_creates_one_search(client, measured):
    made = [client.create_search(idempotency_key="mine", **spec(measured)) for _ in range(2)]
    assert made[0].id == made[1].id
    assert client.create_search(**spec(measured)).id != made[0].id


def test_pages_are_turned_until_the_last(client, api, measured):
    made = [api.search(measured.target_id, seed=seed)["id"] for seed in range(53)]
    found = [search.id for search in client.searches("queued")]
    assert len(found) == len(set(found))
    assert [search_id for search_id in found if search_id in set(made)] == made[::-1]


def test_a_problem_is_an_error_with_its_code_and_fields(client, measured):
    with pytest.raises(ApiError, match="fastest") as raised:
        client.create_search(**spec(measured, latency_budget_ms=0.001))
    assert (raised.value.status, raised.value.code) == (422, "budget_unreachable")
    assert raised.value.problem["errors"][0]["field"] == "latency_budget_ms"
    assert raised.value.problem["fastest_ms"] > 0.001


def test_a_budget_that_is_no_number_is_a_problem_of_the_api(client, measured):
    for call in (client.create_search, client.preflight):
        with pytest.raises(ApiError) as raised:
            call(**spec(measured, latency_budget_ms=float("nan")))
        assert raised.value.problem["errors"][0]["field"] == "latency_budget_ms"


def test_a_client_without_a_key_is_told_so(api):
    with Client(api.url, None) as stranger, pytest.raises(ApiError) as raised:
        stranger.targets()
    assert (raised.value.status, raised.value.code) == (401, "unauthenticated")


def test_a_silent_address_is_unreachable(patience):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        Client(f"http://127.0.0.1:{port}", "tlr_x") as alone,
        pytest.raises(ApiUnreachableError, match="tailor api"),
    ):
        alone.targets()


def test_events_are_followed_until_the_search_has_ended(client, api, measured):
    search = client.create_search(**spec(measured))
    followed = client.events(search.id)
    assert next(followed).type == "status"
    with api.database.transaction() as session:
        append_event(session, search.id, "warning", {"code": "tested"})
    assert next(followed).data == {"code": "tested"}
    client.cancel_search(search.id)
    assert [event.data["status"] for event in followed] == ["cancelled"]


def test_events_after_one_that_was_seen_are_not_repeated(client, measured):
    search = client.create_search(**spec(measured))
    client.cancel_search(search.id)
    assert [event.number for event in client.events(search.id, after=1)] == [2]


def test_waiting_returns_the_search_once_it_has_ended(client, measured):
    search = client.create_search(**spec(measured))
    canceller = threading.Timer(0.1, client.cancel_search, [search.id])
    canceller.start()
    assert client.wait(search.id, timeout_seconds=60).status == "cancelled"
    canceller.join()


def test_waiting_too_long_is_an_error_and_the_search_goes_on(client, measured):
    search = client.create_search(**spec(measured))
    with pytest.raises(SearchTimeoutError, match="queued"):
        client.wait(search.id, timeout_seconds=0)
    assert client.search(search.id).status == "queued"


def test_files_are_listed_and_downloaded(client, api, measured):
    search = client.create_search(**spec(measured))
    sha256 = ArtifactStore(api.settings.resolved_artifacts_url).put(b"onnx")
    row = SearchArtifact(
        search_id=search.id, name="model.onnx", sha256=sha256, size_bytes=4, media_type="x/y"
    )
    with api.database.transaction() as session:
        session.add(row)
    (listed,) = client.artifacts(search.id).items
    assert (listed.name, listed.sha256, listed.size_bytes) == ("model.onnx", sha256, 4)
    assert client.download(search.id, "model.onnx") == b"onnx"


def test_the_architecture_of_an_ended_search_is_typed(client, api, measured):
    search = client.create_search(**spec(measured))
    network = {
        "architecture": "k3e1c24 k3e1c24 k3e1c40 k3e1c40 k3e1c80 k3e1c80",
        "predicted_ms": 0.0214,
        "measured": None,
        "test_accuracy": None,
        "parameters": 1,
        "macs": 1,
    }
    result = {"network": network, "decodes": [], "frozen_slots": 0, "onnx_sha256": "0" * 64}
    with api.database.transaction() as session:
        row = get_search(session, search.id, lock=True)
        end(session, row, "infeasible", code="budget_unreachable", result=result)
    found = client.architecture(search.id)
    assert found.architecture == network["architecture"]
    assert found.within_budget is False
    assert len(found.layer_ms) == 6
    assert found.layers[0].startswith("conv_k3")
    assert sum(found.layer_ms) < found.predicted_ms


def test_keys_are_made_listed_and_revoked(client, api):
    made = client.create_key("a program", "user")
    listed = client.keys()
    assert made.id in [key.id for key in listed]
    client.revoke_key(made.id)
    with Client(api.url, made.token) as revoked, pytest.raises(ApiError, match="revoked"):
        revoked.targets()


def test_agents_are_read_drained_resumed_and_revoked(client, api):
    device = api.enrol_with_kit()
    assert client.agent(device.agent_id).online
    assert client.drain_agent(device.agent_id).draining
    assert device.lease() == []
    assert not client.resume_agent(device.agent_id).draining
    assert len(device.lease(1)) == 1
    assert [task.subject for task in client.agent(device.agent_id).leased]
    client.revoke_agent(device.agent_id)
    assert client.agent(device.agent_id).revoked_at is not None


def test_a_code_may_bring_a_space(client):
    made = client.create_enrolment_code("micro")
    assert (made.search_space, made.measure_path) == ("micro", f"/measure/{made.code}")


def test_the_files_of_a_kit_are_listed_and_downloaded(client):
    manifest = client.kit_manifest("micro")
    sha256 = manifest["anchor_sha256"]
    assert hashlib.sha256(client.kit_file(sha256)).hexdigest() == sha256
    with pytest.raises(ApiError, match="no kit has a file"):
        client.kit_file("0" * 64)


def test_measurements_are_read_page_by_page(client, api):
    device = api.enrol_with_kit()
    api.ask_for_kit(device)
    device.answer_everything()
    api.ask_for_kit(device, again=True)
    device.answer_everything()
    found = list(client.measurements(device.target_id))
    assert len(found) == 2 * client.create_kit(device.target_id, "micro").total > 200
    assert len({measurement.id for measurement in found}) == len(found)


# -- searches --------------------------------------------------------------------------


def test_searches_are_paused_resumed_and_waited_for(client, measured):
    search = client.create_search(**spec(measured))
    assert client.pause_search(search.id).status == "paused"
    assert client.resume_search(search.id).status == "queued"
    client.cancel_search(search.id)
    assert client.wait(search.id, timeout_seconds=60).status == "cancelled"
    with pytest.raises(SearchCancelledError, match=r"is cancelled: Cancelled while") as raised:
        client.wait(search.id, timeout_seconds=60, check=True)
    assert raised.value.search.id == search.id


@pytest.mark.parametrize(
    ("status", "error"), [("infeasible", SearchInfeasibleError), ("failed", SearchFailedError)]
)
def test_each_bad_end_has_its_error(client, api, measured, status, error):
    search = client.create_search(**spec(measured))
    with api.database.transaction() as session:
        end(session, get_search(session, search.id, lock=True), status, code="t", text="So it is.")
    with pytest.raises(error, match="So it is"):
        client.wait(search.id, timeout_seconds=60, check=True)


def test_a_change_is_made_of_what_the_search_has_become_meanwhile(client, api, measured):
    """Somebody else changes the search between each reading and its change, twice."""
    search = client.create_search(**spec(measured, tags={"mine": "1"}))
    rivals = iter(["one", "two"])

    class Rival:
        """Tags that are read just before they are sent."""

        def items(self):
            return {"late": "2"}.items()

        def keys(self):
            if rival := next(rivals, None):
                with api.database.transaction() as session:
                    row = get_search(session, search.id, lock=True)
                    row.tags = {**row.tags, rival: "x"}
            return {"late": "2"}.keys()

        def __getitem__(self, name: str) -> str:
            return {"late": "2"}[name]

    changed = client.tag_search(search.id, Rival())
    assert changed.tags == {"mine": "1", "one": "x", "two": "x", "late": "2"}
    assert client.tag_search(search.id, {"one": None, "two": None}).tags == {
        "mine": "1",
        "late": "2",
    }
    assert client.update_search(search.id, tags={}, priority=4).tags == {}
    archived = client.update_search(search.id, archived=True)
    assert (archived.priority, archived.archived_at is not None) == (4, True)


def test_many_searches_are_found_compared_and_acted_on(client, measured):
    made = [client.create_search(**spec(measured, seed=n, tags={"lot": "7"})) for n in range(3)]
    ids = [search.id for search in made]
    assert [s.id for s in client.searches(tags={"lot": "7"}, oldest_first=True)] == ids
    assert client.compare(ids).differs == {"seed": [0, 1, 2]}
    done = client.bulk("cancel", [*ids, "srch_nobody"])
    assert [item.done for item in done.items] == [True, True, True, False]
    assert [s.id for s in client.searches("cancelled", tags={"lot": "7"})] == ids[::-1]


def test_searches_are_made_from_one_that_has_ended(client, api, measured):
    search = client.create_search(**spec(measured, epochs=8))
    with api.database.transaction() as session:
        for name in ("supernet.pt", "manifest.json"):
            row = {"sha256": "0" * 64, "size_bytes": 1, "media_type": "a/b"}
            session.add(SearchArtifact(search_id=search.id, name=name, **row))
        end(session, get_search(session, search.id, lock=True), "succeeded", code="tested")
    clone = client.clone_search(search.id, seed=5)
    assert clone.spec == search.spec.model_copy(update={"seed": 5})
    assert client.extend_search(search.id, epochs=4).spec.epochs == 12
    assert client.extend_search(search.id, limits={"wall_minutes": 9}).spec.limits.wall_minutes == 9
    assert len(client.derive(search.id, budgets_ms=[0.03, 0.04]).spec.targets) == 2
    assert len(client.derive(search.id, points=4, train_epochs=1).spec.targets) == 4
    again = [client.reproduce_search(search.id, idempotency_key="once") for _ in range(2)]
    assert again[0].id == again[1].id
    lineage = client.lineage(search.id)
    assert {clone.id, again[0].id} < set(lineage.children)
    assert client.front(search.id).items == []
    with pytest.raises(ApiError, match="budgets_ms or points"):
        client.derive(search.id)
