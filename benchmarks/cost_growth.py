"""How the cost of a step grows: with resolution, batch, layers, candidates and threads.

Each curve changes one of them and leaves the rest as they are. Plain training and the steps of a
search run interleaved on the same path; the curve of the candidates gives every slot more copies
of the same block, so that only what is beside the path can cost more.

    python -m benchmarks.cost_growth --out benchmarks/results/RECORD

writes RECORD.csv, a line for each point and step, and RECORD.svg. The last line of the output is
JSON: for each curve and step the exponent of its growth, 1 being in proportion.
"""

import argparse
import csv
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import matplotlib as mpl
import torch

from benchmarks.step_cases import (
    Bench,
    at_resolution,
    chain,
    interleaved,
    ratios,
    repeated,
    sampled,
    saved_bytes,
)
from search_core.memory import keep_freed_memory
from search_core.space.presets import get_space
from search_core.space.space import Architecture, SearchSpace

CURVES = ("resolution_px", "batch", "layers", "candidates", "threads")
STEPS = ("plain", "weight", "dsnas", "proxyless_two_path", "proxyless")


@dataclass(frozen=True)
class Point:
    """One step at one point of a curve.

    Attributes:
        x: the value of what the curve changes.
        to_plain: median quotient to plain training of the same path.
        saved_bytes: kept for backward.
    """

    curve: str
    x: int
    step: str
    milliseconds: float
    to_plain: float
    saved_bytes: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every curve, write the table and the picture."""
    options = _options(arguments)
    points: list[Point] = []
    for curve in options.curves:
        for point in _curve(curve, options):
            points.append(point)
            print(
                f"{point.curve:14} {point.x:5} {point.step:20} {point.milliseconds:9.2f} ms "
                f"{point.to_plain:6.3f} {point.saved_bytes / 2**20:8.2f} MiB",
                flush=True,
            )
        if options.out is not None:
            _write_table(points, options.out.with_suffix(".csv"))
    if options.out is not None:
        _write_plot(points, options.out.with_suffix(".svg"))
    print(json.dumps(exponents(points)))


def _curve(curve: str, options: argparse.Namespace) -> Iterator[Point]:
    small = options.quick
    base = at_resolution(get_space(options.space), options.resolution)
    path = sampled(base, 1)[0]
    batch = options.batch
    match curve:
        case "resolution_px":
            for side in (32, 64) if small else (32, 48, 64, 96, 128):
                space = at_resolution(base, side)
                yield from _points(curve, side, space, space.architecture(path.choices), batch)
        case "batch":
            for size in (4, 8) if small else (4, 8, 16, 32, 64, 128):
                yield from _points(curve, size, base, path, size)
        case "layers":
            for n in (2, 4) if small else (4, 8, 16, 24, 32):
                deep = chain(n)
                yield from _points(curve, n, deep, deep.architecture([1] * n), batch)
        case "candidates":
            for n in (3, 12) if small else (2, 3, 6, 12, 24):
                wide = repeated(base, path, n)
                yield from _points(curve, n, wide, sampled(wide, 1)[0], batch)
        case "threads":
            before = torch.get_num_threads()
            for n in range(1, (os.cpu_count() or 1) + 1):
                torch.set_num_threads(n)
                yield from _points(curve, n, base, path, batch)
            torch.set_num_threads(before)


def _points(
    curve: str, x: int, space: SearchSpace, architecture: Architecture, batch: int
) -> Iterator[Point]:
    bench = Bench(space, batch)
    cases = {
        "plain": bench.plain(architecture),
        "weight": bench.weight_step(architecture),
        **{name: bench.search_step(name, architecture) for name in STEPS[2:]},
    }
    repeats = max(5, min(25, int(_BUDGET_SECONDS / max(1e-3, _once(cases["plain"])))))
    seconds = interleaved(cases, repeats)
    for name, step in cases.items():
        yield Point(
            curve,
            x,
            name,
            round(1e3 * median(seconds[name]), 3),
            round(median(ratios(seconds, name, "plain")), 4),
            saved_bytes(step, bench.supernet),
        )


_BUDGET_SECONDS = 2.0  # for plain training at one point


def _once(step: object) -> float:
    assert callable(step)
    return min(interleaved({"once": step}, 2, warmup=1)["once"])


def exponents(points: Sequence[Point]) -> dict[str, dict[str, float]]:
    """By curve and step the slope of log time over log x, from the first to the last point."""
    found: dict[str, dict[str, float]] = {}
    for curve in dict.fromkeys(p.curve for p in points):
        for step in STEPS:
            line = [p for p in points if (p.curve, p.step) == (curve, step)]
            if len(line) > 1:
                rise = math.log(line[-1].milliseconds / line[0].milliseconds)
                found.setdefault(curve, {})[step] = round(
                    rise / math.log(line[-1].x / line[0].x), 3
                )
    return found


def _write_table(points: Sequence[Point], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.DictWriter(file, list(asdict(points[0])), lineterminator="\n")
        rows.writeheader()
        rows.writerows(map(asdict, points))


def _write_plot(points: Sequence[Point], path: Path) -> None:
    """A column a curve: time above, quotient to plain training below."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "tailor"
    from matplotlib import pyplot as plt

    curves = list(dict.fromkeys(p.curve for p in points))
    figure, axes = plt.subplots(2, len(curves), figsize=(3.6 * len(curves), 6.4), squeeze=False)
    for column, curve in enumerate(curves):
        for step in STEPS:
            line = [p for p in points if (p.curve, p.step) == (curve, step)]
            xs = [p.x for p in line]
            axes[0][column].plot(xs, [p.milliseconds for p in line], marker="o", label=step)
            axes[1][column].plot(xs, [p.to_plain for p in line], marker="o", label=step)
        axes[0][column].set(title=curve, yscale="log", ylabel="ms a step" if column == 0 else "")
        axes[1][column].set(
            xlabel=curve, ylim=(0.0, None), ylabel="/ plain training" if column == 0 else ""
        )
        for row in axes:
            row[column].grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--space", default="proxyless_imagenet", help="a preset, by name")
    parser.add_argument("--resolution", type=int, default=64, help="where it is not the curve")
    parser.add_argument("--batch", type=int, default=32, help="where it is not the curve")
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=list(CURVES))
    parser.add_argument("--quick", action="store_true", help="two points a curve")
    parser.add_argument("--out", type=Path, help="without an ending")
    return parser.parse_args(sys.argv[1:] if arguments is None else list(arguments))


if __name__ == "__main__":
    keep_freed_memory()
    main()
