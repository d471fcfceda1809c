"""The load of the intake, at a size where its figures mean nothing: what it does and writes."""

import json
from xml.etree import ElementTree as ET

import pytest

from benchmarks import intake_load
from benchmarks.intake_load import SUBJECTS, Load, Sent, deciles, figures


def test_what_is_uploaded_is_stored_once_and_recorded(tmp_path, capsys):
    out = tmp_path / "record"
    words = f"--store sqlite --measurements 300 --batch 60 --clients 2 --out {out}".split()
    intake_load.main(words)
    *_, line = capsys.readouterr().out.splitlines()
    found = json.loads(line)["sqlite"]
    assert found["accepted"] == 300
    assert len(found["per_second_by_decile"]) == 5
    assert found["cpu_share"].keys() == {"clients", "api"}
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["result"]["sqlite"] == found
    assert record["command"].startswith("python -m benchmarks.intake_load --store sqlite")
    assert ET.parse(out.with_suffix(".svg")).getroot().tag.endswith("svg")
    assert not out.with_suffix(".partial.json").exists()


def test_every_agent_uploads_its_own_and_every_kit_that_ends_is_fitted():
    load = intake_load.run_load("sqlite", 2 * intake_load.TASKS, 500, clients=2)
    assert [sent.accepted for sent in load.sent] == [500] * 4
    assert load.stored == {
        "measurements": 2000,
        "done": 2000,
        "batches": 4,
        "jobs": 2000 // SUBJECTS,
    }
    assert all(seconds > 0.0 for seconds in load.cpu_seconds.values())


def test_a_rate_that_halves_shows_in_the_tenths():
    fast = [Sent(10.0 + i, 100.0, 1000) for i in range(1, 11)]
    slow = [Sent(20.0 + 2 * i, 900.0, 1000) for i in range(1, 11)]
    load = Load(10.0, [*slow, *fast], {"clients": 1.0, "api": 3.0})
    assert deciles(load) == [1000.0] * 5 + [500.0] * 5
    found = figures(load)
    assert found["last_to_first_decile"] == 0.5
    assert found["accepted_per_second"] == pytest.approx(20_000 / 30, abs=0.1)
    assert (found["batch_p50_ms"], found["batch_p99_ms"]) == (900.0, 900.0)
    assert found["cpu_share"] == {"clients": 0.25, "api": 0.75}
