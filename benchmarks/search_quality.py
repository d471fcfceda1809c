"""Does the search find better networks than none would? At equal latency and computation.

On CIFAR-10, reduced to 16 x 16 pixels and to some of its training images so that two cores
suffice, every estimator searches `micro` under a latency budget on this machine. Against it
stand a random network of 90 to 100 % of the budget, random search, and the largest networks
that fit, in MACs and in parameters. Every arm has the same computation: the multiply-accumulates
that its convolutions and matrix products execute, backward passes, architecture steps, the
judging of contenders and the recalibration of BatchNorm included. A search may spend a third of
it (as DSNAS's 80 of 240 epochs); the child goes on from the inherited weights with what is left,
whatever the estimator, so that the arms differ in the gradient alone.

    python -m benchmarks.search_quality --data cifar10/ --out RECORD.json
    python -m benchmarks.search_quality --report RECORD.json

The record is written after every run, and a start with the same `--out` goes on after the last
one. Beside it lie `RECORD.latency.json`, the latency model that all of them share, and
`RECORD.networks/`, the networks as ONNX files, which are measured at the end.
"""

import argparse
import json
import math
import platform
import random
import shlex
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median, stdev
from time import perf_counter, process_time
from typing import Any

import onnxruntime
import torch
from torch.nn.functional import avg_pool2d
from torch.utils._python_dispatch import TorchDispatchMode

from predictor.agent.protocol import EFFORTS, Anchor, measure
from predictor.agent.runtimes.onnxruntime_cpu import OnnxRuntimeCpu
from predictor.errors import TooNoisyError
from predictor.fit import fit_latency_model
from predictor.kits import anchor_item, plan_kit
from predictor.latency_term import LatencyTerm
from predictor.network import NetworkLatencyModel
from search_core.constraint import AugmentedLagrangian, Constraint, Constraints, Observed
from search_core.costs import SeparableCost, macs_cost, parameter_cost
from search_core.data.dataset import ImageDataset
from search_core.data.load import load_dataset
from search_core.estimators.paired import PairedDSNAS
from search_core.estimators.presets import ESTIMATORS
from search_core.events import Notice, Progress, SearchEvent
from search_core.export import onnx_bytes
from search_core.nn.network import Network
from search_core.nn.ops import BN_EPS_TRAIN
from search_core.nn.supernet import Supernet
from search_core.playoff import playoff
from search_core.randomness import stream
from search_core.search import SearchConfig, run_search
from search_core.space.micro import micro
from search_core.space.presets import get_space
from search_core.space.space import Architecture, SearchSpace
from search_core.train import WeightRecipe, accuracy, train_network

PAIRED = PairedDSNAS.name
PLAYOFF = f"{PAIRED}+playoff"
REFERENCES = ("random", "random_search", "largest_macs", "largest_parameters")
ARMS = (*ESTIMATORS, PLAYOFF, *REFERENCES)

SEARCH_SHARE = 1 / 3  # of the computation, as in service.searches.tasks
PLAYOFF_SHARES = (1 / 4, 1 / 4)  # of the search, and of the playoff after it
WARMUP_SHARE = 0.3  # of the search's steps
CONTENDERS, GAMES = 4, 6  # of a playoff: all four, then the better two
MEASURING_TRIES = 4

SETTINGS = (
    "dataset",
    "space",
    "resolution",
    "images",
    "epochs",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "alpha_every",
)
"""The options that every run of one record shares."""

Row = dict[str, Any]


class MacMeter(TorchDispatchMode):
    """Counts the multiply-accumulates of all convolutions and matrix products run within it.

    Counted where they execute, so that a backward pass costs what its output mask asks for:
    two forward passes while weights learn, one where only gates do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        aten = torch.ops.aten
        if func is aten.convolution.default:
            self.macs += result.numel() * args[1][0].numel()
        elif func is aten.convolution_backward.default:
            gradient, weight, wanted = args[0], args[2], args[-1]
            self.macs += gradient.numel() * weight[0].numel() * sum(wanted[:2])
        elif func is aten.mm.default or func is aten.addmm.default:
            self.macs += result.numel() * args[-1].shape[0]
        return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the record lacks, measure all networks, print the table."""
    options = _options(arguments)
    if options.report is not None:
        print(table(json.loads(options.report.read_text())))
        return
    torch.set_num_threads(options.threads)
    loaded = load_dataset(options.dataset, root=options.data)
    assert isinstance(loaded, ImageDataset)
    data = reduced(loaded, options.resolution, options.images)
    space = _space(options.space, data)
    latency_path = options.latency_model or options.out.with_suffix(".latency.json")
    model = _latency_model(space, latency_path, options.rounds)
    record = _record(options, space, data, model)
    networks = options.out.with_suffix(".networks")
    networks.mkdir(parents=True, exist_ok=True)

    done = {_key(row) for row in record["runs"]}
    for seed in options.seeds:
        for share in options.budget_shares:
            benchmark = Benchmark.at(space, data, model, share, options)
            for arm in options.arms:
                if _key({"arm": arm, "budget_share": share, "seed": seed}) in done:
                    continue
                row, network = benchmark.run(arm, seed)
                (networks / f"{_key(row)}.onnx").write_bytes(onnx_bytes(network))
                record["runs"].append(row)
                _write(record, options.out)
                print(
                    f"{_key(row)}: {row['test_accuracy']:.4f}, {row['macs'] / 1e6:.2f} M MACs, "
                    f"{row['predicted_ms']:.4f} of {row['budget_ms']:.4f} ms, computation "
                    f"{row['computation_share']:.3f}, {row['seconds']:.0f} s",
                    flush=True,
                )
    if any(row["measured_ms"] is None for row in record["runs"]):
        _measure_networks(record["runs"], networks, options.rounds)
        _write(record, options.out)
    print(table(record))


@dataclass(frozen=True)
class Benchmark:
    """All arms under one budget.

    Attributes:
        latency: what a network is predicted to take, in ms.
        reference_macs: mean MACs of random networks of 90 to 100 % of the budget.
        computation: MACs that every arm may execute: of `epochs` epochs of training a network
            of `reference_macs`, a backward pass being two forward passes.
    """

    space: SearchSpace
    data: ImageDataset
    latency: LatencyTerm
    budget_ms: float
    budget_share: float
    reference_macs: float
    computation: float
    options: argparse.Namespace

    @classmethod
    def at(
        cls,
        space: SearchSpace,
        data: ImageDataset,
        model: NetworkLatencyModel,
        share: float,
        options: argparse.Namespace,
    ) -> "Benchmark":
        """The benchmark under the budget at `share` of the band of predicted latencies."""
        fastest_ms, slowest_ms = model.band_ms
        budget_ms = fastest_ms + share * (slowest_ms - fastest_ms)
        latency = LatencyTerm(model)
        drawn = random_networks(space, latency, budget_ms, 100, random.Random(0))
        reference = mean(space.macs(a) for a in drawn)
        images = options.epochs * data.steps_per_epoch(options.batch_size) * options.batch_size
        computation = 3.0 * reference * images
        return cls(space, data, latency, budget_ms, share, reference, computation, options)

    def run(self, arm: str, seed: int) -> tuple[Row, Network]:
        """One arm from its start to a trained network, and its row of the record."""
        print(f"-- {arm}, seed {seed}, {self.budget_ms:.4f} ms", flush=True)
        config = None if arm in REFERENCES else self._search_config(arm, seed)
        started, cpu_started, details = perf_counter(), process_time(), dict[str, Any]()
        with MacMeter() as meter:
            if config is None:
                architecture, network, start, recipe = self._reference(arm, seed, details)
            else:
                architecture, network, start, recipe = self._searched(arm, config, details)
            decided = meter.macs
            steps = self._steps(self.computation - decided, architecture)
            train_network(
                network,
                self.data,
                replace(recipe, total_steps=start + steps),
                seed=seed,
                start_step=start,
                report=_say,
            )
        seconds, cpu_seconds = perf_counter() - started, process_time() - cpu_started
        row = {
            "arm": arm,
            "seed": seed,
            "budget_share": self.budget_share,
            "budget_ms": self.budget_ms,
            "architecture": self.space.format(architecture),
            "predicted_ms": self.latency.exact(architecture),
            "measured_ms": None,
            "macs": self.space.macs(architecture),
            "parameters": self.space.parameters(architecture),
            "test_accuracy": accuracy(network, self.data),
            "computation_macs": meter.macs,
            "computation_share": meter.macs / self.computation,
            "decision_share": decided / self.computation,
            "steps_of_the_network": steps,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            **details,
        }
        return row, network

    def _reference(
        self, arm: str, seed: int, details: Row
    ) -> tuple[Architecture, Network, int, WeightRecipe]:
        """A network without a search: architecture, weights, first step, and recipe."""
        rng = random.Random(seed)
        if arm == "random_search":
            supernet = Supernet(self.space, stream(seed, "weights"), BN_EPS_TRAIN)
            drawn = random_networks(self.space, self.latency, self.budget_ms, CONTENDERS, rng)
            total = self._planned_steps(1.0)
            return self._playoff(supernet, drawn, SEARCH_SHARE, 0, total, seed, details)
        if arm == "random":
            (architecture,) = random_networks(self.space, self.latency, self.budget_ms, 1, rng)
        else:
            cost = macs_cost(self.space) if arm == "largest_macs" else parameter_cost(self.space)
            architecture = self._largest(cost)
        network = Network.initialised(self.space.graph(architecture), stream(seed, "weights"))
        steps = self._steps(self.computation, architecture)
        return architecture, network, 0, self._recipe(steps)

    def _searched(
        self, arm: str, config: SearchConfig, details: Row
    ) -> tuple[Architecture, Network, int, WeightRecipe]:
        """What an estimator decides, as `_reference`; the weights are the supernet's."""
        rule = AugmentedLagrangian(equality=True)
        limit = Constraint("latency", self.latency, self.budget_ms, rule)
        found = run_search(self.space, config, self.data, [limit], report=_say)
        rows = found.probabilities.tolist()
        details["search_steps"] = found.steps
        details["probabilities"] = [[round(p, 3) for p in row] for row in rows]
        details["search"] = found.summary
        if arm == PLAYOFF:
            drawn = found.decide_best(CONTENDERS, [limit])
            total, seed = config.recipe.total_steps, config.seed
            share = PLAYOFF_SHARES[1]
            return self._playoff(found.supernet, drawn, share, found.steps, total, seed, details)
        child = found.decide([limit])
        return child, found.supernet.derive(child), found.steps, config.recipe

    def _playoff(
        self,
        supernet: Supernet,
        contenders: Sequence[Architecture],
        share: float,
        start: int,
        total: int,
        seed: int,
        details: Row,
    ) -> tuple[Architecture, Network, int, WeightRecipe]:
        """The winner of successive halving on held-out images, as `_reference`.

        Args:
            share: of the computation, for all games.
            start, total: of the schedule that the winner goes on with, in steps.
        """
        training, held_out = self.data.split(self.data.n_train // 10)
        macs = mean(self.space.macs(c) for c in contenders)
        game = share * self.computation / GAMES - macs * held_out.n_train
        steps = max(1, int(game / (3.0 * macs * self.options.batch_size)))
        standings, network = playoff(
            supernet, contenders, training, held_out, self._recipe(steps), seed=seed, report=_say
        )
        details["playoff"] = [
            {**asdict(standing), "architecture": self.space.format(standing.architecture)}
            for standing in standings
        ]
        first = start + standings[0].rounds * steps
        return standings[0].architecture, network, first, self._recipe(total)

    def _search_config(self, arm: str, seed: int) -> SearchConfig:
        """The product's recipe for a search that spends its share of the computation.

        A search's paths are not known beforehand; its length is planned for uniform ones, and
        what it spends more or less the child has less or more.
        """
        plays = arm == PLAYOFF
        estimator, share = (PAIRED, PLAYOFF_SHARES[0]) if plays else (arm, SEARCH_SHARE)
        cost = macs_cost(self.space)
        middle = cost.offset + sum(mean(row) for row in cost.table)
        weights = 3.0 * middle * self.options.batch_size
        estimate = self._estimate_macs(estimator) * self.options.batch_size
        alone = ESTIMATORS[estimator]().trains_weights
        alpha_every = 1 if alone else self.options.alpha_every
        searching = estimate if alone else weights + estimate / alpha_every
        step = WARMUP_SHARE * weights + (1.0 - WARMUP_SHARE) * searching
        search_steps = max(2, int(share * self.computation / step))
        return SearchConfig(
            recipe=self._recipe(search_steps + self._planned_steps(1.0 - SEARCH_SHARE)),
            search_steps=search_steps,
            warmup_steps=int(WARMUP_SHARE * search_steps),
            seed=seed,
            estimator=estimator,
            alpha_every=alpha_every,
            # the logits must be able to travel as far in a short search as in a long one
            alpha_learning_rate=max(1e-3, 44.0 * alpha_every / search_steps),
        )

    def _estimate_macs(self, estimator: str, draws: int = 16, batch_size: int = 4) -> float:
        """What one estimate costs for each image, the mean over uniform paths."""
        supernet = Supernet(self.space, stream(0, "weights"))
        sizes = [len(slot.candidates) for slot in self.space.slots]
        p = torch.zeros(len(sizes), self.space.n_candidates, dtype=torch.float64)
        for row, size in zip(p, sizes, strict=True):
            row[:size] = 1.0 / size
        known = ESTIMATORS[estimator]()
        with MacMeter() as meter:
            for step in range(draws):
                batch = self.data.plain_batch(0, step, batch_size)
                known.estimate(supernet, p, batch, 0.0, stream(0, "path", step))
        return meter.macs / (draws * batch_size)

    def _recipe(self, total_steps: int) -> WeightRecipe:
        return WeightRecipe(
            total_steps=total_steps,
            warmup_steps=max(1, total_steps // 20),
            batch_size=self.options.batch_size,
            learning_rate=self.options.learning_rate,
            weight_decay=self.options.weight_decay,
        )

    def _steps(self, computation: float, architecture: Architecture) -> int:
        """Training steps of `architecture` that this pays for, recalibration included."""
        macs = self.space.macs(architecture)
        rest = computation - macs * self.data.n_train
        return max(1, int(rest / (3.0 * macs * self.options.batch_size)))

    def _planned_steps(self, share: float) -> int:
        """Training steps that `share` of the computation pays for, whoever wins."""
        step = 3.0 * self.reference_macs * self.options.batch_size
        return max(1, int(share * self.computation / step))

    def _largest(self, size: SeparableCost) -> Architecture:
        limit = Constraint("latency", self.latency, self.budget_ms, Observed())
        return Constraints([limit]).best(self.space, size.table)[0]


def random_networks(
    space: SearchSpace, latency: LatencyTerm, budget_ms: float, n: int, rng: random.Random
) -> list[Architecture]:
    """Up to `n` networks, uniform among those predicted at 90 to 100 % of the budget.

    Where none is drawn there, the slowest one within the budget stands for them.
    """
    drawn = dict.fromkeys(space.sample(rng) for _ in range(10_000))
    fitting = [a for a in drawn if latency.exact(a) <= budget_ms]
    close = [a for a in fitting if latency.exact(a) >= 0.9 * budget_ms]
    return close[:n] or [max(fitting, key=latency.exact)]


def reduced(data: ImageDataset, resolution_px: int, n_images: int) -> ImageDataset:
    """Fewer training images, the same share of each class, and all images by box averages.

    Shifts of the augmentation shrink with the images.
    """
    factor, rest = divmod(data.shape[1], resolution_px)
    if rest or factor == 0:
        raise SystemExit(f"{resolution_px} px do not divide the {data.shape[1]} px of {data.name}")
    if n_images < data.n_train:
        _, data = data.split(n_images)

    def pooled(images: torch.Tensor) -> torch.Tensor:
        parts = [avg_pool2d(part.float(), factor).round() for part in images.split(1000)]
        return torch.cat(parts).to(torch.uint8).contiguous()

    train = pooled(data.train_images)
    pixels = train.float().transpose(0, 1).flatten(1)  # (C, pixels)
    augmentation = data.augmentation
    return replace(
        data,
        train_images=train,
        test_images=pooled(data.test_images),
        mean=tuple(pixels.mean(dim=1).tolist()),
        std=tuple(pixels.std(dim=1).tolist()),
        augmentation=replace(augmentation, shift_px=augmentation.shift_px // factor),
    )


def _space(name: str, data: ImageDataset) -> SearchSpace:
    channels, resolution, _ = data.shape
    if name == "micro":
        return micro(channels, resolution, data.n_classes)
    space = get_space(name)
    if (space.in_channels, space.resolution_px, space.n_classes) != (
        channels,
        resolution,
        data.n_classes,
    ):
        raise SystemExit(
            f"{name} takes {space.in_channels} x {space.resolution_px} px and {space.n_classes} "
            f"classes, the images have {channels} x {resolution} px and {data.n_classes}"
        )
    return space


def _latency_model(space: SearchSpace, path: Path, rounds: int) -> NetworkLatencyModel:
    """The model at `path`, or one fitted to this machine and written there."""
    if path.exists():
        model = NetworkLatencyModel.from_document(json.loads(path.read_text())["model"])
        if model.space_digest != space.digest:
            raise SystemExit(f"{path} was fitted for another space")
        return model
    items = {item.subject: item.build() for item in plan_kit(space)}
    print(f"measuring the {len(items)} files of the latency model's kit", flush=True)
    measured = {s: median(ms) for s, ms in _readings(items, rounds).items()}
    model, report = fit_latency_model(space, measured)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"model": model.to_document(), "report": report}, indent=1) + "\n")
    print(f"left-out error {report['leave_one_out']['mape']:.2%}; {path}", flush=True)
    return model


def _readings(files: Mapping[str, bytes], rounds: int) -> dict[str, list[float]]:
    """Latencies in ms of ONNX files, measured in turn, every round in another order.

    A reading that failed a noise gate is repeated and only kept when no try passed; a file
    that was never measured is missing.
    """
    runtime = OnnxRuntimeCpu()
    anchor = Anchor(runtime.load(anchor_item().build()))
    runs = {name: runtime.load(content) for name, content in files.items()}
    readings: dict[str, list[float]] = defaultdict(list)
    order, rng = list(runs), random.Random(0)
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            found = None
            for _ in range(MEASURING_TRIES):
                try:
                    found = measure(runs[name], anchor, EFFORTS["table"])
                except TooNoisyError:
                    continue
                if not found.note:
                    break
            if found is not None:
                readings[name].append(found.latency_ms)
    return readings


def _measure_networks(rows: Sequence[Row], folder: Path, rounds: int) -> None:
    """Measure all networks once more, side by side, into their rows."""
    files = {_key(row): (folder / f"{_key(row)}.onnx").read_bytes() for row in rows}
    print(f"measuring {len(files)} networks", flush=True)
    readings = _readings(files, rounds)
    for row in rows:
        found = readings.get(_key(row))
        row["measured_ms"] = median(found) if found else None
        row["readings_ms"] = found or []


def _key(row: Mapping[str, Any]) -> str:
    return f"{row['arm']}_b{row['budget_share']:g}_s{row['seed']}"


def _record(
    options: argparse.Namespace, space: SearchSpace, data: ImageDataset, model: NetworkLatencyModel
) -> dict[str, Any]:
    """The record at `--out`, or an empty one."""
    settings = {name: getattr(options, name) for name in SETTINGS}
    if options.out.exists():
        record: dict[str, Any] = json.loads(options.out.read_text())
        now = {"settings": settings, "latency_model": json.loads(json.dumps(model.to_document()))}
        for name, value in now.items():
            if record[name] != value:
                raise SystemExit(f"{options.out} holds runs of other {name}: {record[name]}")
        return record
    words = [Path(w).name if Path(w).is_absolute() else w for w in options.command]
    command = ["python", "-m", "benchmarks.search_quality", *words]
    return {
        "command": shlex.join(command),
        "machine": {
            **asdict(OnnxRuntimeCpu().profile()),
            "system": platform.system(),
            "training_threads": options.threads,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        "settings": settings,
        "space": {"name": space.name, "digest": space.digest, "size": space.size},
        "data": {
            "name": data.name,
            "digest": data.digest,
            "training_images": data.n_train,
            "test_images": data.n_test,
            "augmentation": asdict(data.augmentation),
        },
        "computation": "MACs of convolutions and matrix products as executed, backward included",
        "children": "of every estimator go on from the supernet's weights, ProxylessNAS's too",
        "latency_model": model.to_document(),
        "summary": [],
        "runs": [],
    }


def _write(record: dict[str, Any], path: Path) -> None:
    record["summary"] = summary(record["runs"])
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    unfinished.replace(path)


def summary(rows: Sequence[Row]) -> list[Row]:
    """One entry for each budget and arm: means, deviations, and paired differences by seed.

    A difference is of test accuracies at the same seed, less that of the reference; its
    standard error is None for a single seed.
    """
    by_arm: dict[tuple[float, str], dict[int, Row]] = defaultdict(dict)
    for row in rows:
        by_arm[row["budget_share"], row["arm"]][row["seed"]] = row
    entries = []
    for (share, arm), runs in sorted(by_arm.items(), key=lambda kv: (kv[0][0], -_mean(kv[1]))):
        measured = [row["measured_ms"] for row in runs.values() if row["measured_ms"] is not None]
        entry: Row = {
            "budget_share": share,
            "budget_ms": next(iter(runs.values()))["budget_ms"],
            "arm": arm,
            "seeds": sorted(runs),
            "test_accuracy_mean": _mean(runs),
            "test_accuracy_std": _std([row["test_accuracy"] for row in runs.values()]),
            "predicted_ms_mean": mean(row["predicted_ms"] for row in runs.values()),
            "measured_ms_mean": mean(measured) if measured else None,
            "macs_mean": mean(row["macs"] for row in runs.values()),
            "parameters_mean": mean(row["parameters"] for row in runs.values()),
            "computation_share_mean": mean(row["computation_share"] for row in runs.values()),
            "seconds_mean": mean(row["seconds"] for row in runs.values()),
            "differences": {},
        }
        for reference in REFERENCES:
            others = by_arm.get((share, reference), {})
            seeds = sorted(runs.keys() & others.keys())
            if not seeds or reference == arm:
                continue
            gains = [runs[s]["test_accuracy"] - others[s]["test_accuracy"] for s in seeds]
            deviation = _std(gains)
            entry["differences"][reference] = {
                "mean": mean(gains),
                "standard_error": None if deviation is None else deviation / math.sqrt(len(seeds)),
                "seeds": seeds,
            }
        entries.append(entry)
    return entries


def _mean(runs: Mapping[int, Row]) -> float:
    return mean(row["test_accuracy"] for row in runs.values())


def _std(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def table(record: Mapping[str, Any]) -> str:
    """The summary for people, best arms first; accuracies and differences in per cent."""
    lines = []
    for share in sorted({entry["budget_share"] for entry in record["summary"]}):
        entries = [entry for entry in record["summary"] if entry["budget_share"] == share]
        lines.append(f"budget {entries[0]['budget_ms']:.4f} ms, {share:.0%} of the band")
        lines.append(
            f"{'arm':<22}{'n':>2}{'accuracy %':>15}{'predicted':>11}{'measured ms':>12}"
            f"{'M MACs':>8}{'k par.':>8}{'comp.':>7}{'s':>6}"
            + "".join(f"{'- ' + name:>21}" for name in REFERENCES)
        )
        for entry in entries:
            measured = entry["measured_ms_mean"]
            lines.append(
                f"{entry['arm']:<22}{len(entry['seeds']):>2}"
                f"{_percent(entry['test_accuracy_mean'], entry['test_accuracy_std'], ''):>15}"
                f"{entry['predicted_ms_mean']:>11.4f}"
                f"{'-' if measured is None else format(measured, '.4f'):>12}"
                f"{entry['macs_mean'] / 1e6:>8.2f}{entry['parameters_mean'] / 1e3:>8.1f}"
                f"{entry['computation_share_mean']:>7.3f}{entry['seconds_mean']:>6.0f}"
                + "".join(_difference(entry, name) for name in REFERENCES)
            )
    lines.append("comp.: executed, as a share of what each arm may; s: wall time in seconds")
    lines.append("+-: of accuracies the deviation over seeds, of differences the standard error")
    return "\n".join(lines)


def _difference(entry: Row, reference: str) -> str:
    found = entry["differences"].get(reference)
    text = "" if found is None else _percent(found["mean"], found["standard_error"], "+")
    return f"{text:>21}"


def _percent(value: float, spread: float | None, sign: str) -> str:
    tail = "" if spread is None else f" +- {100 * spread:.2f}"
    return f"{100 * value:{sign}.2f}{tail}"


def _say(event: SearchEvent) -> None:
    match event:
        case Progress() as progress:
            left = progress.remaining_seconds
            print(
                f"  {progress.phase} {progress.completed}/{progress.total}"
                + "".join(
                    f", {name} {progress.metrics[name]:.3f}"
                    for name in ("train_loss", "held_out_loss", "latency_current")
                    if name in progress.metrics
                )
                + (f", {left:.0f} s left" if left is not None else ""),
                flush=True,
            )
        case Notice(code, text):
            print(f"  {code}: {text}", flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, help="print the table of this record, run nothing")
    parser.add_argument("--out", type=Path, help="the record; goes on where one exists")
    parser.add_argument("--data", type=Path, help="the data set's files in any of their forms")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--space", default="micro")
    parser.add_argument("--resolution", type=int, default=16, help="px after averaging")
    parser.add_argument("--images", type=int, default=12_000, help="training images, balanced")
    parser.add_argument("--epochs", type=float, default=12.0, help="of a typical network alone")
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--weight-decay", type=float, default=4e-5)
    parser.add_argument("--alpha-every", type=int, default=2, help="of two-level estimators")
    parser.add_argument("--budget-shares", type=float, nargs="+", default=[0.5], help="of the band")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="of every measurement")
    parser.add_argument("--latency-model", type=Path, help="written by the first run")
    options = parser.parse_args(arguments)
    if options.report is None and options.out is None:
        parser.error("--out is needed, or --report")
    options.command = list(sys.argv[1:] if arguments is None else arguments)
    return options


if __name__ == "__main__":
    main()
