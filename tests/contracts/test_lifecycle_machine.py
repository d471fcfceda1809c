"""The lives of searches under everything that can happen to them, in any order, on every store.

People create, clone, cancel, pause, resume and hurry searches; workers claim them, begin, report,
end, crash and lose their leases; targets get their latency model, or get none; deadlines pass. A
model in plain Python says what each search must be after each step.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, select, update

from predictor.network import NetworkLatencyModel
from search_core.space.presets import get_space
from service.artifacts import ArtifactStore
from service.auth.principal import Principal
from service.auth.repository import create_key
from service.db.base import utc_now
from service.db.database import take_turns
from service.errors import ConflictError, IdempotencyKeyReusedError, LeaseLostError
from service.jobs import repository as jobs
from service.jobs.context import AttemptContext
from service.jobs.models import Job, JobAttempt
from service.jobs.repository import Claim
from service.latency_models.models import LatencyModel
from service.latency_models.repository import activate, active_model, add_model
from service.measurements.kits import build_files, ensure_kit
from service.measurements.models import KitItem, MeasurementTask
from service.measurements.repository import find_kit
from service.searches import creation, lifecycle
from service.searches.models import Search, SearchEvent, SearchTarget
from service.searches.reading import read_searches
from service.searches.repository import append_event, get_search, list_events
from service.searches.schemas import TERMINAL, Limits, SearchClone, SearchCreate, TargetBudget
from service.settings import Settings
from service.targets.models import Target
from service.workers.settling import end_overdue, reap, settle

EXAMPLES = int(os.environ.get("LIFECYCLE_EXAMPLES", "0"))
"""Runs of the machine; 0: a few, always the same."""

MICRO = get_space("micro")
MODEL = NetworkLatencyModel(
    space_digest=MICRO.digest,
    offset_ms=0.01,
    table_ms=tuple(tuple(0.001 for _ in slot.candidates) for slot in MICRO.slots),
    margin=0.02,
)
READY = "tgt_0"
"""A target that has a latency model from the start; the others wait for theirs."""

OTHERS = ("tgt_1", "tgt_2")
PAIRS = {  # status of a search -> of its job
    "queued": {"queued", "running"},  # it was claimed, and its attempt has not begun yet
    "running": {"running"},
    "pausing": {"running"},
    "paused": {"paused"},
    "cancelling": {"running"},
    "succeeded": {"succeeded"},
    "infeasible": {"succeeded"},
    "failed": {"failed", "cancelled"},
    "cancelled": {"cancelled", "failed"},
}
ACTIONS = st.sampled_from(["cancel", "pause", "resume"])
OUTCOMES = st.sampled_from(["crashed", "handed_back", "killed", "out_of_memory"])
WHICH = st.integers(0, 5)
MAX_ATTEMPTS = 3


@dataclass
class Expected:
    """What a search must be.

    Attributes:
        told: the statuses it has gone through.
        waits_for: the target whose latency model it lacks.
        fence: of the attempt that may write; None while none runs.
        begun: how many attempts there were.
        counted: how many of them were its own fault.
    """

    owner: str
    targets: tuple[str, ...]
    waits_for: str | None
    has_deadline: bool
    status: str = "queued"
    told: list[str] = field(default_factory=lambda: ["queued"])
    fence: int | None = None
    begun: int = 0
    counted: int = 0

    @property
    def has_ended(self) -> bool:
        return self.status in TERMINAL

    @property
    def is_claimable(self) -> bool:
        return self.status == "queued" and self.fence is None and self.waits_for is None

    def becomes(self, status: str) -> None:
        if status != self.status:
            self.told.append(status)
        self.status = status

    def acted_on(self, action: str) -> bool:
        """Do what was asked; False when that is refused."""
        runs = self.fence is not None
        after = {
            ("cancel", "queued"): "cancelling" if runs else "cancelled",
            ("cancel", "running"): "cancelling",
            ("cancel", "pausing"): "cancelling",
            ("cancel", "paused"): "cancelled",
            ("cancel", "cancelling"): "cancelling",
            ("cancel", "cancelled"): "cancelled",
            ("pause", "queued"): "pausing" if runs else "paused",
            ("pause", "running"): "pausing",
            ("pause", "pausing"): "pausing",
            ("pause", "paused"): "paused",
            ("resume", "paused"): "queued",
            ("resume", "queued"): "queued",
            ("resume", "running"): "running",
        }.get((action, self.status))
        if after is not None:
            self.becomes(after)
        return after is not None

    def lost(self, outcome: str) -> None:
        """Its attempt has ended without a word."""
        self.fence = None
        self.counted += outcome not in ("handed_back", "killed")
        if self.status == "cancelling":
            self.becomes("cancelled")
        elif self.counted >= MAX_ATTEMPTS or outcome == "out_of_memory":
            self.becomes("failed")
        else:
            self.becomes("paused" if self.status == "pausing" else "queued")


@dataclass
class Attempt:
    """An attempt that may have outlived its lease."""

    claim: Claim
    context: AttemptContext
    has_begun: bool = False


class Lives(RuleBasedStateMachine):
    """The rules are what happens, the invariants what must hold whatever happened."""

    database = settings = None  # set by the test
    people: dict[str, Principal]

    def __init__(self) -> None:
        super().__init__()
        self.expected: dict[str, Expected] = {}
        self.ever: list[Attempt] = []
        self.by_key: dict[tuple[str, str], tuple[str, SearchCreate]] = {}
        self.kits = {READY: "fitted"} | dict.fromkeys(OTHERS, "open")
        self.ended: dict[str, tuple] = {}

    @initialize()
    def begin_anew(self) -> None:
        """Nothing was asked for yet, and nothing is measured but the first target."""
        current = select(KitItem.task_id)
        with self.database.transaction() as session:
            for table in (JobAttempt, Job, SearchEvent, SearchTarget, Search):
                session.execute(delete(table))
            session.execute(delete(LatencyModel).where(LatencyModel.target_id != READY))
            session.execute(delete(MeasurementTask).where(MeasurementTask.id.not_in(current)))
            session.execute(update(MeasurementTask).values(status="queued"))
        for devices in ({READY}, {READY}, set(OTHERS)):
            self.create("aspen", devices, 0, has_deadline=True, key=None)
        self.claim("alpha")

    # -- what people do ----------------------------------------------------------------

    @rule(
        account=st.sampled_from(["aspen", "birch"]),
        devices=st.sets(st.sampled_from([READY, *OTHERS]), min_size=1),
        priority=st.integers(-1, 1),
        has_deadline=st.booleans(),
        key=st.sampled_from([None, None, "k"]),
    )
    def create(self, account, devices, priority, has_deadline, key):
        spec = SearchCreate(
            targets=[TargetBudget(target=one, latency_budget_ms=100.0) for one in sorted(devices)],
            priority=priority,
            limits=Limits(queue_minutes=60.0 if has_deadline else None),
        )
        earlier, asked = self.by_key.get((account, key), (None, None))
        try:
            search, is_new = self.made(account, creation.Wish(spec, spec, idempotency_key=key))
        except IdempotencyKeyReusedError:
            assert asked not in (None, spec), "the same request was taken for another"
            return
        if earlier is not None:
            assert (search.id, is_new, asked) == (earlier, False, spec)
            return
        if key is not None:
            self.by_key[account, key] = search.id, spec

    @rule(parent=WHICH, priority=st.integers(-1, 1))
    def clone(self, parent, priority):
        parent = self.search(parent)
        changes = SearchClone(priority=priority)
        with self.database.reading() as session:
            row = get_search(session, parent)
            spec = creation.cloned(row, changes)
        owner = self.expected[parent].owner
        self.made(owner, creation.Wish(spec, changes, "search", row))

    def made(self, account: str, wish: creation.Wish) -> tuple[Search, bool]:
        with self.database.transaction() as session:
            search, is_new = creation.create(session, self.settings, self.people[account], wish)
        if is_new:
            targets = tuple(sorted(budget.target for budget in wish.spec.budgets))
            for one in targets:
                if self.kits[one] == "failed":  # it is measured anew
                    self.kits[one] = "open"
            has_deadline = wish.spec.limits.queue_minutes is not None
            waits_for = self.first_missing(targets)
            self.expected[search.id] = Expected(account, targets, waits_for, has_deadline)
        return search, is_new

    @rule(n=WHICH, action=ACTIONS)
    def act(self, n, action):
        search_id = self.search(n)
        with self.database.transaction() as session:
            jobs.lock_jobs(session, search_id)
            search = get_search(session, search_id, lock=True)
            try:
                getattr(lifecycle, action)(session, search)
                is_done = True
            except ConflictError:
                is_done = False
        assert is_done == self.expected[search_id].acted_on(action)

    @rule(n=WHICH, priority=st.integers(-100, 100))
    def hurry(self, n, priority):
        search_id = self.search(n)
        with self.database.transaction() as session:
            jobs.lock_jobs(session, search_id)
            get_search(session, search_id, lock=True).priority = priority
            jobs.set_priority(session, search_id, priority)

    # -- what workers do ---------------------------------------------------------------

    @rule(worker=st.sampled_from(["alpha", "beta"]))
    def claim(self, worker):
        claimable = {one for one, expected in self.expected.items() if expected.is_claimable}
        with self.database.transaction() as session:
            past = utc_now() - timedelta(seconds=1)  # nobody waits for the pause after a crash
            session.execute(update(Job).values(available_at=past))
        with self.database.transaction() as session:
            claim = jobs.claim(session, worker, 600.0)
        if claim is None:
            assert not claimable, "a search was kept from a free worker"
            return
        assert claim.subject_id in claimable, "it was not to be had"
        expected = self.expected[claim.subject_id]
        expected.fence = claim.fence
        expected.begun += 1
        assert claim.attempt == expected.begun
        context = AttemptContext(self.settings, self.database, claim.job_id, claim.fence)
        self.ever.append(Attempt(claim, context))

    @rule(n=WHICH, phase=st.sampled_from(["searching", "training", "verifying"]))
    def work(self, n, phase):
        """It begins, or goes on."""
        attempt = self.attempt(n)

        def write(session, search, _job) -> None:
            if not attempt.has_begun:
                lifecycle.start(session, search)
            lifecycle.enter_phase(session, search, phase)

        if self.only_the_holder(attempt, write):
            expected = self.expected[attempt.claim.subject_id]
            if not attempt.has_begun and expected.status == "queued":
                expected.becomes("running")
            attempt.has_begun = True

    @rule(n=WHICH, status=st.sampled_from(["succeeded", "infeasible", "failed"]))
    def finish(self, n, status):
        """It ends; or it stops, when it was asked to and sees so in time."""
        attempt = self.attempt(n)
        expected = self.expected[attempt.claim.subject_id]
        if not attempt.has_begun:
            return

        def write(session, search, job) -> None:
            if expected.status == "pausing" and status != "succeeded":
                lifecycle.paused(session, search)
                jobs.finish(session, job, "paused")
                return
            ends = "cancelled" if expected.status == "cancelling" else status
            lifecycle.end(session, search, ends, code="tested")
            jobs.finish(session, job, {"infeasible": "succeeded"}.get(ends, ends))

        if self.only_the_holder(attempt, write):
            expected.fence = None
            if expected.status == "pausing" and status != "succeeded":
                expected.becomes("paused")
            else:
                expected.becomes("cancelled" if expected.status == "cancelling" else status)

    @rule(n=WHICH, outcome=OUTCOMES)
    def crash(self, n, outcome):
        """It ends without a word, and its worker settles."""
        attempt = self.attempt(n)
        if self.only_the_holder(attempt, lambda session, _, job: settle(session, job, outcome)):
            self.expected[attempt.claim.subject_id].lost(outcome)

    @rule(n=WHICH)
    def vanish(self, n):
        """Its worker dies; the attempt may live on as a zombie."""
        attempt = self.attempt(n)
        if self.holds(attempt):
            with self.database.transaction() as session:
                past = utc_now() - timedelta(hours=1)
                session.get_one(Job, attempt.claim.job_id).lease_expires_at = past
            assert reap(self.database) == 1
            self.expected[attempt.claim.subject_id].lost("worker_lost")

    @rule()
    def everybody_wakes_up(self):
        """Every attempt there ever was writes, whether it still may or not."""
        for attempt in self.ever:
            told = {"fence": attempt.claim.fence}
            self.only_the_holder(
                attempt,
                lambda session, search, _, told=told: append_event(
                    session, search.id, "metrics", told
                ),
            )

    # -- what happens around them ------------------------------------------------------

    @rule(target_id=st.sampled_from(OTHERS))
    def fit(self, target_id):
        """What was measured gives a latency model."""
        key = lifecycle.model_key(target_id, MICRO.digest)
        with self.database.transaction() as session:
            take_turns(session, key)
            self.end_kit(session, target_id, "succeeded")
            row = add_model(session, target_id, "micro", MODEL, {})
            activate(session, row)
            session.flush()
            lifecycle.release(session, key)
        self.kits[target_id] = "fitted"
        for expected in self.waiting_for(target_id):
            expected.waits_for = self.first_missing(expected.targets)
            if self.kits.get(expected.waits_for) == "failed":
                expected.becomes("failed")

    @rule(target_id=st.sampled_from(OTHERS))
    def fail_to_fit(self, target_id):
        """No latency model can be fitted to what was measured."""
        if self.kits[target_id] != "open":
            return
        key = lifecycle.model_key(target_id, MICRO.digest)
        with self.database.transaction() as session:
            take_turns(session, key)
            self.end_kit(session, target_id, "failed")
            lifecycle.give_up(session, key, "as the test wants it")
        self.kits[target_id] = "failed"
        for expected in self.waiting_for(target_id):
            expected.becomes("failed")

    @rule(n=WHICH)
    def wait_too_long(self, n):
        """The time in which it was worth beginning passes."""
        search_id = self.search(n)
        expected = self.expected[search_id]
        if not expected.has_deadline:
            return
        with self.database.transaction() as session:
            past = utc_now() - timedelta(minutes=1)
            session.execute(
                update(Job).where(Job.subject_id == search_id).values(queue_deadline=past)
            )
        late = [
            one
            for one in self.expected.values()
            if one is expected and one.status == "queued" and not one.begun
        ]
        assert end_overdue(self.database) == len(late)
        for one in late:
            one.becomes("failed")
        expected.has_deadline = False  # it has passed

    def end_kit(self, session, target_id: str, status: str) -> None:
        """Everything of the kit is measured, and the fit has ended so."""
        kit = find_kit(session, target_id, MICRO.digest)
        tasks = select(KitItem.task_id).where(KitItem.kit_id == kit.id)
        session.execute(
            update(MeasurementTask).where(MeasurementTask.id.in_(tasks)).values(status="done")
        )
        jobs.enqueue(session, "fit_latency_model", kit.id, max_attempts=1).status = status
        session.flush()

    # -- what must hold ----------------------------------------------------------------

    @invariant()
    def every_search_is_what_it_must_be(self):
        with self.database.reading() as session:
            rows = session.scalars(select(Search)).all()
            read = {one.id: one for one in read_searches(session, rows, self.settings)}
            found = jobs.of_subjects(session, [row.id for row in rows])
            for row in rows:
                job, expected = found[row.id], self.expected[row.id]
                assert row.status == expected.status
                assert job.status in PAIRS[row.status], (row.status, job.status)
                assert (job.status == "running") == (expected.fence is not None)
                assert [one.number for one in read[row.id].attempts] == [
                    *range(1, expected.begun + 1)
                ]
                assert all(seconds >= 0.0 for seconds in row.seconds_by_phase.values())
                self.look_at_events(list_events(session, row.id, 0, 10_000), expected)
                self.look_at_the_wait(session, read[row.id], job, expected)
                if expected.has_ended:
                    told = (row.status, row.finished_at, row.result, row.status_reason)
                    assert self.ended.setdefault(row.id, told) == told, "what had ended changed"
        places = [one.status_reason.position for one in read.values() if one.status == "queued"]
        standing = sorted(place for place in places if place is not None)
        assert standing == [*range(1, len(standing) + 1)], "the queue has a gap"
        assert rows == [] or set(read) == set(self.expected)

    def look_at_events(self, events, expected: Expected) -> None:
        assert [event.number for event in events] == [*range(1, len(events) + 1)]
        told = [event.data["status"] for event in events if event.type == "status"]
        assert told == expected.told
        fences = [event.data["fence"] for event in events if event.type == "metrics"]
        assert fences == sorted(fences), "an older attempt wrote after a newer one"
        if expected.has_ended:
            last = max(event.number for event in events if event.type == "status")
            assert last == len(events), "something happened after the end"

    def look_at_the_wait(self, session, read, job: Job, expected: Expected) -> None:
        if read.status != "running":
            assert read.status_reason is not None, f"a {read.status} search says not why"
        if expected.has_ended:
            return
        assert read.phase != "done"
        key = expected.waits_for and lifecycle.model_key(expected.waits_for, MICRO.digest)
        assert job.blocked_on == key
        if expected.waits_for is not None:
            assert active_model(session, expected.waits_for, MICRO.digest) is None
        if read.status == "queued":
            assert (read.status_reason.position is not None) == expected.is_claimable
            awaits = read.phase == "awaiting_measurements"
            assert awaits == (expected.waits_for is not None)

    def teardown(self) -> None:
        """Whatever was left can be brought to an end: nothing is stuck."""
        for target_id in OTHERS:
            self.fit(target_id)
        for n in range(len(self.ever)):
            self.vanish(n)
        for n in range(len(self.expected)):
            if self.expected[self.search(n)].status == "paused":
                self.act(n, "resume")
        while any(expected.is_claimable for expected in self.expected.values()):
            self.claim("the last")
            self.work(0, "searching")
            self.finish(0, "succeeded")
        assert {expected.status for expected in self.expected.values()} <= set(TERMINAL)
        self.every_search_is_what_it_must_be()

    def search(self, n: int) -> str:
        """The nth search from the last."""
        return list(self.expected)[-1 - n % len(self.expected)]

    def attempt(self, n: int) -> Attempt:
        """The nth attempt from the last."""
        return self.ever[-1 - n % len(self.ever)]

    def first_missing(self, targets: tuple[str, ...]) -> str | None:
        return next((one for one in targets if self.kits[one] != "fitted"), None)

    def waiting_for(self, target_id: str) -> list[Expected]:
        return [
            one
            for one in self.expected.values()
            if one.waits_for == target_id and not one.has_ended
        ]

    def holds(self, attempt: Attempt) -> bool:
        return self.expected[attempt.claim.subject_id].fence == attempt.claim.fence

    def only_the_holder(self, attempt: Attempt, write: Callable) -> bool:
        """Write as an attempt does; that it could must be as it should."""
        may = self.holds(attempt)
        try:
            with attempt.context.transaction() as (session, job):
                search = get_search(session, attempt.claim.subject_id, lock=True)
                write(session, search, job)
            assert may, "a stale fence wrote"
        except LeaseLostError:
            assert not may, "the holder could not write"
        return may


@pytest.fixture
def machine(database, tmp_path):
    """The machine over a store with two accounts and three targets."""
    with database.transaction() as session:
        keys = [create_key(session, name, "user")[0] for name in ("aspen", "birch")]
        people = {key.account: key.principal() for key in keys}
        profile = {"precision": "float32", "batch": 1}
        for name in (READY, *OTHERS):
            session.add(
                Target(
                    id=name, name=name, profile=profile, profile_digest=name, created_at=utc_now()
                )
            )
        session.flush()
        activate(session, add_model(session, READY, "micro", MODEL, {}))
    build_files(database, ArtifactStore(f"file://{tmp_path}"), MICRO, "float32", 1)
    with database.transaction() as session:
        for name in OTHERS:
            ensure_kit(session, session.get_one(Target, name), MICRO)
    given = Settings(home=tmp_path, max_attempts=MAX_ATTEMPTS)
    return type("LivesHere", (Lives,), {"database": database, "settings": given, "people": people})


@pytest.mark.slow
def test_searches_live_as_they_should_in_any_order_of_events(machine):
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES or 25,
            stateful_step_count=25,
            derandomize=not EXAMPLES,
            database=None,
            phases=[Phase.generate],
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_target_that_is_measured_once_more_is_waited_for(machine):
    lives = machine()
    lives.begin_anew()
    first, second = OTHERS
    lives.fail_to_fit(second)
    lives.create("aspen", set(OTHERS), 0, has_deadline=False, key=None)
    lives.fit(first)
    lives.every_search_is_what_it_must_be()
    lives.fit(second)
    lives.teardown()


@pytest.mark.parametrize("action", ["cancel", "pause"])
def test_an_attempt_that_begins_after_it_was_asked_to_stop_stops(machine, action):
    lives = machine()
    lives.begin_anew()
    lives.act(2, action)  # of the one that is claimed
    lives.work(0, "searching")
    lives.every_search_is_what_it_must_be()
    lives.finish(0, "failed")
    lives.every_search_is_what_it_must_be()


def test_a_paused_search_is_told_of_the_latency_models_it_lacked(machine):
    lives = machine()
    lives.begin_anew()
    lives.act(0, "pause")
    for target_id in OTHERS:
        lives.fit(target_id)
        lives.every_search_is_what_it_must_be()
    lives.act(0, "resume")
    lives.teardown()
