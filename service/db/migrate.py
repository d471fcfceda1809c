"""Bringing a store's schema to this version, with Alembic."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from service.db.database import Database, take_turns
from service.errors import StoreUnfitError

_HERE = Path(__file__).parent
_SCRIPTS = (_HERE / "migrations", _HERE.parents[1] / "migrations")  # a wheel, a source tree


def alembic_config(url: str) -> Config:
    """Alembic's configuration for the migrations that ship with this version."""
    config = Config()
    config.set_main_option("script_location", str(next(path for path in _SCRIPTS if path.is_dir())))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def migrate(database: Database) -> None:
    """Upgrade the store to the newest revision; harmless when it is there already.

    Raises:
        StoreUnfitError: a newer version of Tailor has upgraded it.
    """
    if check_known(database) == newest_revision():
        return  # without the lock: every process asks when it starts
    with changing_schema(database) as config:
        command.upgrade(config, "head")


def prepare(database: Database, *, may_migrate: bool) -> None:
    """Make sure that the store has this version's schema, by upgrading it where that is allowed.

    Raises:
        StoreUnfitError: it has another one; the message says what to do.
    """
    if may_migrate:
        migrate(database)
    else:
        check_migrated(database)


def check_migrated(database: Database) -> None:
    """Raises StoreUnfitError unless the store has exactly the schema of this version."""
    found = check_known(database)
    if found != newest_revision():
        raise StoreUnfitError(
            f"the store's schema is {found or 'empty'} and this version's is {newest_revision()}; "
            "run `tailor admin migrate`, or start the API without TAILOR_MIGRATE=false"
        )


def check_known(database: Database) -> str | None:
    """The store's revision, None for an empty store.

    Raises:
        StoreUnfitError: this version does not know it.
    """
    found = revision_of(database)
    if found is not None and not is_known(found):
        raise StoreUnfitError(
            f"the store's schema is {found}, which this version of Tailor does not know: a newer "
            f"one has upgraded it (this one's newest is {newest_revision()}); install that "
            "version, or restore a backup from before the upgrade"
        )
    return found


def is_known(revision: str) -> bool:
    """Whether this version can work with, or upgrade, a store of that revision."""
    return revision in _revisions()


def revision_of(database: Database) -> str | None:
    """The revision of the store's schema, None for an empty store."""
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


@cache
def newest_revision() -> str:
    """The revision that this version works with."""
    newest = _scripts().get_current_head()
    assert newest is not None
    return newest


@cache
def _revisions() -> frozenset[str]:
    return frozenset(script.revision for script in _scripts().walk_revisions())


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(alembic_config(""))


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
