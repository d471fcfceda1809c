"""Predict the latency of ONNX files from the kernels of their optimised graphs.

Prices are fitted to the measured blocks of a space and to some of its networks, and judged on the
other networks; with --elsewhere, on files that have nothing to do with the space as well.

    python -m benchmarks.onnx_file_prediction --measured measured.csv --space proxyless_cifar_mb \
        --elsewhere elsewhere.csv --json

Tables have the columns subject and latency_ms; rows of one subject are averaged, rows flagged as
noisy left out. Subjects are those of `predictor.kits`, and ``published:NAME``. Files are built
anew and optimised here: run it on the class of machine that was measured. --measure PATH measures
networks of other spaces and published ones on this machine into such a table, and does nothing
else.
"""

import argparse
import csv
import random
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure_space import COLUMNS, draw_networks, measure_item
from benchmarks.records import last_line, new_record, plot_bars, plot_parity, write_record
from benchmarks.tables import Table, read_table
from predictor.agent.runtimes.base import RuntimeSpec
from predictor.agent.sandbox import Sandbox
from predictor.errors import BadTableError
from predictor.evaluation import check_latencies, prediction_quality
from predictor.kits import CHAIN, KitItem, network_item
from predictor.measurements import Precision
from predictor.models.kernel_prices import LEAST_FILES, FilePrediction, KernelPrices, Part
from predictor.onnx_kernels import KernelGraph, read_kernels
from predictor.quantize import quantize
from search_core.errors import SearchCoreError
from search_core.space.blocks import BlockSpec
from search_core.space.graph import Graph
from search_core.space.presets import get_space
from search_core.space.published import published_network

Floats = NDArray[np.float64]

MODELS: dict[str, tuple[Part, ...]] = {
    "kernel_prices": ("kinds", "kernels", "files"),
    "without_kinds": ("kernels", "files"),
    "without_kernel_corrections": ("kinds", "files"),
    "without_file_corrections": ("kinds", "kernels"),
    "roofline": (),
}

ELSEWHERE = {"nasbench201": 25, "spos_cifar": 15, "micro": 12}
PUBLISHED = (
    *("mobilenet_v2", "proxyless_cpu", "proxyless_gpu", "proxyless_mobile", "proxyless_mobile_14"),
    *("dsnas", "spos"),
)


def main() -> int:
    """Fit, judge, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measured", type=Path)
    parser.add_argument("--space", default="proxyless_cifar_mb")
    parser.add_argument("--elsewhere", type=Path)
    parser.add_argument("--precision", choices=["float32", "int8"], default="float32")
    parser.add_argument("--calibration", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true", help="nothing but the last line")
    parser.add_argument("--measure", type=Path, help="measure files elsewhere into this table")
    arguments = parser.parse_args()
    if arguments.measure:
        measure_elsewhere(arguments.measure, arguments.precision)
        return 0
    if not arguments.measured:
        parser.error("--measured or --measure is needed")

    began = time.monotonic()
    precision = arguments.precision
    files = Files(read_table(arguments.measured), precision)
    there = Files(read_table(arguments.elsewhere), precision) if arguments.elsewhere else None
    record = new_record("onnx_file_prediction")
    record |= judge(files, there, arguments.space, arguments.calibration, arguments.seeds)
    record["seconds"] = round(time.monotonic() - began, 1)
    points = record.pop("points")
    write_record({**record, "points": points}, arguments.out)
    if arguments.out:
        panels = {name: (np.array(m), np.array(p)) for name, (m, p) in points.items()}
        stem = arguments.out.with_suffix("")
        plot_parity(panels, Path(f"{stem}_parity.svg"), "ONNX files, summed over kernels")
        errors = {f"held out/{name}": found for name, found in record["models"].items()}
        errors |= record.get("elsewhere", {})
        bars = {name: 100.0 * found["mape_mean"] for name, found in errors.items()}
        plot_bars(bars, Path(f"{stem}_ablation.svg"), "Errors, part by part", "MAPE, %")
    if not arguments.json:
        report(record)
    last_line(record)
    return 0


class Files:
    """Measured files of a table and their kernels.

    Attributes:
        subjects: distinct, in the order of the table.
        graphs, latency_ms: of each.
        repeats_ms: every row of each.
    """

    def __init__(self, table: Table, precision: str) -> None:
        latency_ms = table.latencies_ms("latency_ms")
        flagged = table.columns.get("flagged", ["0"] * len(table))
        repeats: dict[str, list[float]] = defaultdict(list)
        self.graphs: list[KernelGraph] = []
        for row, subject in enumerate(table.text("subject")):
            if flagged[row] not in ("", "0"):
                continue
            if subject not in repeats:
                self.graphs.append(_kernels(subject, row, precision))
                print(f"{len(self.graphs)} files read", end="\r", file=sys.stderr, flush=True)
            repeats[subject].append(float(latency_ms[row]))
        self.subjects = list(repeats)
        self.repeats_ms = list(repeats.values())
        self.latency_ms = np.array([np.mean(ms) for ms in self.repeats_ms])
        check_latencies(self.latency_ms, "latency_ms", at_least=1)

    def network_space(self, i: int) -> str:
        """The space whose network this is; empty if it is none."""
        kind, _, rest = self.subjects[i].partition(":")
        return rest.partition("@")[0] if kind == "network" else ""


def _kernels(subject: str, row: int, precision: str) -> KernelGraph:
    try:
        content = KitItem(subject, _graph(subject)).build()
    except (SearchCoreError, ValueError) as error:
        raise BadTableError(f"{subject!r}: {error}", row=row, column="subject") from error
    return read_kernels(quantize(content) if precision == "int8" else content)


def _graph(subject: str) -> Graph:
    """The network that a subject names.

    Raises:
        SearchCoreError, ValueError: it does not parse.
    """
    kind, _, rest = subject.partition(":")
    match kind:
        case "block":
            block, _, copies = rest.rpartition(":x")
            if copies not in ("1", str(CHAIN)):
                raise ValueError(f"a block is chained once or {CHAIN} times")
            return Graph.chain((BlockSpec.parse(block),) * int(copies))
        case "network":
            name, _, architecture = rest.partition(":")
            space = get_space(name.partition("@")[0])
            return space.graph(space.parse(architecture))
        case "published":
            return published_network(rest)
    raise ValueError("a subject begins with block:, network: or published:")


def judge(
    files: Files, there: Files | None, space: str, calibration: int, seeds: int
) -> dict[str, Any]:
    """Errors on held-out networks and elsewhere: means over `seeds` draws of the calibration.

    Raises:
        BadTableError: too few networks of `space` to fit to some and judge by others.
    """
    spaces = [files.network_space(i) for i in range(len(files.subjects))]
    networks = np.array([i for i, name in enumerate(spaces) if name == space], int)
    rest = np.array([i for i, name in enumerate(spaces) if not name], int)
    if len(networks) < calibration + 2:
        raise BadTableError(
            f"{len(networks)} networks of {space}: at least {calibration + 2} are needed to fit "
            f"to {calibration}",
            column="subject",
        )
    check_latencies(files.latency_ms[networks], "latency_ms", at_least=LEAST_FILES)
    runs: dict[str, list[dict[str, float]]] = defaultdict(list)
    groups: dict[str, list[dict[str, float]]] = defaultdict(list)
    record: dict[str, Any] = {
        "space": space,
        "runtime": files.graphs[0].runtime,
        "n_blocks": len(rest),
        "n_calibration": calibration,
        "n_held_out": len(networks) - calibration,
    }
    for seed in range(seeds):
        shuffled = np.random.default_rng(seed).permutation(networks)
        train = np.concatenate([rest, shuffled[:calibration]])
        test = shuffled[calibration:]
        for name, parts in MODELS.items():
            began = time.monotonic()
            prices = _fit(files, train, parts)
            fit_seconds = time.monotonic() - began
            predictions = [prices.predict(files.graphs[i]) for i in test]
            runs[name].append(
                {**_quality(predictions, files.latency_ms[test]), "fit_seconds": fit_seconds}
            )
            runs[name][-1] |= _left_out_blocks(files, train, parts, rest, seed)
            if there is not None:
                for group, quality in _elsewhere(prices, there).items():
                    groups[f"{group}/{name}"].append(quality)
            if seed == 0 and name == "kernel_prices":
                record["points"] = _points(predictions, files.latency_ms[test], prices, there)
                if there is not None:
                    record["elsewhere_files"] = _each(prices, there)
        runs["macs"].append(_macs_line(files, train, test))
        print(f"seed {seed} of {seeds}   ", end="\r", file=sys.stderr, flush=True)
    record["models"] = {name: _means(found) for name, found in runs.items()}
    record |= {k: v for k, v in record["models"]["kernel_prices"].items() if k.endswith("_mean")}
    record["noise_ceiling"] = _noise(files, networks)
    if there is not None:
        record["elsewhere"] = {group: _means(found) for group, found in groups.items()}
    return record


def _fit(files: Files, train: NDArray[np.int64], parts: Sequence[Part]) -> KernelPrices:
    return KernelPrices(parts).fit(
        [files.graphs[i] for i in train],
        files.latency_ms[train],
        [bool(files.network_space(i)) for i in train],
    )


def _quality(predictions: Sequence[FilePrediction], measured_ms: Floats) -> dict[str, float]:
    predicted = np.array([p.latency_ms for p in predictions])
    low, high = (
        np.array([getattr(p, f"{end}_ms") for p in predictions]) for end in ("low", "high")
    )
    return {
        **asdict(prediction_quality(predicted, measured_ms)),
        "interval_coverage": float(((low <= measured_ms) & (measured_ms <= high)).mean()),
        "half_width": float(((high - low) / (2.0 * predicted)).mean()),
        "kernel_coverage": float(np.mean([p.coverage for p in predictions])),
    }


def _left_out_blocks(
    files: Files,
    train: NDArray[np.int64],
    parts: Sequence[Part],
    blocks: NDArray[np.int64],
    seed: int,
) -> dict[str, float]:
    """Error on a fifth of the block files, when prices are fitted without them."""
    left_out = np.random.default_rng(seed).permutation(blocks)[: len(blocks) // 5]
    if len(left_out) < 2:
        return {}
    prices = _fit(files, np.setdiff1d(train, left_out), parts)
    predicted = np.array([prices.predict(files.graphs[i]).latency_ms for i in left_out])
    return {"left_out_blocks_mape": prediction_quality(predicted, files.latency_ms[left_out]).mape}


def _macs_line(files: Files, train: NDArray[np.int64], test: NDArray[np.int64]) -> dict[str, float]:
    """A line in the multiply-accumulates, the baseline."""
    networks = [i for i in train if files.network_space(i)]
    macs = np.array([graph.macs for graph in files.graphs], float)
    line = np.polynomial.Polynomial.fit(macs[networks], files.latency_ms[networks], 1)
    return asdict(prediction_quality(line(macs[test]), files.latency_ms[test]))


def _elsewhere(prices: KernelPrices, there: Files) -> dict[str, dict[str, float]]:
    """Errors by space of the files."""
    members: dict[str, list[int]] = defaultdict(list)
    for i in range(len(there.subjects)):
        members[there.network_space(i) or there.subjects[i].partition(":")[0]].append(i)
    return {
        group: _quality([prices.predict(there.graphs[i]) for i in found], there.latency_ms[found])
        for group, found in members.items()
        if len(found) > 1
    }


def _each(prices: KernelPrices, there: Files) -> list[dict[str, Any]]:
    rows = []
    for subject, graph, measured_ms in zip(
        there.subjects, there.graphs, there.latency_ms, strict=True
    ):
        found = prices.predict(graph)
        rows.append(
            {
                "subject": subject,
                "measured_ms": float(measured_ms),
                "predicted_ms": found.latency_ms,
                "interval_ms": [found.low_ms, found.high_ms],
                "kernels": len(graph.kernels),
                "reorders": graph.reorders,
                "coverage": found.coverage,
                "unknown": found.unknown,
            }
        )
    return rows


def _points(
    predictions: Sequence[FilePrediction],
    measured_ms: Floats,
    prices: KernelPrices,
    there: Files | None,
) -> dict[str, tuple[list[float], list[float]]]:
    """Measured and predicted, by panel of the plot."""
    points = {"held-out networks": (measured_ms.tolist(), [p.latency_ms for p in predictions])}
    if there is not None:
        elsewhere = [prices.predict(graph).latency_ms for graph in there.graphs]
        points["files outside the space"] = (there.latency_ms.tolist(), elsewhere)
    return points


def _noise(files: Files, networks: NDArray[np.int64]) -> dict[str, float] | None:
    """First against last measurement of the same networks: no prediction can be better."""
    repeats = [files.repeats_ms[i] for i in networks if len(files.repeats_ms[i]) > 1]
    pairs = np.array([(ms[0], ms[-1]) for ms in repeats])
    return asdict(prediction_quality(pairs[:, 0], pairs[:, 1])) if len(repeats) > 1 else None


def _means(runs: list[dict[str, float]]) -> dict[str, float]:
    return {f"{key}_mean": float(np.mean([run[key] for run in runs])) for key in runs[0]}


def report(record: dict[str, Any]) -> None:
    """The figures, for people."""
    columns = ("mape", "bias", "within_5", "within_10", "spearman", "left_out_blocks_mape")
    print(f"{'held-out networks':28s}", *(f"{c:>12.12s}" for c in columns))
    for name, found in record["models"].items():
        print(f"{name:28s}", *(f"{found.get(f'{c}_mean', np.nan):12.4f}" for c in columns))
    columns = ("mape", "bias", "spearman", "interval_coverage", "half_width", "kernel_coverage")
    print(f"{'elsewhere':40s}", *(f"{c:>12.12s}" for c in columns))
    for name, found in record.get("elsewhere", {}).items():
        print(f"{name:40s}", *(f"{found[f'{c}_mean']:12.4f}" for c in columns))


def measure_elsewhere(out: Path, precision: Precision) -> None:
    """Measure networks of other spaces and published ones, twice, in random order."""
    items = [
        network_item(space, architecture)
        for space, n in ((get_space(name), n) for name, n in ELSEWHERE.items())
        for architecture in draw_networks(space, n, 0)
    ]
    items += [KitItem(f"published:{name}", published_network(name)) for name in PUBLISHED]
    spec = RuntimeSpec(precision=precision)
    with out.open("w", newline="") as file, Sandbox(spec) as sandbox:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for number in range(2):
            random.Random(number).shuffle(items)
            for i, item in enumerate(items, 1):
                row = measure_item(sandbox, item, precision)
                if row is not None:
                    table.writerow({"round": number, "subject": item.subject, **row})
                    file.flush()
                print(f"round {number}: {i} of {len(items)}", end="\r", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
