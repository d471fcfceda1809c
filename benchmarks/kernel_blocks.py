"""Blocks that nobody measured on a device: left-out blocks and resolutions, new devices."""

import argparse
from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from benchmarks.kernel_baselines import BASELINES, Rows, derived_features
from benchmarks.kernel_figures import Figures, beside, by_target, plot_errors, say, short, summary
from benchmarks.kernel_tables import MeasuredBlocks
from benchmarks.records import plot_calibration, plot_parity
from predictor.errors import BadTableError
from predictor.features import comparable, key_features, work
from predictor.models.block_regressor import LEAST_BLOCKS, BlockPredictions, BlockRegressor
from search_core.space.blocks import BlockKind

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

FOLDS = 5
FEW_BLOCKS = 15  # measured on a device that is otherwise new
FEW_SEEDS = 3
HEADLINES = {"random": "left_out_blocks", "resolution": "left_out_resolution"}
PARTS = ("roofline", "shared", "relevance")


def block_figures(
    table: MeasuredBlocks, test: MeasuredBlocks | None, arguments: argparse.Namespace
) -> Figures:
    """All that is reported of a table of blocks."""
    predictions = _left_out_blocks(table)
    say("left-out resolutions")
    parts = {
        "left_out_blocks": _left_out_figures(table, predictions),
        "left_out_resolution": _resolution_figures(table),
    }
    headline = HEADLINES.get(arguments.split, "left_out_blocks")
    if test is None:
        figures = parts.pop(headline)
        if figures is None:
            raise BadTableError("no device was measured at more than one resolution")
        record = figures | {"split": headline}
    else:
        record = _figures(test, _predict(table, test)) | {"split": "test_table"}
    record |= parts
    say(f"{FEW_BLOCKS} blocks of a device")
    record["few_blocks"] = _few_blocks(table)
    record["contradictions"] = _contradictions(table, predictions)
    record["noise_ceiling"] = {
        "mape": float(np.mean(np.sqrt(2.0 / np.pi) * table.sigma_ms / table.latency_ms)),
        "why": "mean absolute error of the measured mean itself, from its standard error",
    }
    if arguments.baselines:
        record["baselines"] = _baselines(table)
    if arguments.ablation:
        record["ablation"] = _ablation(table)
    if arguments.out:
        title = "Left-out blocks, five folds"
        panels = by_target(table.devices, table.latency_ms, predictions.ms)
        plot_parity(panels, beside(arguments.out, "parity"), title)
        layers = [
            f"{b.kind} {b.in_channels}-{b.out_channels}, stride {b.stride}" for b in table.specs
        ]
        plot_errors(layers, predictions.ms, table.latency_ms, arguments.out)
        plot_calibration(
            {"left-out blocks": _coverage(predictions, table.latency_ms)},
            beside(arguments.out, "calibration"),
            "Intervals of left-out blocks",
        )
    return record


def _predict(known: MeasuredBlocks, asked: MeasuredBlocks, **parts: Any) -> BlockPredictions:
    """Predictions of the devices in `asked` from everything in `known`, (n_asked,)."""
    model = BlockRegressor(**parts).fit(
        known.blocks, list(known.devices), known.latency_ms, known.sigma_ms
    )
    ms, sigma_ms = np.empty((2, len(asked)))
    covered = np.empty(len(asked), bool)
    for device in np.unique(asked.devices):
        here = asked.devices == device
        ms[here], sigma_ms[here], covered[here] = model.predict(asked[here].blocks, str(device))
    return BlockPredictions(ms, sigma_ms, covered)


def _groups(table: MeasuredBlocks) -> NDArray[np.int64]:
    """(n,) numbers of blocks; a block of a device has one number at all its resolutions."""
    groups: dict[tuple[Any, ...], int] = {}
    group = []
    for device, op, block in zip(table.devices, table.ops, table.specs, strict=True):
        window = (block.kernel, block.stride) if block.kind is BlockKind.MBCONV else ()
        key = (device, op, block.in_channels, block.out_channels, block.expansion, *window)
        group.append(groups.setdefault(key, len(groups)))
    return np.array(group)


def _folds(table: MeasuredBlocks) -> NDArray[np.int64]:
    """(n,) in 0..FOLDS - 1."""
    group = _groups(table)
    return np.random.default_rng(0).integers(FOLDS, size=group.max() + 1)[group]


def _left_out_blocks(table: MeasuredBlocks, **parts: Any) -> BlockPredictions:
    """Every block predicted without itself, at any resolution of its device."""
    fold = _folds(table)
    ms, sigma_ms = np.empty((2, len(table)))
    covered = np.empty(len(table), bool)
    for number in range(FOLDS):
        held_out = fold == number
        say(f"left-out blocks, fold {number + 1} of {FOLDS}")
        found = _predict(table[~held_out], table[held_out], **parts)
        ms[held_out], sigma_ms[held_out], covered[held_out] = found
    return BlockPredictions(ms, sigma_ms, covered)


def _resolution_figures(table: MeasuredBlocks, **parts: Any) -> Figures | None:
    """Each resolution predicted from the others of its device; None where no device has others."""
    found, rows = [], []
    for device in np.unique(table.devices):
        ours = table.devices == device
        resolutions = np.unique(table.network_px[ours])
        for resolution in resolutions if len(resolutions) > 1 else []:
            held_out = ours & (table.network_px == resolution)
            found.append(_predict(table[~held_out], table[held_out], **parts))
            rows.append(np.flatnonzero(held_out))
    if not rows:
        return None
    together = BlockPredictions(*(np.concatenate(column) for column in zip(*found, strict=True)))
    some = table[np.concatenate(rows)]
    figures = _figures(some, together)
    figures["resolutions"] = {
        str(px): float(np.abs(together.ms / some.latency_ms - 1.0)[some.network_px == px].mean())
        for px in np.unique(some.network_px)
    }
    return figures


def _few_blocks(table: MeasuredBlocks, **parts: Any) -> Figures:
    """Figures of devices of which a few blocks are known, and of every other device all."""
    found = defaultdict(list)
    peers = _has_peers(table)
    for seed in range(FEW_SEEDS):
        rng = np.random.default_rng(seed)
        for device in np.unique(table.devices[peers]):
            held_out = peers & (table.devices == device)
            ours = np.flatnonzero(held_out)
            held_out[rng.choice(ours, min(FEW_BLOCKS, len(ours) // 2), replace=False)] = False
            if (~held_out).sum() >= LEAST_BLOCKS:
                predictions = _predict(table[~held_out], table[held_out], **parts)
                found[str(device)].append(short(predictions.ms, table.latency_ms[held_out]))
    return {
        device: {key: float(np.mean([f[key] for f in several])) for key in ("mape", "within_10")}
        for device, several in found.items()
    }


def _baselines(table: MeasuredBlocks) -> Figures:
    """Figures on the same five folds of left-out blocks."""
    names, device = np.unique(table.devices, return_inverse=True)
    features = np.column_stack(
        (
            key_features(table.blocks),
            derived_features(table.blocks),
            np.eye(len(names))[device],
        )
    )
    rows = Rows(features, work(table.blocks), table.devices)
    fold, peers = _folds(table), _has_peers(table)
    figures: Figures = {}
    for name, baseline in BASELINES.items():
        say(f"baseline {name}")
        ms = np.empty(len(table))
        for number in range(FOLDS):
            train, test = rows[fold != number], rows[fold == number]
            ms[fold == number] = baseline(train, table.latency_ms[fold != number], test)
        figures[name] = short(ms[peers], table.latency_ms[peers])
    return figures


def _ablation(table: MeasuredBlocks) -> Figures:
    """MAPE of each case without one part each."""
    variants: dict[str, dict[str, Any]] = {
        "everything": {},
        **{f"without {part}": {part: False} for part in PARTS},
    }
    found: Figures = {}
    for name, parts in variants.items():
        say(f"ablation: {name}")
        blocks = _left_out_blocks(table, **parts)
        few = _few_blocks(table, **parts)
        resolution = _resolution_figures(table, **parts)
        found[name] = {
            "left_out_blocks": _left_out_figures(table, blocks)["mape_mean"],
            "left_out_resolution": resolution and resolution["mape_mean"],
            **{f"few_blocks_{d}": f["mape"] for d, f in few.items()},
        }
    return found


def _has_peers(table: MeasuredBlocks) -> Flags:
    """(n,) whether a device has other blocks of the operation; stems and heads have none."""
    same = defaultdict(set)
    for device, op, group in zip(table.devices, table.ops, _groups(table), strict=True):
        same[device, op].add(group)
    pairs = zip(table.devices, table.ops, strict=True)
    return np.array([len(same[pair]) > 1 for pair in pairs])


def _left_out_figures(table: MeasuredBlocks, predictions: BlockPredictions) -> Figures:
    """Figures of blocks that have peers; of those that are one of a kind, beside."""
    peers = _has_peers(table)
    figures = _figures(table[peers], BlockPredictions(*(c[peers] for c in predictions)))
    if not peers.all():
        alone = short(predictions.ms[~peers], table.latency_ms[~peers])
        figures["one_of_a_kind"] = alone | {
            "covered_share": float(predictions.covered[~peers].mean())
        }
    return figures


def _figures(table: MeasuredBlocks, predictions: BlockPredictions) -> Figures:
    figures = summary(predictions.ms, table.latency_ms, table.devices)
    inside = predictions.covered
    figures["covered_share"] = float(inside.mean())
    if inside.sum() > 1:
        figures["covered"] = short(predictions.ms[inside], table.latency_ms[inside])
    promised, realised = _coverage(predictions, table.latency_ms)
    figures["coverage_of_90"] = float(realised[np.argmin(np.abs(promised - 0.9))])
    return figures


def _contradictions(table: MeasuredBlocks, predictions: BlockPredictions) -> Figures:
    """How often a left-out block is predicted to be faster than a measured one inside it.

    Only decreases of more than two standard deviations count: latencies have plateaus.
    """
    sorts, sizes = comparable(table.blocks)
    pairs = decreases = 0
    for row, sort in enumerate(sorts):
        alike = np.array([other == sort for other in sorts]) & (table.devices == table.devices[row])
        inside = alike & (sizes <= sizes[row]).all(axis=1)
        inside[row] = False
        slack_ms = 2.0 * np.hypot(predictions.sigma_ms[row], table.sigma_ms)
        pairs += int(inside.sum())
        decreases += int((inside & (predictions.ms[row] < table.latency_ms - slack_ms)).sum())
    return {"pairs": pairs, "decreases": decreases}


def _coverage(predictions: BlockPredictions, measured_ms: Floats) -> tuple[Floats, Floats]:
    """Shares promised by Gaussian intervals, and those found."""
    promised = np.linspace(0.05, 0.95, 19)
    deviations = np.abs(measured_ms - predictions.ms) / predictions.sigma_ms
    realised = [(deviations <= norm.ppf(0.5 + share / 2.0)).mean() for share in promised]
    return promised, np.array(realised)
