"""Results kept on disk until the server has them."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

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


# -- files that are not what they were -------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"batch_id": "bbb", "ite',
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b"{}",
        json.dumps({"batch_id": FIRST.batch_id, "items": []}).encode(),  # another one's content
    ],
)
def test_a_damaged_file_is_set_aside_and_the_others_are_uploaded(tmp_path, content):
    journal = Journal(tmp_path)
    journal.add(FIRST)
    damaged = tmp_path / f"{SECOND.batch_id}.json"
    damaged.write_bytes(content)
    assert journal.pending() == [FIRST]
    assert not damaged.exists()
    assert damaged.with_suffix(".damaged").read_bytes() == content


def test_heartbeats_may_count_while_batches_come_and_go(tmp_path):
    """The loop adds and discards in one thread, heartbeats count in another."""
    journal, stop = Journal(tmp_path), threading.Event()

    def count():
        while not stop.is_set():
            journal.pending()

    failed = []
    thread = threading.Thread(target=lambda: failed.append(_error_of(count)))
    thread.start()
    for n in range(30):
        entry = JournalEntry(f"{n:032}", FIRST.items)
        assert journal.add(entry)
        (tmp_path / f"damaged{n}.json").write_bytes(b"{")
        assert [e.batch_id for e in journal.pending()] == [entry.batch_id]
        journal.discard(entry.batch_id)
    stop.set()
    thread.join()
    assert failed == [None]
    assert len(list(tmp_path.glob("*.damaged"))) == 30


def _error_of(run):
    try:
        run()
    except Exception as error:
        return error


# -- disks that are full or gone -------------------------------------------------------


def write_failing(folder: Path, program: str) -> list[str]:
    """Run `program` in a process whose files may not grow beyond 4096 bytes; what it prints."""

    def no_growth():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    ended = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        preexec_fn=no_growth,
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout.splitlines()


FILL = """
import sys
from pathlib import Path
from predictor.agent.journal import Journal, JournalEntry
journal = Journal(Path(sys.argv[1]))
small, large = [{"task_id": "t"}], [{"task_id": "t" * 9000}]
print(journal.add(JournalEntry("first", small)))
print(journal.add(JournalEntry("first", small + large)))
print(journal.add(JournalEntry("second", large)))
print([(entry.batch_id, len(entry.items)) for entry in journal.pending()])
journal.discard("second")
print([(entry.batch_id, len(entry.items)) for entry in journal.pending()])
"""


def test_what_cannot_be_written_is_still_pending_and_what_was_written_stays(tmp_path):
    assert write_failing(tmp_path, FILL) == [
        "True",
        "False",
        "False",
        "[('first', 2), ('second', 1)]",
        "[('first', 2)]",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["first.json"]  # no partial file
    assert Journal(tmp_path).pending() == [JournalEntry("first", [{"task_id": "t"}])]


def test_a_batch_in_memory_is_not_changed_by_what_follows(tmp_path):
    journal = Journal(tmp_path / "folder")
    (tmp_path / "folder").rmdir()
    items = [{"task_id": "t1"}]
    assert not journal.add(JournalEntry("a" * 32, items))
    items.append({"task_id": "t2"})
    assert journal.pending() == [JournalEntry("a" * 32, [{"task_id": "t1"}])]


def test_a_batch_in_memory_goes_to_disk_once_there_is_room(tmp_path):
    folder = tmp_path / "folder"
    journal = Journal(folder)
    folder.rmdir()
    assert not journal.add(FIRST)
    folder.mkdir()
    assert journal.add(FIRST)
    assert Journal(folder).pending() == journal.pending() == [FIRST]


def test_a_folder_that_is_gone_costs_nothing_that_is_in_memory(tmp_path):
    folder = tmp_path / "folder"
    journal = Journal(folder)
    folder.rmdir()
    journal.add(FIRST)
    journal.discard(FIRST.batch_id)
    assert journal.pending() == []
