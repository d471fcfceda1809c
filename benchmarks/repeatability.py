"""The same target measured again and again while other work comes and goes beside it.

Each round has a space measured anew by a real agent through a real API. Meanwhile, a load of
another kind runs on the other core: nothing, arithmetic, bursts, memory traffic, processes that
come and go. What the noise gates refuse is not stored as a latency: it is tried again, and after
the last try it is stored flagged. The rest, the accepted medians, must agree.

    python -m benchmarks.repeatability --minutes 60 --json

Each round is appended to the output file as it ends. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.installations import installation
from service.client.client import Client

REACH = {"median_spread": 0.02}
LOADS = {
    "none": "import time; time.sleep(1e6)",
    "arithmetic": "while True: sum(range(10**5))",
    "bursts": (
        "import random, time\n"
        "while True:\n"
        "    end = time.perf_counter() + random.uniform(0.1, 3)\n"
        "    while time.perf_counter() < end: sum(range(10**4))\n"
        "    time.sleep(random.uniform(0.1, 3))"
    ),
    "memory": "import numpy as np; a = np.ones(2**24)\nwhile True: b = a.copy()",
    "processes": (
        "import subprocess, sys\nwhile True: subprocess.run([sys.executable, '-c', 'import json'])"
    ),
}


def main() -> int:
    """Measure five times and say how far the medians lie apart; 0 when within reach."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="from first to last round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--space", default="proxyless_cifar_mb")
    parser.add_argument("--json", action="store_true", help="only the record")
    parser.add_argument("--out", type=Path, help="partial results, a line a round, and the record")
    arguments = parser.parse_args()

    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tailor-repeatability-") as folder:
        home = Path(folder)
        with (
            installation(home / "service") as service,
            Client(service.url, service.key) as client,
        ):
            agent = [sys.executable, "-m", "service.cli", "agent"]
            state = ["--state", str(home / "agent")]
            code = client.create_enrolment_code().code
            enrol = [*agent, "enrol", code, "--url", service.url, *state]
            subprocess.run(enrol, check=True, stdout=subprocess.DEVNULL)
            target = client.targets()[0].id
            with _running([*agent, "run", *state]):
                began = time.monotonic()
                for number in range(arguments.rounds):
                    pause = arguments.minutes * 60 * number / max(1, arguments.rounds - 1)
                    time.sleep(max(0.0, began + pause - time.monotonic()))
                    rounds.append(_round(client, target, number, arguments))
                    if arguments.out:
                        with arguments.out.with_suffix(".partial.jsonl").open("a") as file:
                            file.write(json.dumps(rounds[-1]) + "\n")
                    if not arguments.json:
                        told = {k: v for k, v in rounds[-1].items() if k != "medians_ms"}
                        print(json.dumps(told), flush=True)
            profile = client.target(target).profile
    record = {
        "benchmark": "repeatability",
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python -m benchmarks.repeatability {' '.join(sys.argv[1:])}".strip(),
        "profile": profile,
        "space": arguments.space,
        "minutes": arguments.minutes,
        **_spreads(rounds),
        "rounds": rounds,
        "to_reach": REACH,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in record.items() if k != "rounds"}))
    return 0 if record["median_spread"] <= REACH["median_spread"] else 1


def _round(
    client: Client, target: str, number: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """One measuring of the whole space, under one kind of load."""
    load = list(LOADS)[number % len(LOADS)]
    known = {m.id for m in client.measurements(target)}
    began = time.monotonic()
    with _running([sys.executable, "-c", LOADS[load]]):
        kit = client.create_kit(target, arguments.space, again=number > 0)
        while (kit := client.kit(kit.id)).status == "measuring":
            time.sleep(1.0)
    rows = [m for m in client.measurements(target) if m.id not in known]
    return {
        "round": number,
        "load": load,
        "load_average": round(os.getloadavg()[0], 2),
        "seconds": round(time.monotonic() - began, 1),
        "measured": len(rows),
        "flagged": sum(m.flagged for m in rows),
        "failed": kit.failed,
        "refused_tries": sum(len(m.quarantined) for m in rows) - sum(m.flagged for m in rows),
        "medians_ms": {m.subject: m.latency_ms for m in rows if not m.flagged},
    }


def _spreads(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """How far the accepted medians of a subject lie apart: (largest - smallest) / median."""
    by_subject: dict[str, list[float]] = defaultdict(list)
    for measured in rounds:
        for subject, latency_ms in measured["medians_ms"].items():
            by_subject[subject].append(latency_ms)
    several = {s: v for s, v in by_subject.items() if len(v) > 1}
    spreads = np.array([(max(v) - min(v)) / median(v) for v in several.values()])
    centre = {s: median(v) for s, v in several.items()}
    offsets = [
        median(m["medians_ms"][s] / centre[s] - 1.0 for s in centre if s in m["medians_ms"])
        for m in rounds
    ]
    deviations = np.array([abs(x / centre[s] - 1.0) for s, v in several.items() for x in v])
    return {
        "subjects": len(several),
        "median_spread": float(np.median(spreads)),
        "p90_spread": float(np.percentile(spreads, 90)),
        "largest_spread": float(spreads.max()),
        "share_within_2_percent": float((spreads <= 0.02).mean()),
        "median_deviation": float(np.median(deviations)),
        "offset_by_round": [round(offset, 5) for offset in offsets],
        "spread_of_rounds": max(offsets) - min(offsets),
        "refused_tries": sum(m["refused_tries"] for m in rounds),
        "flagged": sum(m["flagged"] for m in rounds),
    }


@contextmanager
def _running(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
