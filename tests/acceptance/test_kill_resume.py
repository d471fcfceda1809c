"""Killing an attempt or a worker costs a search nothing but time: real processes, real SIGKILL."""

from contextlib import suppress

import psutil
import pytest

pytestmark = pytest.mark.slow

EPOCHS = 9  # of which three search
TERMINAL = {"succeeded", "infeasible", "failed", "cancelled"}
PATIENCE = {"seconds": 300.0, "pause_seconds": 0.2}  # only an end to waiting


@pytest.fixture(scope="module")
def lease_seconds() -> float:
    """Short: there is always somebody to take over."""
    return 3.0


@pytest.fixture(scope="module")
def device(installation, working, eventually):
    """An agent of a measured target that answers whatever it is asked."""
    enrolled = installation.enrol_with_kit()
    with enrolled.answering():
        with working():
            eventually(lambda: latency_models(installation), "no latency model", **PATIENCE)
        yield enrolled


def latency_models(installation) -> list[dict]:
    return installation.http.get("/v1/latency-models").json()["items"]


def new_search(installation, device) -> dict:
    """A search of the spec that all of them share."""
    (model,) = latency_models(installation)
    budget_ms = (model["fastest_ms"] + model["slowest_ms"]) / 2
    spec = {"epochs": EPOCHS, "seed": 5, "random_baseline": False, "hand_made_baseline": False}
    return installation.search(device.target_id, budget_ms, **spec)


def finished(installation, search: dict, eventually) -> dict:
    """The search once it has ended, which must be well."""

    def ended() -> dict | None:
        found = installation.read(search)
        return found if found["status"] in TERMINAL else None

    found = eventually(ended, "the search goes on", **PATIENCE)
    assert found["status"] == "succeeded", found["status_reason"]
    measured_ms = found["result"]["network"]["measured"]["median_ms"]
    assert measured_ms <= found["spec"]["latency_budget_ms"]
    return found


@pytest.fixture(scope="module")
def unbroken(installation, device, working, eventually) -> dict:
    """The same search with nobody killed."""
    search = new_search(installation, device)
    with working():
        found = finished(installation, search, eventually)
    assert outcomes(found) == ["succeeded"]
    assert warnings(installation, found) == []
    return found


def outcomes(search: dict) -> list[str]:
    return [attempt["outcome"] for attempt in search["attempts"]]


def warnings(installation, search: dict) -> list[str]:
    events = installation.events(search)
    return [event["data"]["code"] for event in events if event["type"] == "warning"]


def reports(installation, search: dict, phase: str) -> int:
    """How often the search has reported progress in a phase."""
    events = installation.events(search)
    return sum(e["type"] == "metrics" and e["data"]["phase"] == phase for e in events)


def attempt_of(worker: psutil.Process) -> psutil.Process:
    (attempt,) = [c for c in worker.children() if "service.attempt" in c.cmdline()]
    return attempt


def is_gone(found: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return found.status() == psutil.STATUS_ZOMBIE
    return True


@pytest.fixture(scope="module")
def battered(installation, device, working, unbroken, eventually) -> dict:
    """The same search, its attempt killed while it searched, its worker while it trained."""
    search = new_search(installation, device)

    def wait_for_reports(phase: str, n: int) -> None:
        enough = f"not {n} reports of {phase}"
        eventually(lambda: reports(installation, search, phase) >= n, enough, **PATIENCE)

    with working() as worker:
        wait_for_reports("searching", 2)
        attempt_of(worker).kill()
        wait_for_reports("training", 1)
        attempt = attempt_of(worker)
        worker.kill()
        eventually(lambda: is_gone(attempt), "the attempt has outlived its worker")
    with working():
        return finished(installation, search, eventually)


def test_a_search_succeeds_although_its_attempt_and_its_worker_are_killed(battered):
    assert outcomes(battered) == ["crashed", "worker_lost", "succeeded"]


def test_each_attempt_goes_on_from_the_last_checkpoint(installation, battered):
    # the last one finds the search over, and the child begun
    assert warnings(installation, battered) == [
        *("crashed", "resumed"),
        *("worker_lost", "resumed", "resumed"),
    ]


def test_a_search_that_was_killed_twice_finds_the_same_network(battered, unbroken):
    """Not alike but equal: the resumed runs took the very same steps."""
    mine, other = battered["result"]["network"], unbroken["result"]["network"]
    assert mine["architecture"] == other["architecture"]
    assert mine["test_accuracy"] == other["test_accuracy"]
    assert battered["result"]["onnx_sha256"] == unbroken["result"]["onnx_sha256"]


def test_events_stay_numbered_densely_whoever_is_killed(installation, unbroken, battered):
    for search in (unbroken, battered):
        numbers = [event["number"] for event in installation.events(search)]
        assert numbers == list(range(1, len(numbers) + 1))


def test_the_files_of_a_search_are_those_its_manifest_names(installation, unbroken):
    files = installation.http.get(f"/v1/searches/{unbroken['id']}/artifacts").json()["items"]
    hashes = {file["name"]: file["sha256"] for file in files}
    assert set(hashes) == {
        "manifest.json",
        "manifest.sig.json",
        "model.onnx",
        "network.pt2",
        "network.py",
        "supernet.pt",  # for others to start from
        "weights.safetensors",
    }
    url = next(file["url"] for file in files if file["name"] == "manifest.json")
    manifest = installation.http.get(url).json()
    apart = {"manifest.json", "manifest.sig.json", "supernet.pt"}
    assert manifest["files"] == {n: h for n, h in hashes.items() if n not in apart}
    assert manifest["parity"].keys() == manifest["files"].keys()
    assert manifest["result"]["network"] == unbroken["result"]["network"]
