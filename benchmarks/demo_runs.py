"""The demo, again and again: does it keep its promise every time?

Each run starts from an empty home with another seed, as on a fresh machine. Results are
appended to the output file as they come, one JSON line a run.

    python -m benchmarks.demo_runs --runs 10 --out benchmarks/results/demo_runs_....jsonl
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

KEYS = (
    "status",
    "budget_ms",
    "measured_ms",
    "predicted_ms",
    "test_accuracy",
    "random_baseline_accuracy",
    "architecture",
    "seconds",
    "fastest_ms",
    "slowest_ms",
)
MAX_SECONDS = 240.0
MIN_ACCURACY = 0.93


def main() -> int:
    """Run the demo and say how often it kept each part of its promise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    rows = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.runs):
        with tempfile.TemporaryDirectory() as home:
            finished = subprocess.run(
                [sys.executable, "-m", "service.cli", "demo", "--json", "--seed", str(seed)],
                env={**os.environ, "TAILOR_HOME": home},
                capture_output=True,
                text=True,
                check=False,
            )
        document = json.loads(finished.stdout)
        row = {"seed": seed, **{key: document.get(key) for key in KEYS}}
        rows.append(row)
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    kept = {
        "runs": len(rows),
        "succeeded": sum(r["status"] == "succeeded" for r in rows),
        "within_budget": sum(
            r["measured_ms"] is not None and r["measured_ms"] <= r["budget_ms"] for r in rows
        ),
        "accurate": sum((r["test_accuracy"] or 0.0) >= MIN_ACCURACY for r in rows),
        "in_time": sum(r["seconds"] is not None and r["seconds"] <= MAX_SECONDS for r in rows),
    }
    print(json.dumps(kept))
    return 0 if set(kept.values()) == {len(rows)} else 1


if __name__ == "__main__":
    sys.exit(main())
