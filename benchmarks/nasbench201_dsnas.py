"""DSNAS on NAS-Bench-201: search the cell on CIFAR-10, record it in the public notation.

The supernet is the benchmark's own network, fifteen cells deep, behind a stem of stride 4, so that
a search fits one core in minutes: depth decides which cells can be trained, resolution does not.
What is recorded is the cell, to be looked up in the public table. Every image used is a training
image. After the search the most probable cells play off, each trained a little from the shared
weights and judged on images held out of the training set; with a table of latencies the same is
done under budgets at 25, 50 and 75 % of a device's band.

    python -m benchmarks.nasbench201_dsnas --data cifar10/ --seeds 0 1 2 --out RECORD.json
    python -m benchmarks.nasbench201_dsnas ... --latencies nb201_latency_ms.csv.gz --device pixel3

A run that is stopped goes on from its checkpoint beside the record. Seeds may run apart, and so
may ablations; their records become one:

    python -m benchmarks.nasbench201_dsnas --merge A.json B.json --ablations C.json --out R.json
"""

import argparse
import csv
import gzip
import json
import platform
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from search_core.checkpoints import load_checkpoint, save_checkpoint
from search_core.constraint import Constraint, Observed
from search_core.costs import SeparableCost, macs_cost
from search_core.data.dataset import Dataset
from search_core.data.load import load_dataset
from search_core.events import CheckpointReady, Notice, Progress, SearchEvent
from search_core.playoff import Standing, playoff, qualify
from search_core.search import SearchConfig, SearchResult, run_search
from search_core.space.nasbench201 import nasbench201
from search_core.space.space import Architecture, SearchSpace
from search_core.train import WeightRecipe

HELD_OUT = 5_000


def main() -> None:
    """Search with every seed and write the record as it grows."""
    options = _options()
    if options.merge:
        _write(_merged(options.merge, options.ablations), options.out)
        return
    torch.set_num_threads(options.threads)
    space = nasbench201(options.channels, options.cells_per_stage, stem_stride=options.stem_stride)
    everything = load_dataset("cifar10", root=options.data)
    data, held_out = everything.split(HELD_OUT)
    record: dict[str, Any] = {
        "command": _portable(["python", "-m", "benchmarks.nasbench201_dsnas", *sys.argv[1:]]),
        "machine": {
            "torch": torch.__version__,
            "threads": options.threads,
            "processor": platform.processor() or platform.machine(),
        },
        "space": space.name,
        "training_images": data.n_train,
        "architectures": [],
        "budgeted": [],
        "runs": [],
    }
    for seed in options.seeds:
        config = _config(options, seed, data.steps_per_epoch(options.batch_size))
        started = perf_counter()
        found, history = _search(space, config, data, options.out.with_suffix(f".seed{seed}.pt"))
        run = {
            "seed": seed,
            "config": asdict(config),
            "history": history,
            "probabilities": [[round(p, 4) for p in row] for row in found.probabilities.tolist()],
            "argmax": space.format(found.decide()),
            "summary": found.summary,
            "search_seconds": perf_counter() - started,
        }
        winner = found.decide()
        if options.contenders > 1:
            contenders = found.decide_best(options.contenders)
            recipe = _playoff_recipe(options, data)
            standings, _ = playoff(found.supernet, contenders, data, held_out, recipe, seed=seed)
            run["playoff"] = [_standing(space, s) for s in standings]
            winner = standings[0].architecture
        run["architecture"] = space.format(winner)
        run["seconds"] = perf_counter() - started
        record["runs"].append(run)
        record["architectures"].append(space.format(winner))
        _write(record, options.out)
        if options.latencies is not None:
            for device in options.device:
                for entry in _under_budgets(found, data, held_out, options, device, seed):
                    record["budgeted"].append(entry)
                    _write(record, options.out)


def _merged(paths: list[Path], ablations: list[Path]) -> dict[str, Any]:
    """One record of several: the lists joined, what they share kept once."""
    first, *others = (json.loads(path.read_text()) for path in paths)
    commands = [_portable(shlex.split(first.pop("command")))]
    for other in others:
        commands.append(_portable(shlex.split(other["command"])))
        for key in ("architectures", "budgeted", "runs"):
            first[key] += other[key]
    tried = []
    for path in ablations:
        record = json.loads(path.read_text())
        tried += [
            {
                "command": _portable(shlex.split(record["command"])),
                "space": record["space"],
                **{key: run[key] for key in ("seed", "argmax", "architecture", "summary")},
            }
            for run in record["runs"]
        ]
    return {"commands": commands, **first, "ablations": tried}


def _portable(command: list[str]) -> str:
    """`command` with every path cut to its last part."""
    return shlex.join(Path(word).name if "/" in word else word for word in command)


def _config(options: argparse.Namespace, seed: int, epoch_steps: int) -> SearchConfig:
    steps = options.epochs * epoch_steps
    return SearchConfig(
        recipe=WeightRecipe(
            total_steps=steps,
            warmup_steps=epoch_steps // 2,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            weight_decay=5e-4,
            label_smoothing=0.0,
        ),
        search_steps=steps,
        warmup_steps=options.warmup_epochs * epoch_steps,
        seed=seed,
        largest_share=options.largest_share or None,
        estimator=options.estimator,
        estimator_options={"pairs": options.pairs} if options.estimator == "dsnas_paired" else {},
        held_out_images=HELD_OUT,
        alpha_learning_rate=options.alpha_learning_rate,
        temperature=tuple(options.temperature) if any(options.temperature) else None,
        freeze_threshold=options.freeze_threshold,
    )


def _search(
    space: SearchSpace, config: SearchConfig, data: Dataset, checkpoint: Path
) -> tuple[SearchResult, list[dict[str, object]]]:
    history: list[dict[str, object]] = []

    def report(event: SearchEvent) -> None:
        match event:
            case CheckpointReady(saved):
                save_checkpoint(saved, checkpoint)
                rows = saved.state["logits"].softmax(dim=1)
                cell = space.format(space.architecture(rows.argmax(dim=1).tolist()))
                likelihood = [round(p, 2) for p in rows.max(dim=1).values.tolist()]
                print(f"  step {saved.step} {cell} {likelihood}", flush=True)
                history.append({"step": saved.step, "argmax": cell})
            case Progress() as progress:
                left = progress.remaining_seconds or 0.0
                print(
                    f"seed {config.seed}: {progress.completed}/{progress.total}, "
                    f"{left / 60:.0f} min left, "
                    f"{ {k: round(v, 4) for k, v in progress.metrics.items()} }",
                    flush=True,
                )
            case Notice(code, text):
                print(f"{code}: {text}", flush=True)

    resume = load_checkpoint(checkpoint) if checkpoint.exists() else None
    observed = [Constraint("macs", macs_cost(space), float("inf"), Observed())]
    return run_search(space, config, data, observed, report=report, resume=resume), history


def _playoff_recipe(options: argparse.Namespace, data: Dataset) -> WeightRecipe:
    steps = int(options.playoff_epochs * data.steps_per_epoch(options.batch_size))
    return WeightRecipe(
        total_steps=steps,
        warmup_steps=steps // 20,
        batch_size=options.batch_size,
        learning_rate=options.playoff_learning_rate,
        weight_decay=5e-4,
        label_smoothing=0.0,
    )


def _standing(space: SearchSpace, standing: Standing) -> dict[str, object]:
    return {
        "architecture": space.format(standing.architecture),
        "rounds": standing.rounds,
        "held_out_loss": standing.loss,
        "held_out_accuracy": standing.accuracy,
    }


def _under_budgets(
    found: SearchResult,
    data: Dataset,
    held_out: Dataset,
    options: argparse.Namespace,
    device: str,
    seed: int,
) -> Iterator[dict[str, object]]:
    """One entry a budget: the knapsack on a fitted table, the device's word on what it decodes."""
    space = found.supernet.space
    measured = _latencies(space, options.latencies, device)
    cost = _additive(space, measured)
    low, high = min(measured.values()), max(measured.values())
    for share in options.budget_shares:
        budget_ms = low + share * (high - low)
        limit = Constraint("latency", cost, budget_ms, Observed())
        best = found.decide_best(options.qualifiers, [limit])
        fitting = [a for a in best if measured[a] <= budget_ms]
        contenders = qualify(
            found.supernet, fitting, held_out, options.budget_contenders, seed=seed
        )
        standings, _ = playoff(
            found.supernet, contenders, data, held_out, _playoff_recipe(options, data), seed=seed
        )
        winner = standings[0].architecture
        largest = max(
            (a for a in measured if measured[a] <= budget_ms),
            key=lambda a: (space.macs(a), -measured[a]),
        )
        yield {
            "seed": seed,
            "architecture": space.format(winner),
            "device": device,
            "budget_share_of_band": share,
            "budget_ms": budget_ms,
            "latency_ms": measured[winner],
            "largest_that_fits": space.format(largest),
            "playoff": [_standing(space, s) for s in standings],
        }


def _latencies(space: SearchSpace, path: Path, device: str) -> dict[Architecture, float]:
    with gzip.open(path, "rt") as file:
        return {space.parse(row["arch_str"]): float(row[device]) for row in csv.DictReader(file)}


def _additive(space: SearchSpace, measured: dict[Architecture, float]) -> SeparableCost:
    """The table of a sum over the slots that is nearest to the measurements, by least squares."""
    rows = torch.zeros(len(measured), len(space.slots) * space.n_candidates, dtype=torch.float64)
    for row, architecture in zip(rows, measured, strict=True):
        for slot, choice in enumerate(architecture.choices):
            row[slot * space.n_candidates + choice] = 1.0
    target = torch.tensor(list(measured.values()), dtype=torch.float64)[:, None]
    table = torch.linalg.lstsq(rows, target, driver="gelsd").solution.view(len(space.slots), -1)
    floor = table.min(dim=1, keepdim=True).values
    return SeparableCost(float(floor.sum()), (table - floor).tolist(), "ms")


def _write(record: dict[str, object], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="CIFAR-10 in any of its forms")
    parser.add_argument("--merge", type=Path, nargs="+", help="records to join instead of a run")
    parser.add_argument("--ablations", type=Path, nargs="+", default=[], help="records beside them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--estimator", default="dsnas_paired")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--warmup-epochs", type=int, default=2)
    parser.add_argument("--largest-share", type=float, default=0.6, help="0: equal parts")
    parser.add_argument(
        "--temperature", type=float, nargs=2, default=[0.3, 0.003], help="0 0: none"
    )
    parser.add_argument("--alpha-learning-rate", type=float, default=0.01)
    parser.add_argument("--freeze-threshold", type=float, default=0.98)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--cells-per-stage", type=int, default=5)
    parser.add_argument("--stem-stride", type=int, default=4)
    parser.add_argument("--contenders", type=int, default=1)
    parser.add_argument("--budget-shares", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--budget-contenders", type=int, default=4)
    parser.add_argument("--qualifiers", type=int, default=200)
    parser.add_argument("--playoff-epochs", type=float, default=0.5)
    parser.add_argument("--playoff-learning-rate", type=float, default=0.05)
    parser.add_argument("--latencies", type=Path, help="CSV of arch_str and one column a device")
    parser.add_argument("--device", nargs="+", default=["pixel3"])
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
