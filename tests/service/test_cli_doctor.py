"""`tailor agent doctor` against a served API, on this host with its real runtime."""

import json
import re
import sys
from types import SimpleNamespace

import pytest

from service.cli.main import main


@pytest.fixture
def doctor(api, monkeypatch, capsys, tmp_path):
    """Runs the command with these words: exit status, output and complaints."""
    monkeypatch.setenv("TAILOR_URL", api.url)
    monkeypatch.setenv("TAILOR_HOME", str(tmp_path))

    def run(*words: object) -> SimpleNamespace:
        arguments = ["tailor", "agent", "doctor", "--seconds", "0.2", *map(str, words)]
        monkeypatch.setattr(sys, "argv", arguments)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        return SimpleNamespace(status=exit_.value.code or 0, out=printed.out, err=printed.err)

    return run


def test_everything_is_examined_and_the_exit_status_says_whether_anything_is_bad(doctor):
    ran = doctor("--json")
    document = json.loads(ran.out)
    findings = {finding["check"]: finding for finding in document["findings"]}
    assert {"runtime", "quiet", "drift", "API", "wall clock", "state folder"} <= set(findings)
    assert findings["API"]["level"] == findings["wall clock"]["level"] == "ok"
    assert findings["runtime"]["level"] == "ok"
    bad = [finding for finding in findings.values() if finding["level"] == "bad"]
    assert document["ready"] == (not bad)
    assert ran.status == (1 if bad else 0)


def test_the_table_names_what_is_bad_and_what_to_do(doctor):
    ran = doctor("--runtime", "abacus", "--offline")
    assert ran.status == 1
    assert "no runtime is called 'abacus'" in ran.out
    assert "--runtime" in ran.out
    assert "API" not in ran.out
    assert re.search(r"[1-9]\d* bad", ran.err)


def test_an_api_that_does_not_answer_is_bad_and_still_everything_else_is_told(doctor):
    ran = doctor("--url", "http://127.0.0.1:9", "--json")
    levels = {f["check"]: f["level"] for f in json.loads(ran.out)["findings"]}
    assert ran.status == 1
    assert levels["API"] == "bad"
    assert "quiet" in levels
