"""Shared parts of the service's tests."""

import json
import sys
from types import SimpleNamespace

import pytest

from service.cli.main import main
from service.db.database import Database


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
