"""Bringing a store's schema to this version, with Alembic."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config

from service.db.database import Database, take_turns

_HERE = Path(__file__).parent
_SCRIPTS = (_HERE / "migrations", _HERE.parents[1] / "migrations")  # a wheel, a source tree


def alembic_config(url: str) -> Config:
    """Alembic's configuration for the migrations that ship with this version."""
    config = Config()
    config.set_main_option("script_location", str(next(path for path in _SCRIPTS if path.is_dir())))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def migrate(database: Database) -> None:
    """Upgrade the store to the newest revision; harmless when it is there already."""
    with changing_schema(database) as config:
        command.upgrade(config, "head")


@contextmanager
def changing_schema(database: Database) -> Iterator[Config]:
    """Alembic's configuration within one transaction that no other migration shares.

    SQLite alters a table by copying and dropping it, which its foreign keys forbid; they
    rest meanwhile, and are checked before the transaction commits.
    """
    config = alembic_config(database.url)
    with database.engine.execution_options(tailor_writes=True).connect() as connection:
        sqlite = connection.dialect.name == "sqlite"
        raw = connection.connection.dbapi_connection
        assert raw is not None
        if sqlite:
            raw.execute("PRAGMA foreign_keys=OFF")
        try:
            with connection.begin():
                take_turns(connection, "migrate")  # several processes may start at once
                config.attributes["connection"] = connection
                yield config
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check") if sqlite else None
                if broken is not None and (row := broken.first()):
                    raise RuntimeError(f"the migration broke a reference of table {row[0]}")
        finally:
            if sqlite:
                raw.execute("PRAGMA foreign_keys=ON")
