"""Bringing a store's schema to this version, with Alembic."""

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
    config = alembic_config(database.url)
    with database.engine.execution_options(tailor_writes=True).begin() as connection:
        take_turns(connection, "migrate")  # several processes may start at once
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
