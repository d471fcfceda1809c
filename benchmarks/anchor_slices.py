"""What the anchor of the measurement protocol is worth: the same kit with it and without.

Every subject of the `micro` kit is measured twice in each round, with the anchor's slices and
with every slice accepted, right after one another; a latency model is fitted to either half.

    python -m benchmarks.anchor_slices --rounds 2 --json
"""

import argparse
import json
import random
from collections import defaultdict
from dataclasses import replace
from statistics import mean, median

from predictor.agent.protocol import EFFORTS, Anchor, Protocol, measure
from predictor.agent.runtimes.onnxruntime_cpu import OnnxRuntimeCpu
from predictor.errors import TooNoisyError
from predictor.fit import fit_latency_model
from predictor.kits import anchor_item, plan_kit
from search_core.space.presets import get_space

ARMS: dict[str, Protocol] = {
    "anchor": EFFORTS["table"],
    "no_anchor": replace(EFFORTS["table"], anchor_tolerance=float("inf")),
}


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="only the last line of JSON")
    arguments = parser.parse_args()

    space, runtime = get_space("micro"), OnnxRuntimeCpu()
    anchor = Anchor(runtime.load(anchor_item().build()))
    items = plan_kit(space)
    latency_ms: dict[str, dict[str, list[float]]] = {a: defaultdict(list) for a in ARMS}
    discarded: list[float] = []
    for _ in range(arguments.rounds):
        random.shuffle(items)
        for item in items:
            run = runtime.load(item.build())
            for arm, protocol in ARMS.items():
                for _ in range(4):
                    try:
                        found = measure(run, anchor, protocol)
                    except TooNoisyError:
                        continue
                    if not found.note:
                        break
                latency_ms[arm][item.subject].append(found.latency_ms)
                if arm == "anchor":
                    discarded.append(found.contended_share)

    document: dict[str, object] = {"rounds": arguments.rounds, "subjects": len(items)}
    for arm, by_subject in latency_ms.items():
        errors = []
        for i in range(arguments.rounds):
            _, report = fit_latency_model(space, {s: times[i] for s, times in by_subject.items()})
            errors.append(report["leave_one_out"]["mape"])
        spread = [max(times) / min(times) - 1.0 for times in by_subject.values()]
        document[arm] = {
            "left_out_mape_by_round": [round(e, 4) for e in errors],
            "spread_between_rounds_median": round(median(spread), 4),
            "spread_between_rounds_worst": round(max(spread), 4),
        }
    document["discarded_share_mean"] = round(mean(discarded), 3)
    if not arguments.json:
        print(json.dumps(document, indent=1))
    print(json.dumps(document))


if __name__ == "__main__":
    main()
