"""Results kept on disk until the server has them."""

import os

import pytest

from predictor.agent.journal import Journal, JournalEntry

FIRST = JournalEntry("a" * 32, [{"task_id": "t1", "fence": 3, "measurement": {"n": 50}}])
SECOND = JournalEntry("b" * 32, [{"task_id": "t2", "fence": 1, "failure": {"code": "é"}}])


def test_what_was_added_is_pending_after_a_restart(tmp_path):
    Journal(tmp_path / "journal").add(FIRST)
    assert Journal(tmp_path / "journal").pending() == [FIRST]


def test_what_was_discarded_is_gone_after_a_restart(tmp_path):
    journal = Journal(tmp_path)
    journal.add(FIRST)
    journal.add(SECOND)
    journal.discard(FIRST.batch_id)
    assert Journal(tmp_path).pending() == [SECOND]


def test_a_new_journal_has_nothing_pending(tmp_path):
    assert Journal(tmp_path / "not" / "there" / "yet").pending() == []


def test_the_oldest_batch_comes_first(tmp_path):
    journal = Journal(tmp_path)
    for entry, seconds in ((SECOND, 100), (FIRST, 200)):
        journal.add(entry)
        os.utime(tmp_path / f"{entry.batch_id}.json", (seconds, seconds))
    assert journal.pending() == [SECOND, FIRST]


def test_discarding_twice_is_harmless(tmp_path):
    journal = Journal(tmp_path)
    journal.add(FIRST)
    journal.discard(FIRST.batch_id)
    journal.discard(FIRST.batch_id)
    assert journal.pending() == []


def test_a_batch_torn_by_a_crash_is_ignored(tmp_path):
    journal = Journal(tmp_path)
    journal.add(FIRST)
    (tmp_path / f"{SECOND.batch_id}.partial").write_text('{"batch_id": "bbb", "ite')
    assert Journal(tmp_path).pending() == [FIRST]


def test_adding_leaves_no_partial_file(tmp_path):
    Journal(tmp_path).add(FIRST)
    assert [path.name for path in tmp_path.iterdir()] == [f"{FIRST.batch_id}.json"]


def test_the_same_batch_again_replaces_it(tmp_path):
    journal = Journal(tmp_path)
    journal.add(FIRST)
    grown = JournalEntry(FIRST.batch_id, [*FIRST.items, *SECOND.items])
    journal.add(grown)
    assert journal.pending() == [grown]


def test_a_batch_that_cannot_be_written_leaves_the_older_one(tmp_path):
    journal = Journal(tmp_path)
    journal.add(FIRST)
    with pytest.raises(TypeError):
        journal.add(JournalEntry(FIRST.batch_id, [{"task_id": object()}]))
    assert Journal(tmp_path).pending() == [FIRST]
