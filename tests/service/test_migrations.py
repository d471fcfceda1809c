"""The migrations make exactly the tables the code declares, on both stores."""

import gzip
import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import MetaData, inspect, select, text
from sqlalchemy.exc import IntegrityError

from service.artifacts import ArtifactStore
from service.auth.models import ApiKey
from service.db.base import utc_now
from service.db.migrate import alembic_config, changing_schema, migrate, prepare
from service.db.models import Agent, Base, KitItem, LatencyModel, Machine, Measurement, Target
from service.errors import StoreUnfitError


def differences(database) -> list:
    """What alembic would change to make the store match the code."""
    with database.engine.connect() as connection:
        options = {"compare_type": True, "render_as_batch": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)


def tables(database) -> set[str]:
    return set(inspect(database.engine).get_table_names())


def downgrade(database, revision: str = "base") -> None:
    with changing_schema(database) as config:
        command.downgrade(config, revision)


def upgrade(database, revision: str) -> None:
    with changing_schema(database) as config:
        command.upgrade(config, revision)


def test_upgrading_gives_exactly_the_tables_the_code_declares(empty_database):
    migrate(empty_database)
    assert differences(empty_database) == []
    assert tables(empty_database) == set(Base.metadata.tables) | {"alembic_version"}


def test_a_missing_column_would_be_noticed(empty_database):
    migrate(empty_database)
    with empty_database.engine.execution_options(tailor_writes=True).begin() as connection:
        connection.exec_driver_sql("ALTER TABLE jobs DROP COLUMN failure")
    assert len(differences(empty_database)) == 1


def test_upgrading_twice_is_harmless(empty_database):
    migrate(empty_database)
    migrate(empty_database)
    assert differences(empty_database) == []


def test_downgrading_removes_every_table_and_upgrading_brings_them_back(empty_database):
    migrate(empty_database)
    downgrade(empty_database)
    assert tables(empty_database) <= {"alembic_version"}
    migrate(empty_database)
    assert differences(empty_database) == []


def test_a_store_of_the_first_schema_keeps_its_rows_and_learns_of_machines(empty_database):
    upgrade(empty_database, "0001")
    with empty_database.transaction() as session:
        session.execute(
            text(MEASURED_BEFORE.split(";", maxsplit=1)[0]), {"now": "2026-11-01 12:00:00+00:00"}
        )
    migrate(empty_database)
    assert differences(empty_database) == []
    with empty_database.reading() as session:
        assert [(row.id, row.account) for row in session.scalars(select(ApiKey))] == [("k", "k")]
        assert session.scalars(select(Machine)).all() == []


def test_going_back_to_the_second_schema_takes_what_the_third_brought_alone(empty_database):
    upgrade(empty_database, "0003")
    before = tables(empty_database)
    downgrade(empty_database, "0002")
    brought = {"agent_targets", "kit_files", "kit_items", "signing_keys"}
    assert before - tables(empty_database) == brought
    migrate(empty_database)
    assert differences(empty_database) == []


MEASURED_BEFORE = """
INSERT INTO api_keys (id, name, scope, token_hash, created_at)
    VALUES ('k', 'k', 'admin', 'h', :now);
INSERT INTO targets (id, name, profile, profile_digest, created_at)
    VALUES ('t', 't', '{"device_model": "old", "threads": 1}', 'd', :now);
INSERT INTO agents (id, target_id, name, version, token_hash, created_at, last_seen_at)
    VALUES ('a', 't', 'a', '0.1.0', 'ah', :now, :now);
INSERT INTO kits (id, target_id, space, space_digest, created_at)
    VALUES ('kit', 't', 'micro', 's', :now);
INSERT INTO measurement_tasks (id, target_id, kit_id, subject, effort, model_sha256, anchor_sha256,
    status, tries, fence, agent_id, created_at)
    VALUES ('m1', 't', 'kit', 'block:b:x1', 'table', 'f', 'g', 'done', 1, 1, 'a', :now);
INSERT INTO measurement_tasks (id, target_id, kit_id, subject, effort, model_sha256, anchor_sha256,
    status, tries, fence, created_at)
    VALUES ('m2', 't', 'kit', 'network:micro@1:x', 'table', 'f', 'g', 'queued', 0, 0, :now);
INSERT INTO measurements (id, task_id, target_id, agent_id, subject, model_sha256, latency_ms,
    p10_ms, p90_ms, n, thread_cpu_ms, contended_share, anchor_ms, flagged, note, protocol_version,
    facts, created_at)
    VALUES ('mea', 'm1', 't', 'a', 'block:b:x1', 'f', 1.5, 1.4, 1.6, 100, 1.5, 0.0, 0.1, true, 'n',
    1, '{}', :now)
"""


def test_what_an_older_version_measured_is_kept_with_its_agent_and_its_kit(empty_database):
    upgrade(empty_database, "0002")
    with empty_database.transaction() as session:
        for statement in MEASURED_BEFORE.split(";"):
            session.execute(text(statement), {"now": "2026-11-01 12:00:00+00:00"})
    migrate(empty_database)
    with empty_database.reading() as session:
        agent = session.get(Agent, "a")
        assert agent.target_ids == ["t"]
        assert (agent.draining, agent.accepted) == (False, 0)
        items = session.scalars(select(KitItem).order_by(KitItem.task_id)).all()
        assert [(i.task_id, i.role) for i in items] == [("m1", "block"), ("m2", "calibration")]
        measured = session.get(Measurement, "mea")
        assert (measured.latency_ms, measured.grade, measured.quarantined) == (1.5, "C", [])
        assert measured.measured_at == measured.created_at
        target = session.get(Target, "t")
        assert target.profile["clock_state"] == "unmanaged"
        assert target.profile_digest != "d"
    downgrade(empty_database, "0002")
    migrate(empty_database)
    with empty_database.reading() as session:
        assert session.get(Agent, "a").target_ids == ["t"]
        assert session.get(KitItem, ("kit", "block:b:x1")).task_id == "m1"


FITTED_BEFORE = """
INSERT INTO targets (id, name, profile, profile_digest, created_at)
    VALUES ('t', 't', '{}', 'd', :first);
INSERT INTO targets (id, name, profile, profile_digest, created_at)
    VALUES ('other', 'o', '{}', 'e', :first);
INSERT INTO latency_models
    (id, target_id, space, space_digest, document, report, active, created_at)
    VALUES ('lmd_c', 't', 'micro', 's', '{}', '{}', false, :first),
    ('lmd_a', 't', 'micro', 's', '{}', '{}', true, :then),
    ('lmd_b', 't', 'micro', 's', '{}', '{}', false, :then),
    ('lmd_d', 't', 'spos', 'u', '{}', '{}', true, :then),
    ('lmd_e', 'other', 'micro', 's', '{}', '{}', true, :first)
"""


def test_models_that_an_older_version_fitted_are_numbered_by_age(empty_database):
    upgrade(empty_database, "0003")
    times = {"first": "2026-11-01 12:00:00+00:00", "then": "2026-11-02 12:00:00+00:00"}
    with empty_database.transaction() as session:
        for statement in FITTED_BEFORE.split(";"):
            used = {name: at for name, at in times.items() if f":{name}" in statement}
            session.execute(text(statement), used)
    numbered = {"lmd_c": 1, "lmd_a": 2, "lmd_b": 3, "lmd_d": 1, "lmd_e": 1}
    for _ in range(2):
        migrate(empty_database)
        with empty_database.reading() as session:
            rows = session.scalars(select(LatencyModel)).all()
            assert {row.id: row.version for row in rows} == numbered
            assert {row.id for row in rows if row.active} == {"lmd_a", "lmd_d", "lmd_e"}
        downgrade(empty_database, "0003")


def test_a_version_is_given_once(empty_database):
    migrate(empty_database)
    with empty_database.transaction() as session:
        target, *_ = FITTED_BEFORE.split(";")
        session.execute(text(target), {"first": "2026-11-01 12:00:00+00:00"})

    def model(model_id: str) -> LatencyModel:
        known = {"target_id": "t", "space": "micro", "space_digest": "s", "active": False}
        return LatencyModel(
            id=model_id, version=1, document={}, report={}, created_at=utc_now(), **known
        )

    with empty_database.transaction() as session:
        session.add(model("lmd_a"))
    with pytest.raises(IntegrityError), empty_database.transaction() as session:
        session.add(model("lmd_b"))


# -- stores of older versions ----------------------------------------------------------

STORES = Path(__file__).parents[1] / "data" / "stores"
REVISIONS = sorted({path.name.split(".")[0] for path in STORES.glob("*.sql.gz")})


def load(database, revision: str) -> None:
    """Fill an empty store with what the version of that revision had written."""
    kind = "sqlite" if database.engine.dialect.name == "sqlite" else "postgres"
    dump = gzip.decompress((STORES / f"{revision}.{kind}.sql.gz").read_bytes()).decode()
    if kind == "sqlite":
        with closing(sqlite3.connect(database.url.removeprefix("sqlite:///"))) as connection:
            connection.executescript(dump)
        return
    with closing(database.engine.raw_connection()) as connection:
        connection.cursor().execute(dump)
        connection.commit()
    database.engine.dispose()  # the dump has changed the settings of its connection


def rows(database) -> dict[str, list[dict]]:
    """Every row of every table but Alembic's, each with its columns by name."""
    with database.engine.connect() as connection:
        found = MetaData()
        found.reflect(connection, only=lambda name, _: name != "alembic_version")
        return {
            table.name: [dict(row) for row in connection.execute(select(table)).mappings()]
            for table in found.sorted_tables
        }


def test_there_is_a_full_store_of_every_revision_that_was_released():
    assert REVISIONS == ["0001", "0002", "0003", "0004", "0005"]


CHANGED = {"searches": {"version"}, "targets": {"profile", "profile_digest"}}
"""What a migration is there to change: 0003 tells more of a target's profile."""

TAKEN_OVER = {"agents": {"target_id"}, "measurement_tasks": {"kit_id"}, "kits": set()}
"""Columns whose content another table holds now."""


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_store_of_an_older_version_keeps_every_row(empty_database, revision):
    load(empty_database, revision)
    before = rows(empty_database)
    assert all(before[table] for table in before), "every table of that version has rows"
    migrate(empty_database)
    assert differences(empty_database) == []
    after = rows(empty_database)
    for table, old in before.items():
        kept = set(old[0]) - CHANGED.get(table, set()) - TAKEN_OVER.get(table, set())
        assert kept <= set(after[table][0]), table
        assert sorted(repr([r[c] for c in sorted(kept)]) for r in old) == sorted(
            repr([r[c] for c in sorted(kept)]) for r in after[table]
        ), table


@pytest.mark.parametrize("revision", REVISIONS)
def test_the_api_of_today_serves_a_store_of_an_older_version(
    empty_database, revision, serve, tmp_path
):
    load(empty_database, revision)
    files = ArtifactStore(f"file://{tmp_path}")
    for path in (STORES / "artifacts").iterdir():
        files.put(path.read_bytes())
    with serve(database_url=empty_database.url, artifacts_url=f"file://{tmp_path}") as api:
        page = api.http.get("/v1/searches").json()["items"]
        assert sorted(search["status"] for search in page) == [
            "cancelled",
            "queued",
            "queued",
            "queued",
            "succeeded",
        ]
        for search in page:
            assert api.read(search)["id"] == search["id"]
            events = api.events(search)
            assert [event["number"] for event in events] == list(range(1, len(events) + 1))
        (done,) = (search for search in page if search["status"] == "succeeded")
        assert done["result"]["network"]["measured"]["median_ms"] <= 0.03
        listed = api.http.get(f"/v1/searches/{done['id']}/artifacts").json()["items"]
        smallest = min(listed, key=lambda file: file["size_bytes"])
        content = api.http.get(smallest["url"]).content
        assert hashlib.sha256(content).hexdigest() == smallest["sha256"]
        assert api.http.get(f"/v1/searches/{done['id']}/architecture").status_code == 200
        for path in ("/v1/targets", "/v1/agents", "/v1/measurements", "/v1/keys"):
            assert api.http.get(path).json()["items"], path
        spec = {"target": done["spec"]["target"], "latency_budget_ms": 0.03}
        again = api.http.post("/v1/searches", json=spec)
        assert again.status_code == 201, again.text


def test_a_store_that_a_newer_version_has_upgraded_is_left_alone(empty_database):
    migrate(empty_database)
    with empty_database.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreUnfitError, match="9999, which this version of Tailor does not know"):
        migrate(empty_database)
    with empty_database.reading() as session:
        assert session.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"


@pytest.mark.parametrize("revision", [None, "0005"])
def test_who_may_not_migrate_says_what_to_run(empty_database, revision):
    if revision:
        upgrade(empty_database, revision)
    before = tables(empty_database)
    with pytest.raises(StoreUnfitError, match="run `tailor admin migrate`"):
        prepare(empty_database, may_migrate=False)
    assert tables(empty_database) == before
    migrate(empty_database)
    prepare(empty_database, may_migrate=False)


def test_a_migration_that_breaks_a_reference_changes_nothing(empty_database):
    if empty_database.engine.dialect.name != "sqlite":
        return  # PostgreSQL's foreign keys never rest
    migrate(empty_database)
    broken = pytest.raises(RuntimeError, match="broke a reference of table agent_targets")
    with broken, changing_schema(empty_database) as config:
        config.attributes["connection"].exec_driver_sql(
            "INSERT INTO agent_targets VALUES ('nobody', 'nothing', 0)"
        )
    with empty_database.reading() as session:
        assert session.execute(text("SELECT count(*) FROM agent_targets")).scalar() == 0


def test_the_migrations_configure_no_logging(empty_database, caplog):
    with caplog.at_level("WARNING"):
        migrate(empty_database)
    assert caplog.records == []


@pytest.mark.parametrize("password", ["per%cent", "at@sign"])
def test_a_password_may_hold_any_character(password):
    url = f"postgresql+psycopg://me:{password}@localhost/tailor"
    assert alembic_config(url).get_main_option("sqlalchemy.url") == url
