"""`tailor admin`: what is wrong is named with its remedy; what nothing needs is removed."""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import text, update

from service.admin import repository
from service.admin.cleaning import clean
from service.admin.doctor import examine
from service.agents.models import EnrolmentCode
from service.artifacts import ArtifactStore
from service.auth.models import ApiKey
from service.auth.repository import create_key
from service.cli.main import main
from service.db.base import Base, utc_now
from service.db.migrate import newest_revision
from service.jobs import repository as jobs
from service.searches.models import Search, SearchArtifact
from service.sessions.models import SessionRow
from service.settings import Settings
from service.webhooks.models import Webhook

LONG_AGO = timedelta(days=60)


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path, free_disk_bytes=0)


@pytest.fixture
def artifacts(settings):
    return ArtifactStore(settings.resolved_artifacts_url)


def found(settings, database, artifacts, *, deep: bool = False) -> dict[str, str]:
    """What the doctor finds, but for the workers and agents that tests have none of."""
    told: dict[str, str] = {}
    for finding in examine(settings, database, artifacts, deep=deep).findings:
        if finding.check not in ("workers", "agents"):
            name = f"{finding.level} {finding.check}"
            told[name] = f"{told.get(name, '')}{finding.text}\n"
    return told


@pytest.fixture
def healthy(database):
    """A store with an admin key."""
    with database.transaction() as session:
        create_key(session, "root", "admin")
    return database


# -- doctor ----------------------------------------------------------------------------


def test_an_installation_that_is_well_has_no_findings(settings, healthy, artifacts):
    examined = examine(settings, healthy, artifacts, deep=True)
    assert examined.is_healthy
    assert found(settings, healthy, artifacts) == {}
    assert {"store", "artifacts", "disk", "clock", "stuck", "files", "keys"} <= set(examined.checks)


def test_what_is_stuck_is_found(settings, healthy, artifacts, add_search):
    with healthy.transaction() as session:
        orphaned = add_search(session, status="running")
        queued = add_search(session)
        jobs.enqueue(session, "search", queued.id, max_attempts=1)
        add_search(session, status="succeeded", phase="done")
        job = jobs.enqueue(session, "fit_latency_model", "kit_1", max_attempts=1)
        job.status, job.lease_expires_at = "running", utc_now() - LONG_AGO
        session.flush()
        names = orphaned.id, job.id
    (told,) = found(settings, healthy, artifacts).values()
    assert all(name in told for name in names)
    assert queued.id not in told


def test_files_that_are_gone_or_damaged_are_found(settings, healthy, artifacts, add_search):
    with healthy.transaction() as session:
        search = add_search(session, status="succeeded")
        hashes = [artifacts.put(content) for content in (b"lost", b"damaged", b"whole")]
        for sha256 in hashes:
            facts = {"search_id": search.id, "name": sha256, "sha256": sha256}
            session.add(SearchArtifact(**facts, size_bytes=1, media_type="text/plain"))
    lost, damaged, whole = (settings.home / "artifacts" / sha256[:2] / sha256 for sha256 in hashes)
    lost.unlink()
    damaged.write_bytes(b"other")
    quick = found(settings, healthy, artifacts)["error files"]
    assert lost.name in quick
    assert damaged.name not in quick  # only who reads every file can tell
    deep = found(settings, healthy, artifacts, deep=True)["error files"]
    assert lost.name in deep
    assert damaged.name in deep
    assert whole.name not in deep


def test_files_that_no_row_names_are_found(settings, healthy, artifacts):
    make_old(settings, artifacts.put(b"nobody's"))
    assert "tailor admin gc" in found(settings, healthy, artifacts)["warning orphans"]


def test_an_installation_without_admin_key_is_told_how_to_make_one(settings, healthy, artifacts):
    with healthy.transaction() as session:
        session.execute(update(ApiKey).values(revoked_at=utc_now()))
    assert "tailor admin key" in found(settings, healthy, artifacts)["error keys"]


def test_keys_that_have_expired_are_found(settings, healthy, artifacts):
    with healthy.transaction() as session:
        key, _ = create_key(session, "old", "user", expires_at=utc_now() - LONG_AGO)
    assert key.id in found(settings, healthy, artifacts)["warning keys"]


def test_webhooks_that_were_switched_off_are_found(settings, healthy, artifacts):
    with healthy.transaction() as session:
        facts = {"url": "http://x", "events": [], "secret": "s", "created_at": utc_now()}
        session.add(Webhook(id="whk_1", owner="o", active=False, disabled={"code": "x"}, **facts))
    assert "whk_1" in found(settings, healthy, artifacts)["warning webhooks"]


def test_a_disk_that_is_full_is_found(settings, store, artifacts):
    full = settings.model_copy(update={"free_disk_bytes": 2**62})
    assert "make room" in found(full, store, artifacts)["error disk"]


def test_a_store_of_another_schema_ends_the_examination(settings, healthy, artifacts):
    with healthy.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0005'"))
    assert list(found(settings, healthy, artifacts)) == ["error store"]


def test_an_artifact_store_that_cannot_be_written_is_found(settings, healthy, artifacts):
    (settings.home / "artifacts").write_text("a file")
    told = found(settings, healthy, artifacts)["error artifacts"]
    assert str(settings.home) not in told


# -- gc --------------------------------------------------------------------------------


def test_every_column_that_holds_a_hash_is_known_to_name_a_file_or_not():
    named = {(c.class_.__tablename__, c.key) for c in repository.ARTIFACT_REFERENCES}
    no_file = {
        ("measurements", "model_sha256"),  # of its task, which names the file
        ("searches", "body_sha256"),  # of a request
    }
    hashes = {
        (table.name, column.name)
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if "sha256" in column.name
    }
    assert hashes == named | no_file


def make_old(settings, sha256: str) -> Path:
    path = settings.home / "artifacts" / sha256[:2] / sha256
    long_ago = (utc_now() - LONG_AGO).timestamp()
    os.utime(path, (long_ago, long_ago))
    return path


@pytest.fixture
def files(settings, database, artifacts, add_search):
    """Three old files and a young one; a row names the first."""
    kept, gone, stored_again = (
        artifacts.put(content) for content in (b"named", b"nobody's", b"again")
    )
    for sha256 in (kept, gone, stored_again):
        make_old(settings, sha256)
    assert artifacts.put(b"again") == stored_again  # by somebody who has yet to commit
    young = artifacts.put(b"young")
    with database.transaction() as session:
        search = add_search(session, status="succeeded")
        facts = {"search_id": search.id, "name": "a", "size_bytes": 1, "media_type": "text/plain"}
        session.add(SearchArtifact(**facts, sha256=kept))
    return SimpleNamespace(kept={kept, stored_again, young}, gone=gone)


def hashes(artifacts) -> set[str | None]:
    return {file.sha256 for file in artifacts.stored()}


def test_files_that_no_row_names_are_removed_after_the_grace(settings, database, artifacts, files):
    cleaned = clean(settings, database, artifacts, dry_run=False)
    assert (cleaned.artifacts, cleaned.artifact_bytes) == (1, len(b"nobody's"))
    assert hashes(artifacts) == files.kept


def test_a_dry_run_counts_and_removes_nothing(settings, database, artifacts, files):
    cleaned = clean(settings, database, artifacts, dry_run=True)
    assert cleaned.artifacts == 1
    assert hashes(artifacts) == files.kept | {files.gone}


def test_a_file_that_is_stored_again_at_the_last_moment_stays(
    settings, database, artifacts, files, monkeypatch
):
    look = artifacts.look

    def stored_first(path: str):
        with artifacts.writing() as incoming:
            incoming.write(b"nobody's")
        return look(path)

    monkeypatch.setattr(artifacts, "look", stored_first)
    assert clean(settings, database, artifacts, dry_run=False).artifacts == 0
    assert files.gone in hashes(artifacts)


def test_checkpoints_of_ended_searches_are_removed_after_the_grace(
    settings, database, artifacts, add_search
):
    with database.transaction() as session:
        ended, running = (add_search(session, status=s).id for s in ("failed", "running"))
    long_ago = (utc_now() - LONG_AGO).timestamp()
    for name in (ended, running, "srch_unknown"):
        (settings.checkpoints_dir / name).mkdir(parents=True)
        os.utime(settings.checkpoints_dir / name, (long_ago, long_ago))
    (settings.checkpoints_dir / "srch_new").mkdir()
    assert clean(settings, database, artifacts, dry_run=True).checkpoints == 2
    assert clean(settings, database, artifacts, dry_run=False).checkpoints == 2
    left = {path.name for path in settings.checkpoints_dir.iterdir()}
    assert left == {running, "srch_new"}


def test_what_has_expired_is_forgotten(settings, database, artifacts, add_search):
    now = utc_now()
    with database.transaction() as session:
        old = add_search(session, idempotency_key="k", body_sha256="x", created_at=now - LONG_AGO)
        new = add_search(session, idempotency_key="k2", body_sha256="y")
        for name, at in (("a", now), ("b", now - LONG_AGO)):
            facts = {"token_hash": name, "created_at": at, "last_used_at": at}
            expires_at = at + timedelta(hours=1)
            session.add(
                SessionRow(id=name, key_id=old.owner_key_id, expires_at=expires_at, **facts)
            )
            session.add(
                EnrolmentCode(code_hash=name, created_by=old.owner_key_id, expires_at=expires_at)
            )
    rows = clean(settings, database, artifacts, dry_run=False).rows
    assert rows == {
        "sessions": 1,
        "enrolment_codes": 1,
        "idempotency_keys": 1,
        "webhook_deliveries": 0,
    }
    with database.reading() as session:
        assert session.get(Search, old.id).idempotency_key is None
        assert session.get(Search, new.id).idempotency_key == "k2"
        assert session.get(SessionRow, "a") is not None


# -- the commands ----------------------------------------------------------------------


@pytest.fixture
def admin(monkeypatch, capsys, tmp_path):
    """Runs `tailor admin ...` over an installation of its own."""
    monkeypatch.setenv("TAILOR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TAILOR_FREE_DISK_BYTES", "0")

    def run(*words: str) -> SimpleNamespace:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["tailor", "admin", *words])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        return SimpleNamespace(status=exit_.value.code or 0, out=printed.out, err=printed.err)

    return run


def test_the_commands_take_a_store_from_nothing_to_a_restored_backup(admin, tmp_path, monkeypatch):
    assert admin("migrate", "--check").status == 1
    migrated = admin("migrate", "--json")
    assert json.loads(migrated.out) == {
        "before": None,
        "newest": newest_revision(),
        "migrated": True,
    }
    assert admin("migrate", "--check").status == 0
    sick = admin("doctor", "--json")
    assert sick.status == 1
    assert {f["check"] for f in json.loads(sick.out)["findings"]} == {"workers", "keys"}
    assert admin("key", "root", "--json").status == 0
    assert json.loads(admin("doctor", "--json").out)["healthy"] is True
    assert "no worker is online" in admin("doctor").out.replace("\n", " ")
    assert json.loads(admin("gc", "--dry-run", "--json").out)["artifacts"] == 0
    assert admin("gc").status == 0
    assert admin("backup", str(tmp_path / "backup")).status == 0
    again = admin("backup", str(tmp_path / "backup"))
    assert (again.status, "exists" in again.err) == (2, True)
    assert admin("restore", str(tmp_path / "backup")).status == 2  # over itself
    monkeypatch.setenv("TAILOR_HOME", str(tmp_path / "other"))
    assert admin("restore", str(tmp_path / "backup"), "--json").status == 0
    assert json.loads(admin("doctor", "--json").out)["healthy"] is True


def test_a_key_of_the_command_opens_the_api(admin, serve, monkeypatch):
    with serve() as api:
        monkeypatch.setenv("TAILOR_HOME", str(api.settings.home))
        made = json.loads(admin("key", "root", "--json").out)
        assert api.client(made["token"]).get("/v1/keys/self").json()["scope"] == "admin"


@pytest.mark.parametrize("words", [("gc",), ("key", "x"), ("backup", "there")])
def test_commands_leave_a_store_of_another_schema_alone(admin, words):
    refused = admin(*words)
    assert refused.status == 2
    assert "tailor admin migrate" in refused.err
