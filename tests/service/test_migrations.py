"""The migrations make exactly the tables the code declares, on both stores."""

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import IntegrityError

from service.auth.models import ApiKey
from service.db.base import utc_now
from service.db.migrate import alembic_config, changing_schema, migrate
from service.db.models import Agent, Base, KitItem, LatencyModel, Machine, Measurement, Target


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
        session.execute(text(MEASURED_BEFORE.split(";")[0]), {"now": "2026-11-01 12:00:00+00:00"})
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
