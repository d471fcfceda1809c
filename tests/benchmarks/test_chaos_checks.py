"""The checks after a storm see what they are there to see: each is shown one broken promise."""

import hashlib
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sqlalchemy import delete, select, update

from benchmarks.chaos_checks import check, essence
from benchmarks.chaos_load import Ledger, Wish, digest
from service.db.database import Database
from service.jobs.models import Job, JobAttempt
from service.measurements.models import Measurement, MeasurementTask, UploadedBatch
from service.searches.models import Search, SearchArtifact, SearchEvent
from service.searches.tasks import run_search_job


@dataclass
class Story:
    """A store, and what clients were told of it."""

    world: SimpleNamespace
    ledger: Ledger
    people: SimpleNamespace
    reference: dict
    search_id: str

    def transaction(self):
        database = Database(self.world.store_url)
        return database.transaction()

    def broken(self) -> set[str]:
        """The promises that the checks find broken."""
        check(self.world, self.ledger, self.people, self.reference, clocks_stepped=False)
        return {violation.promise for violation in self.ledger.violations}


@pytest.fixture(scope="module")
def told(api, measured):
    """A search that succeeded, and everything that was answered about it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    latencies: dict[str, float] = {}

    def answer(task: dict) -> dict:
        latencies[task["id"]] = 0.02
        return measured.result(task, 0.02)

    key = uuid.uuid4().hex
    spec = {"target": measured.target_id, "latency_budget_ms": 0.03, "epochs": 4}
    spec |= {"random_baseline": False}
    made = api.http.post("/v1/searches", json=spec, headers={"Idempotency-Key": key})
    assert made.status_code == 201, made.text
    claim, context = api.claim(made.json())
    context.settings = context.settings.model_copy(update={"attempt_threads": 1})
    with measured.answering(answer):
        run_search_job(context, claim.subject_id)
    torch.set_num_threads(threads)
    search = api.read(made.json())
    assert search["status"] == "succeeded", search["status_reason"]
    files = api.http.get(f"/v1/searches/{search['id']}/artifacts").json()["items"]
    return SimpleNamespace(
        key=key, spec=spec, search=search, latencies=latencies, files=files, api=api
    )


@pytest.fixture
def story(told, tmp_path) -> Story:
    """A copy of that store, and a ledger of its own."""
    home = tmp_path / "home"
    shutil.copytree(told.api.settings.home, home)
    ledger = Ledger()
    ledger.asked[told.key] = told.spec
    ledger.note_created(told.key, told.search["id"])
    for task_id, latency_ms in told.latencies.items():
        ledger.note_measured(task_id, latency_ms)
    ledger.note_events(told.search["id"], 0, told.api.events(told.search))
    ledger.note_search(told.search)
    ledger.note_files(told.search["id"], told.files)
    url = f"sqlite:///{home / 'tailor.db'}"
    database = Database(url)
    with database.reading() as session:
        reference = {"wish": essence(session, told.search["id"])}
    database.dispose()
    people = SimpleNamespace(wish_of={told.search["id"]: Wish("wish", told.spec)})
    world = SimpleNamespace(store_url=url, home=home)
    return Story(world, ledger, people, reference, told.search["id"])


def test_an_unharmed_store_breaks_no_promise_and_everything_was_looked_at(story):
    checked = check(story.world, story.ledger, story.people, story.reference, clocks_stepped=False)
    assert story.ledger.violations == []
    looked_at = {
        *("searches", "acknowledged searches", "measurement tasks", "acknowledged measurements"),
        *("events", "followed events", "steps in order", "artifacts", "listed files", "attempts"),
        *("succeeded searches", "certificates", "steps compared", "results compared"),
    }
    assert {what for what in looked_at if not checked[what]} == set()


def lose_search(session, story) -> None:
    session.execute(update(Search).values(idempotency_key="another"))


def change_request(session, story) -> None:
    search = session.get_one(Search, story.search_id)
    search.spec = {**search.spec, "epochs": 5}


def lose_measurement(session, story) -> None:
    task_id = next(iter(story.ledger.measured))
    session.execute(delete(Measurement).where(Measurement.task_id == task_id))


def change_measurement(session, story) -> None:
    task_id = next(iter(story.ledger.measured))
    changed = update(Measurement).where(Measurement.task_id == task_id).values(latency_ms=0.01)
    session.execute(changed)


def take_in_twice(session, story) -> None:
    batch = session.scalars(select(UploadedBatch).limit(1)).one()
    session.add(
        UploadedBatch(
            agent_id=batch.agent_id,
            batch_id="b" * 32,
            report=batch.report,
            created_at=batch.created_at,
        )
    )


def lose_middle_event(session, story) -> None:
    session.execute(delete(SearchEvent).where(SearchEvent.number == 2))


def lose_last_event(session, story) -> None:
    last = max(story.ledger.events[story.search_id])
    session.execute(delete(SearchEvent).where(SearchEvent.number == last))


def write_as_two(session, story) -> None:
    """A zombie reports a step that another attempt has passed."""
    metrics = select(SearchEvent).where(SearchEvent.type == "metrics").limit(2)
    first, second = session.scalars(metrics.order_by(SearchEvent.number))
    first.data, second.data = second.data, first.data


def lose_file(session, story) -> None:
    path_of(session, story).unlink()


def cut_file_short(session, story) -> None:
    path = path_of(session, story)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])


def path_of(session, story) -> Path:
    chosen = select(SearchArtifact.sha256).where(SearchArtifact.name == "model.onnx")
    sha256 = session.scalars(chosen).one()
    return story.world.home / "artifacts" / sha256[:2] / sha256


def exchange_file(session, story) -> None:
    row = session.scalars(select(SearchArtifact).where(SearchArtifact.name == "network.py")).one()
    row.sha256 = hashlib.sha256(b"").hexdigest()


def work_on(session, story) -> None:
    session.execute(update(Job).where(Job.subject_id == story.search_id).values(status="running"))


def make_two_jobs(session, story) -> None:
    job = session.scalars(select(Job).where(Job.subject_id == story.search_id)).one()
    columns = {column.name: getattr(job, column.name) for column in Job.__table__.columns}
    session.add(Job(**{**columns, "id": "job_of_another", "attempt": 0}))


def leave_attempt_open(session, story) -> None:
    session.execute(update(JobAttempt).values(outcome=None, ended_at=None))


def end_again(session, story) -> None:
    session.get_one(Search, story.search_id).status = "failed"


def exceed_budget(session, story) -> None:
    search = session.get_one(Search, story.search_id)
    measured = search.result["network"]["measured"]["measurement"]
    session.execute(update(Measurement).where(Measurement.id == measured).values(latency_ms=0.031))


def certify_lightly(session, story) -> None:
    session.execute(update(MeasurementTask).values(effort="table"))


def certify_another_file(session, story) -> None:
    session.execute(update(Measurement).values(model_sha256="0" * 64))


def find_another(session, story) -> None:
    search = session.get_one(Search, story.search_id)
    network = {**search.result["network"], "test_accuracy": 0.5}
    search.result = {**search.result, "network": network}


def take_another_step(session, story) -> None:
    event = session.scalars(select(SearchEvent).where(SearchEvent.type == "metrics")).first()
    event.data = {**event.data, "train_loss": 99.0}


@pytest.mark.parametrize(
    ("harm", "promise"),
    [
        (lose_search, "no acknowledged search is lost"),
        (change_request, "a search is what was asked for"),
        (lose_measurement, "no acknowledged measurement is lost"),
        (lose_measurement, "what is done is measured"),
        (change_measurement, "no acknowledged measurement is lost"),
        (take_in_twice, "what is accepted is taken in once"),
        (lose_middle_event, "dense events"),
        (lose_last_event, "no event is lost"),
        (write_as_two, "one attempt writes at a time"),
        (lose_file, "no artifact is lost"),
        (cut_file_short, "artifacts are whole"),
        (exchange_file, "files never change"),
        (work_on, "what has ended is worked on no more"),
        (make_two_jobs, "a search has one job"),
        (leave_attempt_open, "one attempt at a time"),
        (end_again, "terminal never changes"),
        (exceed_budget, "nothing succeeds above its budget"),
        (certify_lightly, "nothing succeeds above its budget"),
        (certify_another_file, "nothing succeeds above its budget"),
        (find_another, "resumed searches equal unbroken ones"),
        (take_another_step, "resumed searches equal unbroken ones"),
    ],
)
def test_a_broken_promise_is_seen(story, harm, promise):
    with story.transaction() as session:
        harm(session, story)
    assert promise in story.broken()


# -- what is seen on the way -----------------------------------------------------------


def event(number: int, **data: object) -> dict:
    return {"number": number, "type": "status", "data": data, "created_at": "2026-01-01"}


def broken(ledger: Ledger) -> list[str]:
    return [violation.promise for violation in ledger.violations]


def test_a_follower_notices_a_hole_and_a_change():
    ledger = Ledger()
    ledger.note_events("srch_1", 0, [event(1), event(2)])
    assert broken(ledger) == []
    ledger.note_events("srch_1", 2, [event(4)])
    assert broken(ledger) == ["dense events"]
    ledger.note_events("srch_1", 0, [event(1, status="failed")])
    assert broken(ledger) == ["dense events", "events never change"]


def test_a_second_end_a_second_search_and_a_second_measurement_are_noticed():
    ledger = Ledger()
    ledger.note_search({"id": "srch_1", "status": "running"})
    ledger.note_search({"id": "srch_1", "status": "succeeded"})
    ledger.note_search({"id": "srch_1", "status": "cancelled"})
    ledger.note_created("key", "srch_1")
    ledger.note_created("key", "srch_2")
    ledger.note_measured("task", 1.0)
    ledger.note_measured("task", 1.0)
    ledger.note_files("srch_1", [{"name": "model.onnx", "sha256": "a"}])
    ledger.note_files("srch_1", [{"name": "model.onnx", "sha256": "b"}])
    assert broken(ledger) == [
        "terminal never changes",
        "one search a key",
        "one measurement a task",
        "files never change",
    ]


def test_digests_tell_documents_apart():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
