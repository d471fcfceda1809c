"""Searches paused, cancelled, out of time, gone on with: real processes, a device by formula."""

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

pytestmark = pytest.mark.slow

TERMINAL = {"succeeded", "infeasible", "failed", "cancelled"}
PATIENCE = {"seconds": 300.0, "pause_seconds": 0.05}  # only an end to waiting
BUDGET_MS = 0.03
SPEC = {
    "epochs": 18,  # of which six search
    "train_epochs": 12,
    "seed": 5,
    "random_baseline": False,
    "hand_made_baseline": False,
}


@dataclass
class Bench:
    """A device that answers by formula, certificates only while they are let through."""

    installation: object
    device: object
    eventually: object
    lets_certify: threading.Event = field(default_factory=threading.Event)

    def answer(self, task: dict) -> dict:
        if task["effort"] == "certificate":
            self.lets_certify.wait()
        return self.device.by_formula(task)

    @contextmanager
    def held_up(self):
        """Meanwhile, no certificate is answered."""
        self.lets_certify.clear()
        try:
            yield
        finally:
            self.lets_certify.set()

    def search(self, **spec: object) -> dict:
        return self.installation.search(self.device.target_id, BUDGET_MS, **{**SPEC, **spec})

    def ask(self, search: dict, action: str, body: dict | None = None) -> dict:
        answer = self.installation.http.post(f"/v1/searches/{search['id']}/{action}", json=body)
        assert answer.is_success, answer.text
        return answer.json()

    def read(self, search: dict) -> dict:
        return self.installation.read(search)

    def wait(self, search: dict, found, otherwise: str) -> dict:
        """The search as soon as `found` says so of it."""

        def look() -> dict | None:
            now = self.read(search)
            assert now["status"] != "failed", now["status_reason"]
            return now if found(now) else None

        return self.eventually(look, otherwise, **PATIENCE)

    def reached(self, search: dict, phase: str) -> dict:
        """The search when it is in a phase, and has reported from it where it does."""
        reports = phase in ("searching", "training")
        return self.wait(
            search,
            lambda now: now["phase"] == phase and (now["progress"] is not None or not reports),
            f"it is not {phase}",
        )

    def in_status(self, search: dict, status: str) -> dict:
        return self.wait(search, lambda now: now["status"] == status, f"it is not {status}")

    def ended(self, search: dict) -> dict:
        return self.wait(search, lambda now: now["status"] in TERMINAL, "it goes on")

    def succeeded(self, search: dict) -> dict:
        found = self.ended(search)
        assert found["status"] == "succeeded", found["status_reason"]
        return found

    def artifact(self, search: dict, name: str):
        return self.installation.http.get(f"/v1/searches/{search['id']}/artifacts/{name}")

    def metrics(self, search: dict) -> dict:
        """What was told of each step, but for the time left."""
        told = {}
        for event in self.installation.events(search):
            if event["type"] == "metrics":
                data = {k: v for k, v in event["data"].items() if k != "remaining_seconds"}
                told[data["phase"], data["step"]] = data
        return told

    def outcome(self, search: dict) -> dict:
        """Everything that two runs of the same search must agree on."""
        manifest = self.artifact(search, "manifest.json").json()
        return {
            "metrics": self.metrics(search),
            "search_core": manifest["search_core"],
            "architecture": search["result"]["network"]["architecture"],
            "accuracy": search["result"]["network"]["test_accuracy"],
            "onnx": search["result"]["onnx_sha256"],
        }


@pytest.fixture(scope="module")
def bench(installation, working, eventually):
    """Everything that runs: a worker with two places, and a device that nobody measured on."""
    made = Bench(installation, installation.enrol_new_target(), eventually)
    made.lets_certify.set()
    with working("--slots", "2"):
        yield made
        made.lets_certify.set()


@pytest.fixture(scope="module")
def paused_everywhere(bench) -> dict:
    """A search that was paused in every phase it has, and what it looked like each time."""
    search, pauses = bench.search(), {}

    def pause(phase: str) -> None:
        bench.ask(search, "pause")
        pauses[phase] = bench.in_status(search, "paused")
        bench.ask(search, "resume")

    pause("awaiting_measurements")
    with bench.device.answering(bench.answer):
        bench.reached(search, "searching")
        pause("searching")
        bench.reached(search, "training")
        pause("training")
        with bench.held_up():
            bench.reached(search, "verifying")
            bench.ask(search, "pause")
            pauses["verifying"] = bench.in_status(search, "paused")
        bench.ask(search, "resume")
        return {"pauses": pauses, "search": bench.succeeded(search)}


@pytest.fixture(scope="module")
def answering(bench, paused_everywhere):
    """From here on the device answers whatever it is asked."""
    with bench.device.answering(bench.answer):
        yield bench


@pytest.fixture(scope="module")
def unbroken(answering) -> dict:
    """The same search, undisturbed."""
    return answering.succeeded(answering.search())


def test_a_search_is_paused_in_every_phase_and_gives_its_worker_back(paused_everywhere):
    for phase, paused in paused_everywhere["pauses"].items():
        assert paused["phase"] == phase
        assert paused["status_reason"]["code"] == "user_paused"
        assert all(attempt["outcome"] == "paused" for attempt in paused["attempts"])
    outcomes = [a["outcome"] for a in paused_everywhere["search"]["attempts"]]
    assert outcomes == ["paused", "paused", "paused", "succeeded"]


def test_a_search_paused_in_every_phase_equals_the_unbroken_one(bench, paused_everywhere, unbroken):
    assert bench.outcome(paused_everywhere["search"]) == bench.outcome(unbroken)
    assert unbroken["result"]["network"]["measured"]["median_ms"] <= BUDGET_MS


@pytest.mark.parametrize("phase", ["searching", "training", "verifying"])
def test_a_running_search_is_cancelled_wherever_it_is(answering, unbroken, phase):
    more = {"train_epochs": 0} if phase == "verifying" else {"train_epochs": 2000}
    search = answering.search(**more)
    with answering.held_up():
        answering.reached(search, phase)
        assert answering.ask(search, "cancel")["status"] == "cancelling"
        cancelled = answering.in_status(search, "cancelled")
    assert cancelled["status_reason"]["code"] == "user_cancelled"
    assert cancelled["phase"] == "done"
    assert list(cancelled["seconds_by_phase"])[-1] == phase
    assert [attempt["outcome"] for attempt in cancelled["attempts"]] == ["cancelled"]
    files = answering.installation.http.get(f"/v1/searches/{search['id']}/artifacts").json()
    assert files["items"] == []


def test_a_search_out_of_time_goes_on_where_it_stood(answering, unbroken):
    """Its first attempt ends after a step; what is extended equals the unbroken one."""
    search = answering.search(limits={"wall_minutes": 1e-3})
    stopped = answering.eventually(
        lambda: (now := answering.read(search))["status"] == "failed" and now,
        "it runs on",
        **PATIENCE,
    )
    assert stopped["status_reason"]["code"] == "time_limit"
    assert "extend" in stopped["status_reason"]["text"]
    extended = answering.ask(stopped, "extend", {"limits": {}})
    found = answering.succeeded(extended)
    events = answering.installation.events(found)
    assert not [e for e in events if e["type"] == "warning"]
    assert answering.outcome(found) == answering.outcome(unbroken)


def test_more_epochs_go_on_from_the_whole_search(answering, unbroken):
    extended = answering.ask(unbroken, "extend", {"epochs": 6})
    found = answering.succeeded(extended)
    steps = sorted(step for phase, step in answering.metrics(found) if phase == "searching")
    before = max(step for phase, step in answering.metrics(unbroken) if phase == "searching")
    assert steps[0] > before  # nothing is searched twice
    derived = answering.succeeded(answering.ask(found, "derive", {"budgets_ms": [BUDGET_MS]}))
    assert derived["result"]["network"]["measured"]
    again = answering.succeeded(answering.ask(derived, "derive", {"budgets_ms": [BUDGET_MS]}))
    taken, first = again["result"], derived["result"]  # from one supernet, the extension's
    assert taken["onnx_sha256"] == first["onnx_sha256"]
    assert taken["network"]["test_accuracy"] == first["network"]["test_accuracy"]


def test_other_budgets_come_from_the_supernet_without_a_search(answering, unbroken):
    budgets_ms = [0.024, 0.03, 0.036]
    derived = answering.ask(unbroken, "derive", {"budgets_ms": [0.001, *budgets_ms]})
    found = answering.succeeded(derived)
    assert answering.metrics(found) == {}
    missed, *met = found["result"]["points"]
    assert (missed["verified"], missed["latency_budget_ms"]) == (False, 0.001)
    assert [point["latency_budget_ms"] for point in met] == budgets_ms
    for point in met:
        assert point["verified"]
        assert point["measured"]["median_ms"] <= point["latency_budget_ms"]
        assert 0.0 < point["test_accuracy"] < 1.0
        content = answering.artifact(found, point["files"]["onnx"])
        assert content.headers["ETag"] == f'"{point["onnx_sha256"]}"'
    lineage = answering.installation.http.get(f"/v1/searches/{found['id']}/lineage").json()
    assert lineage["ancestors"] == [unbroken["id"]]
    told = {row["id"]: row["latency_ms"] for row in lineage["measurements"]}
    for point in met:
        measured = point["measured"]
        assert told[measured["measurement"]] == measured["median_ms"]
    front = answering.installation.http.get(f"/v1/searches/{unbroken['id']}/front").json()
    assert sum(point["source"] == "derived" for point in front["items"]) == 4
    assert front["best"]["measured_ms"] <= BUDGET_MS


def test_a_search_is_reproduced_to_the_last_bit(answering, unbroken):
    found = answering.succeeded(answering.ask(unbroken, "reproduce"))
    told = found["result"]["reproduction"]
    assert (told["same"], told["differs"]) == (True, [])
    assert (told["logits_equal"], told["architecture_equal"]) == (True, True)
    assert told["of"] == unbroken["id"]
    assert found["status_reason"]["code"] == "reproduced"


def test_a_warm_start_goes_on_with_another_searchs_weights(answering, unbroken):
    """What it takes over is held in `tests/search_core/test_warm_start.py`."""
    found = answering.succeeded(answering.search(warm_start=unbroken["id"], seed=6))
    assert found["spec"]["warm_start"] == unbroken["id"]
    assert found["result"]["network"]["measured"]["median_ms"] <= BUDGET_MS
    steps = [step for phase, step in answering.metrics(found) if phase == "searching"]
    before = [step for phase, step in answering.metrics(unbroken) if phase == "searching"]
    assert steps == before  # as long a search, none of it for weights alone


def test_one_network_is_found_for_several_targets(answering, unbroken):
    installation = answering.installation
    slower = installation.enrol_new_target()

    targets = [
        {"target": answering.device.target_id, "latency_budget_ms": 0.04},
        {"target": slower.target_id, "latency_budget_ms": 0.06},
    ]
    body = {**SPEC, "epochs": 6, "train_epochs": 1, "targets": targets}
    answer = installation.http.post("/v1/searches", json={**body, "hand_made_baseline": True})
    assert answer.status_code == 201, answer.text
    with slower.answering(lambda task: slower.by_formula(task, factor=2.0)):
        found = answering.succeeded(answer.json())
    network = found["result"]["network"]
    assert [row["target"] for row in network["targets"]] == [t["target"] for t in targets]
    for row, asked in zip(network["targets"], targets, strict=True):
        assert row["within_budget"]
        assert row["measured"]["median_ms"] <= asked["latency_budget_ms"]
    (by_hand,) = found["result"]["baselines"]
    low, high = by_hand["gap"]["interval95"]
    assert low <= by_hand["gap"]["accuracy"] <= high
    assert by_hand["kind"] == "hand_made"
    assert len(by_hand["targets"]) == 2
