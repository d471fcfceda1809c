"""Single convolutions that nobody measured: a test table, a random share, sizes never seen."""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kernel_baselines import BASELINES, Rows
from benchmarks.kernel_figures import Figures, beside, by_target, plot_errors, say, short, summary
from benchmarks.records import plot_parity
from predictor.errors import BadTableError
from predictor.features import Convolutions
from predictor.models.kernel_regressor import LEAST_CONVOLUTIONS, KernelRegressor

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Measured = tuple[Convolutions, Floats]
Split = Callable[[Convolutions, np.random.Generator], Flags]

FULL: dict[str, Any] = {}  # KernelRegressor as it is
SMALLER: dict[str, Any] = {"rows": 60_000, "iterations": 200, "leaves": 127, "learning_rate": 0.1}
SMALLEST: dict[str, Any] = {"rows": 30_000, "iterations": 120, "leaves": 63, "learning_rate": 0.15}
PARTS = ("neighbours", "corners", "work")


def _random(convolutions: Convolutions, rng: np.random.Generator) -> Flags:
    return rng.random(len(convolutions)) < 0.2


def _channels(convolutions: Convolutions, rng: np.random.Generator) -> Flags:
    """A sixth of the channel counts that lie between others, wherever they occur."""
    held_out = _inner(np.append(convolutions.in_channels, convolutions.out_channels), rng)
    return np.isin(convolutions.in_channels, held_out) | np.isin(
        convolutions.out_channels, held_out
    )


def _kernel(convolutions: Convolutions, rng: np.random.Generator) -> Flags:  # noqa: ARG001
    return convolutions.kernel == convolutions.kernel.max()


def _resolution(convolutions: Convolutions, rng: np.random.Generator) -> Flags:
    return np.isin(convolutions.resolution_px, _inner(convolutions.resolution_px, rng))


def _inner(values: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    between = np.unique(values)[1:-1]
    return rng.choice(between, -(-len(between) // 6), replace=False)


SPLITS: dict[str, Split] = {
    "random": _random,
    "channels": _channels,
    "kernel": _kernel,
    "resolution": _resolution,
}


def convolution_figures(
    table: Measured, test: Measured | None, arguments: argparse.Namespace
) -> Figures:
    """All that is reported of a table of convolutions."""
    convolutions, latency_ms = table
    if test is None:
        held_out = _held_out(convolutions, arguments.split)
        if held_out is None:
            raise BadTableError(f"no rows can be held out by {arguments.split}")
        train = convolutions[~held_out], latency_ms[~held_out]
        test = convolutions[held_out], latency_ms[held_out]
    else:
        train = table
    say(f"{len(train[1])} convolutions to learn from, {len(test[1])} to predict")
    model = KernelRegressor(**FULL).fit(*train)
    predicted_ms = model.predict(test[0])
    record = summary(predicted_ms, test[1], test[0].precision)
    record["split"] = "test_table" if arguments.test_table else arguments.split
    record["covered_share"] = float(model.covered(test[0]).mean())
    record["noise_ceiling"] = _repeats(convolutions, latency_ms)
    for name in ("channels", "kernel"):
        record[f"unseen_{name}"] = _unseen(convolutions, latency_ms, name, SMALLER)
    if arguments.baselines:
        record["baselines"] = _baselines(train, test)
    if arguments.ablation:
        record["ablation"] = _ablation(convolutions, latency_ms)
    if arguments.out:
        title = f"{record['split']}: MAPE {100 * record['mape_mean']:.1f} %"
        some = np.random.default_rng(0).permutation(len(test[1]))[:8000]
        panels = by_target(test[0].precision[some], test[1][some], predicted_ms[some])
        plot_parity(panels, beside(arguments.out, "parity"), title)
        asked = zip(test[0].depthwise, test[0].kernel, test[0].stride, strict=True)
        sorts = [
            f"{'depthwise' if depthwise else 'dense'} {kernel}x{kernel}, stride {stride}"
            for depthwise, kernel, stride in asked
        ]
        plot_errors(sorts, predicted_ms, test[1], arguments.out)
    return record


def _held_out(convolutions: Convolutions, split: str) -> Flags | None:
    """(n,), with every precision left among the others; None where nothing can be held out."""
    held_out = SPLITS[split](convolutions, np.random.default_rng(0))
    held_out &= np.isin(convolutions.precision, convolutions.precision[~held_out])
    return held_out if held_out.any() and not held_out.all() else None


def _unseen(
    convolutions: Convolutions, latency_ms: Floats, split: str, settings: dict[str, Any]
) -> Figures | None:
    """Figures of a run on one split; None where a table has nothing to hold out."""
    held_out = _held_out(convolutions, split)
    if held_out is None or (~held_out).sum() < LEAST_CONVOLUTIONS:
        return None
    say(f"held out by {split}: {held_out.sum()}")
    rows = np.flatnonzero(held_out)
    asked = np.random.default_rng(0).permutation(rows)[:20_000]
    model = KernelRegressor(**settings).fit(convolutions[~held_out], latency_ms[~held_out])
    some = convolutions[asked]
    figures = summary(model.predict(some), latency_ms[asked], some.precision)
    figures["covered_share"] = float(model.covered(some).mean())
    return figures


def _ablation(convolutions: Convolutions, latency_ms: Floats) -> Figures:
    """MAPE by split of the smallest run without one part each."""
    variants: dict[str, dict[str, Any]] = {
        "everything": {},
        **{f"without {part}": {part: False} for part in PARTS},
        "without unseen": {"unseen": 0.0},
    }
    table: Figures = {}
    for name, parts in variants.items():
        say(f"ablation: {name}")
        settings = SMALLEST | parts
        figures = {s: _unseen(convolutions, latency_ms, s, settings) for s in SPLITS}
        table[name] = {split: f and f["mape_mean"] for split, f in figures.items()}
    return table


def _baselines(train: Measured, test: Measured) -> Figures:
    names = np.unique(train[0].precision)
    known, asked = (
        Rows(np.column_stack((c.precision[:, None] == names, c.features())), c.work(), c.precision)
        for c, _ in (train, test)
    )
    figures: Figures = {}
    for name, baseline in BASELINES.items():
        say(f"baseline {name}")
        figures[name] = short(baseline(known, train[1], asked), test[1])
    return figures


def _repeats(convolutions: Convolutions, latency_ms: Floats) -> Figures | None:
    """What the table itself says of the same convolution twice."""
    names = ("depthwise", "batch", "in_channels", "resolution_px", "out_channels")
    columns = [getattr(convolutions, n) for n in (*names, "kernel", "stride", "fused", "precision")]
    order = np.lexsort(columns)
    same = np.all([column[order][1:] == column[order][:-1] for column in columns], axis=0)
    first, second = latency_ms[order[:-1][same]], latency_ms[order[1:][same]]
    if not len(first):
        return None
    apart = np.abs(first / second - 1.0)
    return {
        "repeats": len(first),
        "mape": float(apart.mean()),
        "median": float(np.median(apart)),
        "upper_quartile": float(np.percentile(apart, 75)),
        "within_10": float((apart <= 0.10).mean()),
    }
