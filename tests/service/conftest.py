"""Shared parts of the service's tests."""

import io
import json
import sys
import tarfile
import zipfile
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.orm import Session

from service.auth.repository import create_key
from service.cli.main import main
from service.db.base import new_id, utc_now
from service.db.database import Database
from service.searches.models import Search
from service.targets.models import Target


@pytest.fixture
def store(new_store):
    """An empty store of the present schema."""
    database = Database(new_store("sqlite", migrated=True))
    yield database
    database.dispose()


@pytest.fixture
def tailor(api, monkeypatch, capsys, tmp_path):
    """Runs `tailor` with these words and gives its exit status, output and complaints."""
    monkeypatch.setenv("TAILOR_URL", api.url)
    monkeypatch.setenv("TAILOR_API_KEY", api.admin_key)
    monkeypatch.setenv("TAILOR_HOME", str(tmp_path))

    def run(*words: object) -> SimpleNamespace:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["tailor", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        return SimpleNamespace(status=exit_.value.code or 0, out=printed.out, err=printed.err)

    return run


@pytest.fixture
def tailor_json(tailor):
    """The document that `tailor ... --json` prints, and nothing else on standard output."""

    def run(*words: object):
        ran = tailor(*words, "--json")
        assert ran.status == 0, ran.err
        return json.loads(ran.out)

    return run


class DatasetFiles:
    """Files of data sets, as people send them."""

    @staticmethod
    def arrays(n_classes: int = 3, side: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
        """Sixty images to train on and thirty to test on."""
        rng = np.random.default_rng(seed)
        made = {}
        for name, n in (("train", 60), ("test", 30)):
            made[f"x_{name}"] = rng.integers(0, 256, (n, side, side, 3), np.uint8)
            made[f"y_{name}"] = np.arange(n) % n_classes
        return made

    def npz(self, **of: object) -> bytes:
        file = io.BytesIO()
        np.savez_compressed(file, **(of or self.arrays()))
        return file.getvalue()

    @staticmethod
    def png(side: int = 6, value: int = 100) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (side, side), (value, value // 2, 0)).save(file, "PNG")
        return file.getvalue()

    def images(self, top: str = "") -> dict[str, bytes]:
        """Twelve images of each of two classes, by the name of the file."""
        return {
            f"{top}{name}/{i}.png": self.png(value=i * 9 + shade)
            for name, shade in (("daisy", 0), ("tulip", 120))
            for i in range(12)
        }

    @staticmethod
    def zipped(*members: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                archive.writestr(name, content)
        return file.getvalue()

    @staticmethod
    def tarred(*members: tuple[str | tarfile.TarInfo, bytes]) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, content in members:
                info = tarfile.TarInfo(name) if isinstance(name, str) else name
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return file.getvalue()


@pytest.fixture(scope="session")
def files() -> DatasetFiles:
    """Builds files of data sets."""
    return DatasetFiles()


@pytest.fixture(scope="session")
def add_search() -> Callable[..., Search]:
    """`add_search(session, status="running")`: a search as a row, with its key and target."""

    def add(session: Session, **changes: object) -> Search:
        now = utc_now()
        target_id = new_id("tgt")
        key, _ = create_key(session, "someone", "user")
        session.add(
            Target(
                id=target_id, name="a target", profile={}, profile_digest=target_id, created_at=now
            )
        )
        session.flush()
        facts = {
            "id": new_id("srch"),
            "owner_key_id": key.id,
            "owner": key.account,
            "target_id": target_id,
            "spec": {"target": target_id, "latency_budget_ms": 1.0},
            "status": "queued",
            "phase": "waiting_for_worker",
            "phase_since": now,
            "seconds_by_phase": {},
            "created_at": now,
        }
        search = Search(**{**facts, **changes})
        session.add(search)
        session.flush()
        return search

    return add


@pytest.fixture
def cut_off() -> Callable[[str], None]:
    """Ends every connection to a PostgreSQL store of this URL, and lets in no other."""

    def cut(url: str) -> None:
        store = make_url(url)
        administration = create_engine(store.set(database="postgres"), isolation_level="AUTOCOMMIT")
        with administration.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {store.database} ALLOW_CONNECTIONS false"))
            ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
            connection.execute(text(ended), {"name": store.database})
        administration.dispose()

    return cut
