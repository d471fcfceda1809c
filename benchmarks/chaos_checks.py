"""What must hold when the storm is over: the store against what anybody was told.

Every check reads the store itself or the public API, and writes what it finds wrong into the
ledger. What each compared is counted, so that no promise is kept for want of cases.
"""

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from benchmarks.chaos_load import Caller, Follower, Ledger, People
from benchmarks.chaos_world import World
from service.artifacts import ArtifactStore
from service.db.database import Database
from service.errors import NotFoundError
from service.jobs.models import Job, JobAttempt
from service.measurements.models import KitFile, Measurement, MeasurementTask, UploadedBatch
from service.searches.models import Search, SearchArtifact, SearchEvent
from service.searches.schemas import TERMINAL

Checked = Counter[str]
"""How many of what were compared."""

NEEDED = (
    *("acknowledged searches", "acknowledged measurements", "followed events", "artifacts"),
    *("events heard over a stream", "listed files", "steps in order", "certificates"),
    *("results compared", "resumed results compared"),
)
"""Where there is none of these, a promise was kept for want of cases."""

_TRUE_REASONS = ("awaiting_measurements", "fitting_latency_model")
"""What a search may wait for when all is well: a device that is slow."""

_PRIVATE = {"measurement", "measurements", "search", "parent", "files", "onnx_name"}
"""Of a result: what names this run, and differs between equal runs."""


def settle(
    world: World, ledger: Ledger, people: People, follower: Follower, quiet_seconds: float
) -> int:
    """Let every search end now that nothing breaks; how many had to be cancelled.

    When nothing has happened to any of those left for a while, they must say what they wait
    for, and it must be true; then they are cancelled, and must obey.
    """
    caller = Caller(world.urls, world.key, ledger)
    news: dict[str, tuple[Any, ...]] = {}
    deadline = time.monotonic() + quiet_seconds
    while left := _unfinished(caller, ledger, follower):
        told = {s["id"]: (s["status"], s["phase"], s["progress"], s["version"]) for s in left}
        if told != news:
            news, deadline = told, time.monotonic() + quiet_seconds
        if time.monotonic() > deadline:
            break
        for search in left:
            if search["status"] == "paused":
                people.act(search["id"], "resume")
        time.sleep(1.0)
    for search in left:
        reason = search["status_reason"] or {"code": None}
        if reason["code"] not in _TRUE_REASONS:
            facts = ("status", "phase", "status_reason")
            ledger.violated(
                "every search ends or says what it waits for",
                f"{search['id']}: {[search[name] for name in facts]}",
            )
        people.act(search["id"], "cancel")
    deadline = time.monotonic() + quiet_seconds
    while (waiting := _unfinished(caller, ledger, follower)) and time.monotonic() < deadline:
        time.sleep(0.5)
    for search in waiting:
        ledger.violated("cancel takes effect", f"{search['id']}: {search['status']}")
    caller.close()
    return len(left)


def _unfinished(caller: Caller, ledger: Ledger, follower: Follower) -> list[dict[str, Any]]:
    """Unfinished searches, those included that nobody was told of."""
    found: list[dict[str, Any]] = []
    for status in ("queued", "running", "pausing", "paused", "cancelling"):
        asked = {"status": status, "limit": 200}
        answer = caller.ask("GET", "/v1/searches", params=asked, allowed=(422,))
        if answer is not None and answer.is_success:
            found += answer.json()["items"]
    for search_id in ledger.unfinished:
        follower.look(search_id)
    return found


def check(
    world: World, ledger: Ledger, people: People, reference: dict[str, Any], *, clocks_stepped: bool
) -> Checked:
    """Every invariant.

    Args:
        reference: the essence of an unbroken search of each wish, by its name.
    """
    checked: Checked = Counter()
    database = Database(world.store_url)
    artifacts = ArtifactStore(f"file://{world.home / 'artifacts'}")
    try:
        with database.reading() as session:
            searches = list(session.scalars(select(Search)))
            _searches(ledger, searches, checked)
            _measurements(session, ledger, checked)
            _events(session, ledger, searches, checked)
            _artifacts(session, ledger, artifacts, checked)
            _jobs(session, ledger, searches, checked, clocks_stepped=clocks_stepped)
            _budgets(session, ledger, searches, checked)
            _equal(session, ledger, people, searches, reference, checked)
    finally:
        database.dispose()
    return checked


def essence(session: Session, search_id: str) -> dict[str, Any]:
    """What two searches of one spec must have in common, wherever they were broken."""
    search = session.get_one(Search, search_id)
    return {
        "status": search.status,
        "result": _public(search.result),
        "metrics": sorted(set(_metrics(session, search_id))),
    }


def _searches(ledger: Ledger, searches: Iterable[Search], checked: Checked) -> None:
    by_key: dict[str, list[Search]] = defaultdict(list)
    for search in searches:
        checked["searches"] += 1
        if search.idempotency_key is not None:
            by_key[search.idempotency_key].append(search)
    for key, found in by_key.items():
        if len(found) > 1:
            ledger.violated("one search a key", f"{key}: {[s.id for s in found]}")
        if key not in ledger.asked:
            ledger.violated("nothing is made up", f"nobody asked for {found[0].id}")
            continue
        asked = ledger.asked[key].items()
        changed = {n: v for n, v in asked if found[0].spec.get(n, v) != v}
        if changed:
            ledger.violated("a search is what was asked for", f"{found[0].id}: {changed}")
    for key, search_id in ledger.created.items():
        checked["acknowledged searches"] += 1
        if [s.id for s in by_key.get(key, [])] != [search_id]:
            ledger.violated("no acknowledged search is lost", search_id)


def _measurements(session: Session, ledger: Ledger, checked: Checked) -> None:
    rows = {m.task_id: m for m in session.scalars(select(Measurement))}
    accepted: Counter[str] = Counter()
    for report in session.scalars(select(UploadedBatch.report)):
        accepted.update(item["task_id"] for item in report["items"] if item["accepted"])
    for task in session.scalars(select(MeasurementTask)):
        checked["measurement tasks"] += 1
        if accepted[task.id] != task.tries:
            told = f"{task.id}: {accepted[task.id]} accepted, {task.tries} taken in"
            ledger.violated("what is accepted is taken in once", told)
        if (task.status == "done") != (task.id in rows):
            ledger.violated("what is done is measured", f"{task.id} is {task.status}")
    for task_id, latency_ms in ledger.measured.items():
        checked["acknowledged measurements"] += 1
        if task_id not in rows or rows[task_id].latency_ms != latency_ms:
            ledger.violated("no acknowledged measurement is lost", task_id)


def _events(session: Session, ledger: Ledger, searches: Iterable[Search], checked: Checked) -> None:
    for search in searches:
        events = _events_of(session, search.id)
        checked["events"] += len(events)
        if [e.number for e in events] != list(range(1, len(events) + 1)):
            ledger.violated("dense events", search.id)
        seen = ledger.events.get(search.id, {})
        checked["followed events"] += len(seen)
        if max(seen, default=0) > len(events):
            ledger.violated("no event is lost", f"{search.id}: {max(seen)} of {len(events)}")
        ends = [
            e.data["status"] for e in events if e.type == "status" and e.data["status"] in TERMINAL
        ]
        if ends != ([search.status] if search.status in TERMINAL else []):
            ledger.violated("terminal never changes", f"{search.id} is {search.status}: {ends}")
        step = 0
        for event in events:
            if event.type != "metrics":
                step = 0 if event.type in ("phase", "status", "warning") else step
            elif event.data["step"] <= step:
                told = f"{search.id}: step {event.data['step']} after {step}, event {event.number}"
                ledger.violated("one attempt writes at a time", told)
            else:
                step = event.data["step"]
                checked["steps in order"] += 1


def _artifacts(
    session: Session, ledger: Ledger, artifacts: ArtifactStore, checked: Checked
) -> None:
    rows = list(session.scalars(select(SearchArtifact)))
    wanted = {row.sha256: f"{row.name} of {row.search_id}" for row in rows}
    wanted |= {row.sha256: row.subject for row in session.scalars(select(KitFile))}
    wanted |= {
        row.model_sha256: f"measured {row.id}" for row in session.scalars(select(Measurement))
    }
    sizes = {}
    for sha256, what in wanted.items():
        checked["artifacts"] += 1
        try:
            content = artifacts.get(sha256)
        except NotFoundError:
            ledger.violated("no artifact is lost", f"{sha256}, {what}")
            continue
        sizes[sha256] = len(content)
        if hashlib.sha256(content).hexdigest() != sha256:
            ledger.violated("artifacts are whole", f"{sha256}, {what}, {len(content)} bytes")
    stored = {(row.search_id, row.name): row for row in rows}
    for row in rows:
        if sizes.get(row.sha256, row.size_bytes) != row.size_bytes:
            ledger.violated("artifacts are whole", f"{row.name} of {row.search_id}")
    for search_id, files in ledger.files.items():
        for name, sha256 in files.items():
            checked["listed files"] += 1
            if (search_id, name) not in stored or stored[search_id, name].sha256 != sha256:
                ledger.violated("files never change", f"{name} of {search_id}")


def _jobs(
    session: Session,
    ledger: Ledger,
    searches: Iterable[Search],
    checked: Checked,
    *,
    clocks_stepped: bool,
) -> None:
    status_of = {search.id: search.status for search in searches}
    attempts: dict[str, list[JobAttempt]] = defaultdict(list)
    for attempt in session.scalars(select(JobAttempt).order_by(JobAttempt.number)):
        attempts[attempt.job_id].append(attempt)
    jobs: Counter[str] = Counter()
    for job in session.scalars(select(Job)):
        jobs[job.subject_id] += 1
        of_job = attempts[job.id]
        checked["attempts"] += len(of_job)
        if [a.number for a in of_job] != list(range(1, job.attempt + 1)):
            ledger.violated("attempts are numbered", job.id)
        if any(a.outcome is None for a in of_job[: None if job.status != "running" else -1]):
            ledger.violated("one attempt at a time", f"{job.id}: an attempt was left open")
        overlapping = [
            b.number
            for a, b in pairwise(of_job)
            if a.ended_at is not None and b.started_at < a.ended_at
        ]
        if overlapping and not clocks_stepped:
            ledger.violated("one attempt at a time", f"{job.id}: {overlapping}")
        search_status = status_of.get(job.subject_id)
        if search_status in TERMINAL and job.status in ("queued", "running", "paused"):
            ledger.violated(
                "what has ended is worked on no more", f"{job.subject_id}: {job.status}"
            )
    for search_id, status in status_of.items():
        if jobs[search_id] != 1:
            ledger.violated("a search has one job", f"{search_id} has {jobs[search_id]}, {status}")


def _budgets(
    session: Session, ledger: Ledger, searches: Iterable[Search], checked: Checked
) -> None:
    for search in searches:
        if search.status != "succeeded" or search.kind == "reproduce":
            continue
        checked["succeeded searches"] += 1
        promised = list(_promised(search))
        if not promised:
            ledger.violated("what succeeds was measured", search.id)
        for promise in promised:
            checked["certificates"] += 1
            certificate = session.get(Measurement, promise.measurement)
            if certificate is None:
                ledger.violated("what succeeds was measured", search.id)
                continue
            task = session.get_one(MeasurementTask, certificate.task_id)
            kept = select(SearchArtifact.sha256).where(SearchArtifact.search_id == search.id)
            sound = (
                certificate.latency_ms <= promise.budget_ms
                and promise.median_ms == certificate.latency_ms
                and not certificate.flagged
                and task.effort == "certificate"
                and certificate.target_id == promise.target
                and certificate.model_sha256 == promise.onnx_sha256
                and promise.onnx_sha256 in set(session.scalars(kept))
            )
            if not sound:
                told = f"{search.id}: {certificate.latency_ms} ms, {task.effort}, {promise}"
                ledger.violated("nothing succeeds above its budget", told)


@dataclass(frozen=True)
class _Promise:
    """What a search that succeeded says of one file on one target."""

    target: str
    budget_ms: float
    median_ms: float
    measurement: str
    onnx_sha256: str


def _promised(search: Search) -> Iterator[_Promise]:
    result = search.result or {}
    verified = [point for point in result.get("points", ()) if point["verified"]]
    for network in verified or [result["network"]]:
        sha256 = network.get("onnx_sha256") or result["onnx_sha256"]
        budget_ms = network.get("latency_budget_ms") or search.spec.get("latency_budget_ms")
        own = {
            "target": network.get("target", search.target_id),
            "latency_budget_ms": budget_ms,
            "measured": network["measured"],
        }
        for told in network.get("targets") or [own]:
            yield _Promise(
                told["target"],
                told["latency_budget_ms"],
                told["measured"]["median_ms"],
                told["measured"]["measurement"],
                sha256,
            )


def _equal(
    session: Session,
    ledger: Ledger,
    people: People,
    searches: Iterable[Search],
    reference: dict[str, Any],
    checked: Checked,
) -> None:
    """Searches of one wish end alike, and each step of theirs reported the same."""
    for search in searches:
        wish = people.wish_of.get(search.id)
        if wish is None or wish.name not in reference:
            continue
        known = reference[wish.name]
        now = essence(session, search.id)
        unknown = set(now["metrics"]) - set(known["metrics"])
        checked["steps compared"] += len(now["metrics"])
        broken = any(
            e.type == "warning" and e.data["code"] == "resumed"
            for e in _events_of(session, search.id)
        )
        if unknown:
            told = f"{search.id} of {wish.name}: {min(unknown)}"
            ledger.violated("resumed searches equal unbroken ones", told)
        elif search.status in ("succeeded", "infeasible"):
            checked["results compared"] += 1
            checked["resumed results compared"] += broken
            if (now["status"], now["result"]) != (known["status"], known["result"]):
                told = f"{search.id} of {wish.name}: {_differing(now, known)}"
                ledger.violated("resumed searches equal unbroken ones", told)


def _events_of(session: Session, search_id: str) -> list[SearchEvent]:
    chosen = select(SearchEvent).where(SearchEvent.search_id == search_id)
    return list(session.scalars(chosen.order_by(SearchEvent.number)))


def _metrics(session: Session, search_id: str) -> Iterable[str]:
    """Each report of progress as text, without what depends on the clock."""
    for event in _events_of(session, search_id):
        if event.type == "metrics":
            told = {n: v for n, v in event.data.items() if "seconds" not in n and n != "attempt"}
            yield str(sorted(told.items()))


def _public(found: Any) -> Any:
    if isinstance(found, dict):
        return {
            name: _public(value)
            for name, value in found.items()
            if name not in _PRIVATE and "seconds" not in name
        }
    return [_public(item) for item in found] if isinstance(found, list) else found


def _differing(mine: Any, other: Any, path: str = "") -> str:
    """Where two documents differ first."""
    if isinstance(mine, dict) and isinstance(other, dict):
        for name in sorted(mine.keys() | other.keys()):
            if mine.get(name) != other.get(name):
                return _differing(mine.get(name), other.get(name), f"{path}.{name}")
    if isinstance(mine, list) and isinstance(other, list) and len(mine) == len(other):
        for n, (a, b) in enumerate(zip(mine, other, strict=True)):
            if a != b:
                return _differing(a, b, f"{path}[{n}]")
    return f"{path}: {str(mine)[:200]} is not {str(other)[:200]}"
