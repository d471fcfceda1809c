"""`tailor admin`: what is done to the store itself, on a machine that reaches it.

These commands read the settings of the environment (TAILOR_DATABASE_URL, ...) and need no API.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from service.cli.connection import Json, complaining, print_json, print_table
from service.settings import Settings

app = typer.Typer(
    help="Examine, back up, clean and migrate the store (needs no API).", no_args_is_help=True
)

_EXIT_FOUND = 1
_stderr = Console(stderr=True)


@app.command()
def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Read every file.")] = False,
    json: Json = False,
) -> None:
    """Look for what is wrong; exit status 1 when something keeps the service from working."""
    from service.admin.doctor import examine
    from service.artifacts import ArtifactStore
    from service.db.database import Database

    settings = Settings()
    database = Database(settings.resolved_database_url)
    artifacts = ArtifactStore(settings.resolved_artifacts_url)
    found = examine(settings, database, artifacts, deep=deep)
    if json:
        print_json({"healthy": found.is_healthy, **asdict(found)})
    elif found.findings:
        print_table(
            ["level", "check", "what, and what to do"],
            [(finding.level, finding.check, finding.text) for finding in found.findings],
        )
    else:
        Console().print(f"all is well: {', '.join(found.checks)}")
    sys.exit(0 if found.is_healthy else _EXIT_FOUND)


@app.command()
def backup(path: Annotated[Path, typer.Argument(help="A new folder.")], json: Json = False) -> None:
    """Write everything that is stored to a new folder, while the service goes on."""
    from service.admin.backup import make_backup
    from service.artifacts import ArtifactStore
    from service.db.database import Database

    settings = Settings()
    with complaining():
        made = make_backup(
            Database(settings.resolved_database_url),
            ArtifactStore(settings.resolved_artifacts_url),
            path,
        )
    if json:
        print_json(asdict(made))
    else:
        Console().print(f"{made.path}: {made.artifacts} files, {made.n_bytes / 2**20:.1f} MiB")
    if made.missing:
        _stderr.print(
            f"{len(made.missing)} files that rows name are missing or damaged; "
            "`tailor admin doctor --deep` says which"
        )
        sys.exit(_EXIT_FOUND)


@app.command()
def restore(path: Path, json: Json = False) -> None:
    """Bring a backup back into an empty store."""
    from service.admin.restore import restore_backup
    from service.artifacts import ArtifactStore
    from service.db.database import Database

    settings = Settings()
    with complaining():
        restored = restore_backup(
            Database(settings.resolved_database_url),
            ArtifactStore(settings.resolved_artifacts_url),
            path,
        )
    if json:
        print_json(asdict(restored))
    else:
        Console().print(f"restored {restored.path}: {restored.artifacts} files")


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    json: Json = False,
) -> None:
    """Remove files that nothing names, checkpoints of ended searches, and what has expired."""
    from service.admin.cleaning import clean
    from service.artifacts import ArtifactStore
    from service.db.database import Database
    from service.db.migrate import check_migrated

    settings = Settings()
    database = Database(settings.resolved_database_url)
    with complaining():
        check_migrated(database)
    artifacts = ArtifactStore(settings.resolved_artifacts_url)
    cleaned = clean(settings, database, artifacts, dry_run=dry_run)
    if json:
        return print_json({"dry_run": dry_run, **asdict(cleaned)})
    rows = [
        ("files", f"{cleaned.artifacts} ({cleaned.artifact_bytes / 2**20:.1f} MiB)"),
        ("checkpoints", cleaned.checkpoints),
        *cleaned.rows.items(),
    ]
    print_table(["what", "would be removed" if dry_run else "removed"], rows)
    return None


@app.command()
def migrate(
    check: Annotated[bool, typer.Option("--check", help="Only say; 1 when it must be.")] = False,
    json: Json = False,
) -> None:
    """Bring the store's schema to this version; harmless when it is there already."""
    from service.db import migrate as schema
    from service.db.database import Database

    database = Database(Settings().resolved_database_url)
    with complaining():
        before = schema.check_known(database)
        if not check:
            schema.migrate(database)
    newest = schema.newest_revision()
    if json:
        print_json({"before": before, "newest": newest, "migrated": not check})
    else:
        Console().print(
            f"the store was at {before or 'nothing'}; this version's schema is {newest}"
        )
    sys.exit(_EXIT_FOUND if check and before != newest else 0)


@app.command()
def key(name: str, json: Json = False) -> None:
    """Make an admin key, for when the last one is lost; its secret is shown this once."""
    from service.auth.repository import create_key
    from service.db.database import Database
    from service.db.migrate import check_migrated

    database = Database(Settings().resolved_database_url)
    with complaining():
        check_migrated(database)
    with database.transaction() as session:
        made, token = create_key(session, name, "admin")
    if json:
        return print_json({"id": made.id, "name": made.name, "scope": made.scope, "token": token})
    print_table(["id", "name", "scope", "secret"], [(made.id, made.name, made.scope, token)])
    return None
