"""A short storm over a whole installation; `python -m benchmarks.chaos` is the long one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
N_FAULTS = 12


@pytest.mark.parametrize("store", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_a_short_storm_breaks_no_promise(store, tmp_path):
    words = ["--store", store, "--faults", str(N_FAULTS), "--seed", "3", "--quick"]
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", *words, "--work", str(tmp_path)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
    record = json.loads(ran.stdout.splitlines()[-1])
    assert record["violations"] == 0
    found = record["stores"][store]
    assert found["faults"] + found["found_nothing_to_hit"] == N_FAULTS
    assert found["faults"] >= N_FAULTS // 2
    for compared in ("acknowledged searches", "acknowledged measurements", "events", "artifacts"):
        assert found["checked"][compared] > 0
    assert found["checked"]["certificates"] > 0
    log = (tmp_path / store / "faults.jsonl").read_text().splitlines()
    begun = [line for line in map(json.loads, log) if line["what"] == "fault begins"]
    assert len(begun) == N_FAULTS
