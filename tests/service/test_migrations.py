"""The migrations make exactly the tables the code declares, on both stores."""

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, select

from service.auth.models import ApiKey
from service.auth.repository import create_key
from service.db.migrate import alembic_config, migrate
from service.db.models import Base, Machine


def differences(database) -> list:
    """What alembic would change to make the store match the code."""
    with database.engine.connect() as connection:
        options = {"compare_type": True, "render_as_batch": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)


def tables(database) -> set[str]:
    return set(inspect(database.engine).get_table_names())


def downgrade(database, revision: str = "base") -> None:
    config = alembic_config(database.url)
    with database.engine.execution_options(tailor_writes=True).begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def upgrade(database, revision: str) -> None:
    config = alembic_config(database.url)
    with database.engine.execution_options(tailor_writes=True).begin() as connection:
        config.attributes["connection"] = connection
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
        key, _ = create_key(session, "from before", "admin")
    migrate(empty_database)
    assert differences(empty_database) == []
    with empty_database.reading() as session:
        assert [row.id for row in session.scalars(select(ApiKey))] == [key.id]
        assert session.scalars(select(Machine)).all() == []


def test_going_back_to_the_first_schema_takes_the_machines_alone(empty_database):
    migrate(empty_database)
    before = tables(empty_database)
    downgrade(empty_database, "0001")
    assert before - tables(empty_database) == {"machine_profiles"}


def test_the_migrations_configure_no_logging(empty_database, caplog):
    with caplog.at_level("WARNING"):
        migrate(empty_database)
    assert caplog.records == []


@pytest.mark.parametrize("password", ["per%cent", "at@sign"])
def test_a_password_may_hold_any_character(password):
    url = f"postgresql+psycopg://me:{password}@localhost/tailor"
    assert alembic_config(url).get_main_option("sqlalchemy.url") == url
