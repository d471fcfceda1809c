"""Transactions and times mean the same on both stores."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError, StatementError

from service.auth.models import ApiKey
from service.auth.repository import create_key
from service.db.base import new_id, utc_now
from service.jobs.models import Job
from service.jobs.repository import enqueue
from service.searches.models import SearchEvent


def names(database) -> list[str]:
    with database.reading() as session:
        return list(session.scalars(select(ApiKey.name)))


def test_a_transaction_commits_when_its_block_ends(database):
    with database.transaction() as session:
        create_key(session, "kept", "user")
    assert names(database) == ["kept"]


def test_a_transaction_rolls_back_when_its_block_raises(database):
    def fail() -> None:
        with database.transaction() as session:
            create_key(session, "lost", "user")
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(database) == []


def test_a_reading_session_does_not_see_what_is_not_committed(database):
    with database.transaction() as session:
        create_key(session, "not yet", "user")
        session.flush()
        assert names(database) == []


def test_writers_take_turns_and_lose_no_update(database):
    with database.transaction() as session:
        job_id = enqueue(session, "kind", "subject", max_attempts=1).id

    def add_ten() -> None:
        for _ in range(10):
            with database.transaction() as session:
                job = session.get_one(Job, job_id, with_for_update=True)
                job.attempt += 1

    threads = [threading.Thread(target=add_ten) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as session:
        assert session.get_one(Job, job_id).attempt == 40


def test_times_come_back_aware_and_in_utc(database):
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    with database.transaction() as session:
        enqueue(session, "kind", "subject", max_attempts=1).available_at = moment
    with database.reading() as session:
        (time,) = session.scalars(select(Job.available_at))
    assert time == moment
    assert time.utcoffset() == timedelta(0)


def test_a_time_without_a_zone_is_refused(database):
    def store() -> None:
        with database.transaction() as session:
            job = enqueue(session, "kind", "subject", max_attempts=1)
            job.available_at = utc_now().replace(tzinfo=None)

    with pytest.raises(StatementError, match="naive datetime"):
        store()


def test_foreign_keys_are_enforced(database):
    def store() -> None:
        with database.transaction() as session:
            session.add(
                SearchEvent(
                    search_id="srch_nobody", number=1, type="status", data={}, created_at=utc_now()
                )
            )

    with pytest.raises(IntegrityError):
        store()


def test_ids_are_unique_and_sort_by_creation_time():
    ids = [new_id("srch") for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(id_.startswith("srch_") and len(id_) <= 40 for id_ in ids)
    times = [id_[:15] for id_ in ids]  # the milliseconds; within one, order is random
    assert times == sorted(times)
