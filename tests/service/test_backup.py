"""Backups: whole or none, of one moment while writers go on, and back again on both stores."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import MetaData, func, select, text

from service.admin.backup import MANIFEST, make_backup
from service.admin.restore import restore_backup
from service.artifacts import ArtifactStore
from service.db.base import utc_now
from service.db.database import Database
from service.db.migrate import migrate, newest_revision
from service.errors import StoreUnfitError
from service.machines.models import Machine
from service.searches.models import SearchArtifact
from service.targets.models import Target


@pytest.fixture
def artifacts(tmp_path):
    return ArtifactStore(f"file://{tmp_path}/artifacts")


@pytest.fixture
def elsewhere(request, new_store, tmp_path):
    """An empty store of the kind of `database`, and its artifact store."""
    kind = request.node.callspec.params.get("database", "sqlite")
    store = Database(new_store(kind, migrated=False))
    yield store, ArtifactStore(f"file://{tmp_path}/elsewhere")
    store.dispose()


def name_file(session, search_id: str, name: str, content: bytes, artifacts) -> str:
    """An artifact of a search, stored and named by a row."""
    sha256 = artifacts.put(content)
    facts = {"search_id": search_id, "name": name, "size_bytes": len(content)}
    session.add(SearchArtifact(**facts, sha256=sha256, media_type="text/plain"))
    return sha256


@pytest.fixture
def filled(database, artifacts, add_search):
    """A store with text that tries every escape, and two files of one search."""
    with database.transaction() as session:
        search = add_search(session, spec={"text": "tab\t, line\n, quote \"' \\ \\N é 漢 🦊"})
        for name in ("model.onnx", "notes.txt"):
            name_file(session, search.id, name, name.encode() * 100, artifacts)
    return database


def rows(database) -> dict[str, list]:
    """Every row of every table."""
    with database.engine.connect() as connection:
        found = MetaData()
        found.reflect(connection)
        return {
            table.name: sorted(map(repr, connection.execute(select(table))))
            for table in found.sorted_tables
        }


def test_a_backup_brings_every_row_and_file_back(filled, artifacts, elsewhere, tmp_path):
    made = make_backup(filled, artifacts, tmp_path / "backup")
    assert (made.artifacts, made.missing) == (2, [])
    store, files = elsewhere
    restore_backup(store, files, tmp_path / "backup")
    assert rows(store) == rows(filled)
    with store.reading() as session:
        for row in session.scalars(select(SearchArtifact)):
            assert files.get(row.sha256) == row.name.encode() * 100
    migrate(store)  # as an API does when it starts
    assert rows(store) == rows(filled)


@contextmanager
def writing(database, artifacts, search_id: str):
    """Meanwhile, a thread writes rows in pairs, and files before the rows that name them."""
    stop, begun = threading.Event(), threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            now = utc_now()
            with database.transaction() as session:
                target = {"id": f"tgt_{number}", "name": "", "profile": {}, "created_at": now}
                session.add(Target(**target, profile_digest=str(number)))
                session.flush()
                machine = {"id": f"mch_{number}", "key": str(number), "host": "", "document": {}}
                session.add(Machine(**machine, created_at=now, seen_at=now))
                name_file(session, search_id, str(number), str(number).encode(), artifacts)
            begun.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert begun.wait(60)
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_backup_is_of_one_moment_while_others_write(
    database, artifacts, elsewhere, tmp_path, add_search
):
    with database.transaction() as session:
        search_id = add_search(session).id
    with writing(database, artifacts, search_id):
        backups = [make_backup(database, artifacts, tmp_path / str(n)) for n in range(3)]
    assert [made.missing for made in backups] == [[], [], []]
    store, files = elsewhere
    restore_backup(store, files, tmp_path / "2")
    with store.reading() as session:
        counts = [
            session.scalar(select(func.count()).select_from(table))
            for table in (Machine, SearchArtifact)
        ]
        targets = session.scalar(select(func.count()).where(Target.name == ""))
        assert counts == [targets, targets]
        assert targets > 0
        for row in session.scalars(select(SearchArtifact)):
            assert files.get(row.sha256) == row.name.encode()


def test_the_manifest_names_every_file_by_its_hash(filled, artifacts, tmp_path):
    make_backup(filled, artifacts, tmp_path / "backup")
    manifest = json.loads((tmp_path / "backup" / MANIFEST).read_text())
    found = {
        str(path.relative_to(tmp_path / "backup"))
        for path in (tmp_path / "backup").rglob("*")
        if path.is_file()
    }
    assert set(manifest["files"]) == found - {MANIFEST}
    assert manifest["revision"] == newest_revision()
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0


def test_files_that_are_missing_or_damaged_are_told_and_the_rest_is_kept(
    filled, artifacts, tmp_path
):
    with filled.reading() as session:
        lost, damaged = session.scalars(select(SearchArtifact.sha256)).all()
    folder = tmp_path / "artifacts"
    (folder / lost[:2] / lost).unlink()
    (folder / damaged[:2] / damaged).write_bytes(b"something else")
    made = make_backup(filled, artifacts, tmp_path / "backup")
    assert made.missing == sorted([lost, damaged])
    assert made.artifacts == 0


def test_a_backup_that_fails_leaves_nothing(filled, artifacts, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(artifacts, "copy_out", full)
    with pytest.raises(OSError, match="no space"):
        make_backup(filled, artifacts, tmp_path / "backup")
    assert [path.name for path in tmp_path.iterdir()] == ["artifacts"]


def test_a_backup_that_was_killed_is_never_taken_for_whole(
    filled, artifacts, elsewhere, tmp_path, eventually
):
    with filled.reading() as session:
        sha256 = session.scalars(select(SearchArtifact.sha256)).first()
    path = tmp_path / "artifacts" / sha256[:2] / sha256
    path.unlink()
    os.mkfifo(path)  # whoever reads it waits for ever
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "admin", "backup", str(tmp_path / "backup")],
        env={
            **os.environ,
            "TAILOR_HOME": str(tmp_path),
            "TAILOR_DATABASE_URL": filled.url,
            "TAILOR_ARTIFACTS_URL": f"file://{tmp_path}/artifacts",
        },
    )
    eventually(lambda: list(tmp_path.glob("backup.*.partial/artifacts/*")), "it does not begin")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "backup").exists()
    (begun,) = tmp_path.glob("backup.*.partial")
    with pytest.raises(StoreUnfitError, match="not finished"):
        restore_backup(*elsewhere, begun)


def test_a_store_with_tables_is_never_restored_over(filled, artifacts, tmp_path):
    make_backup(filled, artifacts, tmp_path / "backup")
    before = rows(filled)
    with pytest.raises(StoreUnfitError, match="tables already"):
        restore_backup(filled, artifacts, tmp_path / "backup")
    assert rows(filled) == before


def test_a_backup_is_never_written_over(filled, artifacts, tmp_path):
    (tmp_path / "backup").mkdir()
    with pytest.raises(StoreUnfitError, match="exists"):
        make_backup(filled, artifacts, tmp_path / "backup")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [_cut, _change, Path.unlink])
def test_a_backup_that_was_harmed_is_refused_whole(filled, artifacts, elsewhere, tmp_path, harm):
    make_backup(filled, artifacts, tmp_path / "backup")
    manifest = json.loads((tmp_path / "backup" / MANIFEST).read_text())
    name = max(manifest["files"], key=lambda name: manifest["files"][name]["bytes"])
    file = tmp_path / "backup" / name
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)  # no link to the store's own file
    harm(file)
    store, files = elsewhere
    with pytest.raises(StoreUnfitError, match="use another backup"):
        restore_backup(store, files, tmp_path / "backup")
    assert list(files.stored()) == []
    with store.engine.connect() as connection:
        assert not connection.dialect.has_table(connection, "searches")


@pytest.mark.parametrize("change", [{"revision": "9999"}, {"format": 2}])
def test_a_backup_of_a_newer_version_is_refused(store, artifacts, tmp_path, change, new_store):
    make_backup(store, artifacts, tmp_path / "backup")
    path = tmp_path / "backup" / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    empty = Database(new_store("sqlite", migrated=False))
    with pytest.raises(StoreUnfitError, match="restore it with that version"):
        restore_backup(empty, artifacts, tmp_path / "backup")
    empty.dispose()


@pytest.mark.postgres
def test_a_backup_goes_back_into_its_own_kind_of_store(store, artifacts, tmp_path, new_store):
    make_backup(store, artifacts, tmp_path / "backup")
    other = Database(new_store("postgres", migrated=False))
    with pytest.raises(StoreUnfitError, match="its own kind"):
        restore_backup(other, artifacts, tmp_path / "backup")
    other.dispose()


def test_a_store_that_was_not_migrated_is_not_backed_up_as_if_it_were(store, artifacts, tmp_path):
    with store.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0005'"))
    with pytest.raises(StoreUnfitError, match="tailor admin migrate"):
        make_backup(store, artifacts, tmp_path / "backup")
