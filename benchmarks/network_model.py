"""The latency model that searches are charged, held against networks it has not seen.

    python -m benchmarks.measure_space --space proxyless_cifar_mb --networks 160 --rounds 4 \
        --out measured.csv
    python -m benchmarks.network_model --measured measured.csv --space proxyless_cifar_mb --json

The first 60 networks of the table calibrate, the others are held out. Beside the errors: simpler
models on the same networks, the noise ceiling (one round against the others), coverage of the
intervals, an ablation, the gap between the relaxation and the mean over drawn architectures,
gradients against exchanges, and what a fit costs. ``--table`` adds the ablation on a table of
networks without blocks, for example NAS-Bench-201 on some device.

The last line is JSON.
"""

import argparse
import csv
import random
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import spearmanr
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.measure_space import draw_networks
from benchmarks.records import (
    last_line,
    new_record,
    plot_bars,
    plot_calibration,
    plot_parity,
    write_record,
)
from benchmarks.table_spaces import networks_of
from benchmarks.tables import read_table
from predictor.block_table import block_table
from predictor.evaluation import check_latencies, prediction_quality
from predictor.fit import fit_latency_model
from predictor.intervals import conformal_intervals
from predictor.kits import block_subject, chains, network_subject
from predictor.latency_term import LatencyTerm
from predictor.models.calibration import NetworkCalibration
from predictor.models.interactions import Slots
from predictor.network import NetworkLatencyModel, Pair, Similarity
from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.presets import get_space
from search_core.space.space import Architecture, Layer, SearchSpace, Slot

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

REACH = {
    "mape": 0.03,
    "within_5": 0.85,
    "within_10": 0.99,
    "spearman": 0.985,
    "coverage": (0.87, 0.94),
    "mean_half_width": 0.05,
    "relaxation_gap": 0.001,
    "swap_gradient_error": 1e-9,
    "expected_ms": 2.0,
    "fit_seconds": 60.0,
}
KERNELS = ("alike", "place", "adjacent", "product")
N_CALIBRATION = 60


def main() -> int:
    """Judge the model; 0 when every number was reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measured", type=Path, help="a table that measure_space wrote")
    parser.add_argument("--space", default="proxyless_cifar_mb")
    parser.add_argument("--calibration", type=int, default=N_CALIBRATION)
    parser.add_argument("--table", type=Path, help="of networks, for the ablation on --targets")
    parser.add_argument("--table-space", default="nasbench201")
    parser.add_argument("--targets", default="", help="columns of --table, joined by commas")
    parser.add_argument("--samples", type=int, default=200, help="networks of --table to fit to")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="only the record")
    parser.add_argument("--out", type=Path, help="write the record here, pictures beside it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    record = new_record("network_model")
    record["to_reach"] = REACH
    if arguments.measured:
        record |= own_target(arguments)
    if arguments.table:
        record["tables"] = {
            target: table_ablation(arguments, target) for target in arguments.targets.split(",")
        }
    if not arguments.table or arguments.measured:
        record["relaxation"] = relaxation()
        record["fit"] = fit_cost()
    record["reached"] = reached(record)
    write_record(record, arguments.out)
    if not arguments.json:
        for name, value in record["reached"].items():
            print(f"{name}: {'reached' if value else 'MISSED'}")
    last_line(record)
    return 0 if all(record["reached"].values()) else 1


# -- the target that was measured here -------------------------------------------------


def own_target(arguments: argparse.Namespace) -> dict[str, Any]:
    """Errors, coverage, baselines and ablation on measured networks."""
    space = get_space(arguments.space)
    rounds = read_rounds(arguments.measured)
    measured_ms = {s: float(np.mean(list(by.values()))) for s, by in rounds.items()}
    n = sum(subject.startswith("network:") for subject in measured_ms)
    networks = draw_networks(space, n, 0)
    known, unseen = networks[: arguments.calibration], networks[arguments.calibration :]
    began = time.perf_counter()
    model, report = fit_latency_model(space, measured_ms, calibration=known, held_out=unseen)
    seconds = time.perf_counter() - began
    truth = np.array([measured_ms[network_subject(space, a)] for a in unseen])
    predicted = np.array([model.predict_ms(a) for a in unseen])
    coverage = coverage_of_splits(predicted, truth)
    told = {
        **asdict(prediction_quality(predicted, truth)),
        "fit_seconds_here": round(seconds, 2),
        "n_calibration": len(known),
        "rounds": max(len(by) for by in rounds.values()),
        "interactions": report["interactions"],
        "block_sum": report["block_sum"],
        "coverage": coverage["90"]["coverage"],
        "mean_half_width": coverage["90"]["half_width"],
        "coverage_by_level": coverage,
        "noise": noise(rounds),
        "baselines": baselines(space, known, unseen, measured_ms),
        "ablation": ablation(space, known, unseen, measured_ms),
        "error_by_layer": error_by_layer(space, unseen, predicted, truth),
    }
    if arguments.out:
        stem = arguments.out.with_suffix("")
        plot_parity({"held out": (truth, predicted)}, Path(f"{stem}_parity.svg"), space.name)
        levels = np.array([float(level) / 100 for level in coverage])
        realised = np.array([found["coverage"] for found in coverage.values()])
        lines = {"split conformal": (levels, realised)}
        plot_calibration(lines, Path(f"{stem}_calibration.svg"), "intervals on held-out networks")
        plot_bars(told["error_by_layer"], Path(f"{stem}_layers.svg"), "error by candidate", "MAPE")
    return told


def read_rounds(path: Path) -> dict[str, dict[int, float]]:
    """Latency in ms by subject and round."""
    rounds: dict[str, dict[int, float]] = defaultdict(dict)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            rounds[row["subject"]][int(row["round"])] = float(row["latency_ms"])
    return rounds


def noise(rounds: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """How well one round predicts the mean of the others: no model can be told to be better."""
    networks = [by for s, by in rounds.items() if s.startswith("network:") and len(by) > 1]
    if not networks:
        return {}
    numbers = sorted(set.intersection(*(set(by) for by in networks)))
    errors, ranks = [], []
    for number in numbers:
        one = np.array([by[number] for by in networks])
        rest = np.array([np.mean([by[k] for k in numbers if k != number]) for by in networks])
        errors.append(float(np.abs(one / rest - 1.0).mean()))
        ranks.append(float(spearmanr(one, rest).statistic))
    return {"mape_of_a_round": float(np.mean(errors)), "spearman_of_a_round": float(np.mean(ranks))}


def coverage_of_splits(predicted: Floats, truth: Floats, splits: int = 200) -> dict[str, Any]:
    """Intervals from 40 held-out networks, judged on the rest; by level in percent."""
    rng = np.random.default_rng(0)
    found = {}
    for level in (50, 60, 70, 80, 90):
        inside, widths = [], []
        for _ in range(splits):
            order = rng.permutation(len(truth))
            fit, test = order[:40], order[40:]
            made = conformal_intervals(
                predicted[fit].tolist(), truth[fit].tolist(), level=level / 100
            )
            bounds = np.array([made.of(p) for p in predicted[test]])
            inside.append(((bounds[:, 0] <= truth[test]) & (truth[test] <= bounds[:, 1])).mean())
            widths.append((bounds[:, 1] / predicted[test] - 1.0).mean())
        found[str(level)] = {
            "coverage": float(np.mean(inside)),
            "half_width": float(np.mean(widths)),
        }
    return found


def baselines(
    space: SearchSpace,
    known: Sequence[Architecture],
    unseen: Sequence[Architecture],
    measured_ms: Mapping[str, float],
) -> dict[str, Any]:
    """The models that people use, fitted to the same networks."""
    y, truth = (
        np.array([measured_ms[network_subject(space, a)] for a in group])
        for group in (known, unseen)
    )
    one_hot, analytic, macs = (
        tuple(np.array([describe(space, a) for a in group]) for group in (known, unseen))
        for describe in (_one_hot, _analytic, lambda s, a: [s.macs(a)])
    )
    gp_kernel = ConstantKernel() * RBF(np.ones(analytic[0].shape[1])) + WhiteKernel(1e-3)
    models: dict[str, tuple[Any, tuple[Floats, Floats]]] = {
        "macs": (LinearRegression(), macs),
        "analytic": (make_pipeline(StandardScaler(), RidgeCV(np.logspace(-6, 2, 17))), analytic),
        "additive one-hot": (RidgeCV(np.logspace(-4, 4, 17)), one_hot),
        "gradient boosting": (HistGradientBoostingRegressor(min_samples_leaf=5), one_hot),
        "mlp": (MLPRegressor(hidden_layer_sizes=(64, 64), max_iter=3000, random_state=0), one_hot),
        "gp": (
            make_pipeline(StandardScaler(), GaussianProcessRegressor(gp_kernel, normalize_y=True)),
            analytic,
        ),
    }
    found = {}
    for name, (model, (x_known, x_unseen)) in models.items():
        with warnings.catch_warnings():  # a feature that says nothing has no length-scale
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x_known, y / y.mean())
        predicted = model.predict(x_unseen) * y.mean()
        found[name] = _short(predicted, truth)
    return found


def ablation(
    space: SearchSpace,
    known: Sequence[Architecture],
    unseen: Sequence[Architecture],
    measured_ms: Mapping[str, float],
) -> dict[str, Any]:
    """The same fit with a part left out; blocks chained once stand for no chains."""
    truth = np.array([measured_ms[network_subject(space, a)] for a in unseen])

    def judged(measured: Mapping[str, float], without: Sequence[str] = ()) -> dict[str, float]:
        model, _ = fit_latency_model(
            space, measured, calibration=known, held_out=unseen, without=without
        )
        return _short(np.array([model.predict_ms(a) for a in unseen]), truth)

    table = block_table(space, measured_ms).ms
    sums = np.array([sum(table.get(b, 0.0) for b in space.blocks(a)) for a in unseen])
    found = {"whole": judged(measured_ms)}
    found |= {f"without {kernel}": judged(measured_ms, [kernel]) for kernel in KERNELS}
    found["without interactions"] = judged(measured_ms, KERNELS)
    found["without calibration (block sums)"] = _short(sums, truth)
    unchained = {
        block_subject(b, copies): measured_ms[block_subject(b, 1)] * copies
        for b in space.distinct_blocks
        for copies in chains(b)
    }
    found["without chains (isolated blocks)"] = judged({**measured_ms, **unchained})
    return found


def error_by_layer(
    space: SearchSpace, unseen: Sequence[Architecture], predicted: Floats, truth: Floats
) -> dict[str, float]:
    """Mean absolute relative error of the networks that hold each kind of candidate."""
    size = np.abs(predicted / truth - 1.0)
    by_kind: dict[str, list[float]] = defaultdict(list)
    for architecture, error in zip(unseen, size, strict=True):
        blocks = (layer.blocks[c] for layer, c in _decided(space, architecture))
        for kind in {f"k{b.kernel} e{b.expansion} at {b.resolution_px} px" for b in blocks}:
            by_kind[kind].append(float(error))
    return {kind: float(np.mean(errors)) for kind, errors in sorted(by_kind.items())}


def _decided(space: SearchSpace, architecture: Architecture) -> list[tuple[Layer, int]]:
    return [
        (layer, architecture.choices[layer.slot])
        for layer in space.layers
        if layer.slot is not None
    ]


def _one_hot(space: SearchSpace, architecture: Architecture) -> list[float]:
    return [
        float(choice == candidate)
        for slot, choice in zip(space.slots, architecture.choices, strict=True)
        for candidate in range(len(slot.candidates))
    ]


def _analytic(space: SearchSpace, architecture: Architecture) -> list[float]:
    blocks = space.blocks(architecture)
    return [
        float(sum(b.macs for b in blocks)),
        float(sum(b.parameters for b in blocks)),
        float(sum(step.out_elements for b in blocks for step in b.steps)),
        float(sum(len(b.steps) for b in blocks)),
    ]


def _short(predicted: Floats, truth: Floats) -> dict[str, float]:
    quality = prediction_quality(predicted, truth)
    return {
        name: round(getattr(quality, name), 5)
        for name in ("mape", "within_5", "within_10", "spearman")
    }


# -- tables of networks without blocks -------------------------------------------------


def table_ablation(arguments: argparse.Namespace, target: str) -> dict[str, Any]:
    """Each kernel left out, where an analytic line stands for the sums of blocks."""
    table = read_table(arguments.table)
    networks = networks_of(arguments.table_space, table.architectures())
    latency_ms = table.latencies_ms(target)
    runs = np.flatnonzero(latency_ms > 0.1 * np.median(latency_ms))  # the rest were compiled away
    latency_ms, all_choices = latency_ms[runs], networks.choices[runs]
    check_latencies(latency_ms, target, at_least=arguments.samples + 2)
    costs = [i for i, name in enumerate(networks.feature_names) if not name.startswith("log")]
    x = networks.features[runs][:, costs] / networks.features[:, costs].max(axis=0)
    x = np.column_stack([x, np.ones(len(x))])
    n_slots, width = all_choices.shape[1], int(all_choices.max()) + 1
    results: dict[str, list[dict[str, float]]] = defaultdict(list)
    for seed in range(arguments.seeds):
        order = np.random.default_rng(seed).permutation(len(x))
        fit, test = order[: arguments.samples], order[arguments.samples :][:2000]
        weights, _ = nnls(x[fit] / latency_ms[fit, None], np.ones(len(fit)))
        sums = x @ weights
        groups = np.zeros((n_slots, width, width))
        groups[:, np.arange(width), np.arange(width)] = sums[fit].mean() / n_slots
        pairs = np.array([(i, i + 1) for i in range(n_slots - 1)])
        slots = Slots(np.full((n_slots, width), sums[fit].mean() / n_slots), groups, pairs)
        cases: dict[str, tuple[str, ...]] = {"whole": ()}
        cases |= {f"without {kernel}": (kernel,) for kernel in KERNELS}
        for name, without in cases.items():
            model = NetworkCalibration(slots, without)
            model.fit(all_choices[fit], sums[fit], latency_ms[fit])
            predicted = model.predict(all_choices[test], sums[test])
            results[name].append(_short(predicted, latency_ms[test]))
        line = NetworkCalibration(slots, KERNELS)
        line.fit(all_choices[fit], sums[fit], latency_ms[fit])
        predicted = line.line_.predict(sums[test][:, None])
        results["without interactions"].append(_short(predicted, latency_ms[test]))
    return {
        name: {key: float(np.mean([one[key] for one in several])) for key in several[0]}
        for name, several in results.items()
    }


# -- what a search relies on -----------------------------------------------------------


def relaxation(n_slots: int = 22, width: int = 9, n_networks: int = 100) -> dict[str, Any]:
    """The model at probabilities against 10^4 drawn architectures, flat to sharp."""
    model = _large_model(n_slots, width, n_networks)
    term, generator = LatencyTerm(model), torch.Generator().manual_seed(1)
    normal = torch.randn(n_slots, width, generator=generator, dtype=torch.float64)
    gaps, gradient_error = {}, 0.0
    for sharpness in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0):
        p = (sharpness * normal).softmax(dim=1).requires_grad_()
        expected = term.expected(p)
        (gradient,) = torch.autograd.grad(expected, p)
        drawn = _stratified(p.detach(), 10_000, generator)
        exact = np.array([term.exact(Architecture("d", tuple(c))) for c in drawn.tolist()])
        value = float(expected.detach())
        gaps[str(sharpness)] = {
            "gap": float(abs(value - exact.mean()) / exact.mean()),
            "sampling_error_of_plain_draws": float(exact.std() / len(exact) ** 0.5 / exact.mean()),
        }
        base = Architecture("d", tuple(drawn[0].tolist()))
        at = torch.eye(width, dtype=torch.float64)[drawn[0]].requires_grad_()
        (at_base,) = torch.autograd.grad(term.expected(at), at)
        for slot in range(n_slots):
            for choice in range(width):
                swapped = [*base.choices]
                swapped[slot] = choice
                exchange = term.exact(Architecture("d", tuple(swapped))) - term.exact(base)
                told = float(at_base[slot, choice] - at_base[slot, base.choices[slot]])
                gradient_error = max(gradient_error, abs(told - exchange))
        assert torch.isfinite(gradient).all()
    return {
        "slots": n_slots,
        "candidates": width,
        "networks": n_networks,
        "by_sharpness": gaps,
        "largest_gap": max(found["gap"] for found in gaps.values()),
        "swap_gradient_error_ms": gradient_error,
        "expected_with_gradient_ms": _median_ms(
            lambda: torch.autograd.grad(
                term.expected(q := normal.softmax(dim=1).requires_grad_()), q
            )
        ),
    }


def _stratified(p: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """(n, n_slots) choices drawn from `p`, as evenly in each slot as n allows (latin hypercube).

    Each row is distributed as `p` says; only rows lean on each other, so that the sampling error
    of a mean is that of what slots do together.
    """
    columns = []
    for row in p:
        order = torch.randperm(n, generator=generator)
        marks = (order + torch.rand(n, generator=generator, dtype=torch.float64)) / n
        last = int(row.nonzero().max())
        columns.append(torch.searchsorted(row.cumsum(0), marks).clamp_max(last))
    return torch.stack(columns, dim=1)


def _large_model(n_slots: int, width: int, n_networks: int) -> NetworkLatencyModel:
    """Every kind of term, of the size that fits have; the numbers are drawn."""
    rng = np.random.default_rng(0)
    return NetworkLatencyModel(
        "d",
        1.0,
        tuple(map(tuple, rng.uniform(0.05, 0.5, (n_slots, width)).tolist())),
        0.02,
        pairs=tuple(
            Pair(i, i + 1, tuple(map(tuple, rng.normal(0, 0.02, (width, width)).tolist())))
            for i in range(n_slots - 1)
        ),
        similarity=Similarity(
            0.8,
            tuple(map(tuple, rng.integers(0, width, (n_networks, n_slots)).tolist())),
            tuple(rng.normal(0, 0.5, n_networks).tolist()),
        ),
    )


def fit_cost(n_blocks: int = 1000, n_networks: int = 100) -> dict[str, Any]:
    """Seconds of a fit to a space of so many distinct blocks, on drawn latencies, one thread."""
    space = _wide_space(n_blocks)
    rng = random.Random(0)
    measured_ms = {
        block_subject(b, copies): copies * (0.01 + 1e-7 * b.macs) * rng.gauss(1.0, 0.01)
        for b in space.distinct_blocks
        for copies in chains(b)
    }
    networks = draw_networks(space, n_networks + 40, 0)
    for a in networks:
        block_sum = sum(0.01 + 1e-7 * b.macs for b in space.blocks(a))
        measured_ms[network_subject(space, a)] = (0.1 + 1.1 * block_sum) * rng.gauss(1.0, 0.02)
    began = time.perf_counter()
    fit_latency_model(
        space, measured_ms, calibration=networks[:n_networks], held_out=networks[n_networks:]
    )
    return {
        "blocks": len(space.distinct_blocks),
        "networks": n_networks,
        "seconds": round(time.perf_counter() - began, 2),
    }


def _wide_space(n_blocks: int, n_slots: int = 20) -> SearchSpace:
    """A chain of slots with so many distinct candidates together; every other slot repeats."""
    width, resolution_px, channels = n_blocks // n_slots, 16, 16
    stem = BlockSpec(BlockKind.CONV, 3, 1, 1, 3, channels, resolution_px)
    layers, slots = [Layer((stem,))], []
    for slot in range(n_slots):
        out_channels = channels if slot % 2 else channels + 8
        kinds = [(kernel, expansion) for expansion in range(1, width) for kernel in (3, 5, 7)]
        blocks = [
            BlockSpec(BlockKind.MBCONV, k, e, 1, channels, out_channels, resolution_px)
            for k, e in kinds[:width]
        ]
        layers.append(Layer(tuple(blocks), slot))
        slots.append(Slot(f"slot {slot}", tuple(f"k{k}e{e}" for k, e in kinds[:width])))
        channels = out_channels
    classifier = BlockSpec(BlockKind.CLASSIFIER, 1, 1, 1, channels, 10, resolution_px)
    layers.append(Layer((classifier,)))
    return SearchSpace("wide", 1, 3, resolution_px, 10, tuple(slots), tuple(layers))


def reached(record: Mapping[str, Any]) -> dict[str, bool]:
    """Which numbers of `REACH` this run has, of those that it looked at."""
    found: dict[str, bool] = {}
    if "mape" in record:
        found["mape"] = record["mape"] <= REACH["mape"]
        found |= {n: record[n] >= REACH[n] for n in ("within_5", "within_10", "spearman")}
        low, high = REACH["coverage"]
        found["coverage"] = low <= record["coverage"] <= high
        found["mean_half_width"] = record["mean_half_width"] <= REACH["mean_half_width"]
    if "relaxation" in record:
        told = record["relaxation"]
        found["relaxation_gap"] = told["largest_gap"] <= REACH["relaxation_gap"]
        found["swap_gradient_error"] = (
            told["swap_gradient_error_ms"] <= REACH["swap_gradient_error"]
        )
        found["expected_ms"] = told["expected_with_gradient_ms"] <= REACH["expected_ms"]
        found["fit_seconds"] = record["fit"]["seconds"] <= REACH["fit_seconds"]
    return {name: bool(value) for name, value in found.items()}


def _median_ms(call: Callable[[], object], n: int = 200) -> float:
    times = []
    for _ in range(n):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return round(1e3 * float(np.median(times)), 4)


if __name__ == "__main__":
    sys.exit(main())
