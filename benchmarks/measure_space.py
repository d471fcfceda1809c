"""Measure blocks and networks of a space on this machine, without a service, into a table.

Every subject is measured by the agent's own protocol, in random order, as often as there are
rounds. A row is written as it is measured; started again, the same command goes on where it was.

    python -m benchmarks.measure_space --space proxyless_cifar_mb --networks 160 --rounds 2 \
        --out measured.csv

Columns: round, subject, latency_ms, sigma_ms, flagged, seconds.
"""

import argparse
import csv
import hashlib
import random
import sys
import time
from pathlib import Path

from predictor.agent.results import TRIES, Try, one_try, settled
from predictor.agent.runtimes.base import RuntimeSpec
from predictor.agent.sandbox import Sandbox
from predictor.errors import TaskFailedError
from predictor.kits import KitItem, anchor_item, block_items, network_item
from predictor.quantize import quantize
from search_core.space.presets import get_space
from search_core.space.space import Architecture, SearchSpace

COLUMNS = ["round", "subject", "latency_ms", "sigma_ms", "flagged", "seconds"]


def main() -> int:
    """Measure what the table does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="proxyless_cifar_mb")
    parser.add_argument("--networks", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["float32", "int8"], default="float32")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    space = get_space(arguments.space)
    networks = draw_networks(space, arguments.networks, arguments.seed)
    items = {
        i.subject: i for i in (*block_items(space), *(network_item(space, a) for a in networks))
    }
    done = set[tuple[str, str]]()
    if arguments.out.exists():
        with arguments.out.open(newline="") as file:
            done = {(row["round"], row["subject"]) for row in csv.DictReader(file)}
    spec = RuntimeSpec(threads=arguments.threads, precision=arguments.precision)
    with arguments.out.open("a", newline="") as file, Sandbox(spec) as sandbox:
        table = csv.DictWriter(file, COLUMNS)
        if not done:
            table.writeheader()
        for number in range(arguments.rounds):
            todo = [item for s, item in items.items() if (str(number), s) not in done]
            random.Random(number).shuffle(todo)
            for i, item in enumerate(todo, 1):
                row = measure_item(sandbox, item, arguments.precision)
                if row is not None:
                    table.writerow({"round": number, "subject": item.subject, **row})
                    file.flush()
                print(f"round {number}: {i} of {len(todo)}", end="\r", file=sys.stderr, flush=True)
    return 0


def draw_networks(space: SearchSpace, n: int, seed: int) -> list[Architecture]:
    """`n` distinct networks: both extremes in MACs first, the rest uniform."""
    _, macs = space.slot_costs(lambda block: block.macs)
    extremes = [space.architecture([row.index(pick(row)) for row in macs]) for pick in (min, max)]
    rng = random.Random(seed)
    chosen: dict[Architecture, None] = dict.fromkeys(extremes)
    while len(chosen) < min(n, space.size):
        chosen.setdefault(space.sample(rng))
    return list(chosen)[:n]


def measure_item(sandbox: Sandbox, item: KitItem, precision: str) -> dict[str, object] | None:
    """One row, or None where the runtime refuses the file."""
    anchor = anchor_item().build()
    model = item.build()
    if precision == "int8":
        anchor, model = quantize(anchor), quantize(model)
    began, tries = time.monotonic(), list[Try]()
    for _ in range(TRIES):
        try:
            latest = one_try(sandbox, model, hashlib.sha256(anchor).hexdigest(), anchor, "table")
        except TaskFailedError:
            return None
        result = settled(latest, tries)
        if result is None:
            continue
        found = result.get("measurement")
        if found is None:
            return None
        return {
            "latency_ms": found["latency_ms"],
            "sigma_ms": found["sigma_ms"],
            "flagged": int(found["flagged"]),
            "seconds": round(time.monotonic() - began, 3),
        }
    return None


if __name__ == "__main__":
    sys.exit(main())
