"""Records of benchmarks: one JSON file, pictures beside it, one last line."""

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def new_record(benchmark: str) -> dict[str, Any]:
    """What every record begins with: name, date, the command as it was given."""
    return {
        "benchmark": benchmark,
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python -m benchmarks.{benchmark} {' '.join(_without_folders(sys.argv[1:]))}",
        "cores": os.cpu_count(),
    }


def write_record(record: dict[str, Any], out: Path | None) -> None:
    """Write a record as indented JSON, when a path was given."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def last_line(record: dict[str, Any], leave_out: tuple[str, ...] = ()) -> None:
    """Print a record on one line, without its bulky parts."""
    print(json.dumps({k: v for k, v in record.items() if k not in leave_out}), flush=True)


def plot_parity(panels: dict[str, tuple[Floats, Floats]], path: Path, title: str) -> None:
    """Predicted over measured, a panel each, both axes logarithmic, with the band of 10 %.

    Args:
        panels: (measured_ms, predicted_ms) by name of the panel.
    """
    plt = _pyplot()
    figure, all_axes = plt.subplots(
        1, len(panels), figsize=(3.4 * len(panels), 3.6), squeeze=False, layout="constrained"
    )
    for axes, (name, (measured, predicted)) in zip(all_axes[0], panels.items(), strict=True):
        low, high = float(measured.min()), float(measured.max())
        line = np.array([low, high])
        axes.fill_between(line, 0.9 * line, 1.1 * line, color="0.9", label="within 10 %")
        axes.plot(line, line, color="0.5", lw=0.8)
        axes.plot(measured, predicted, ".", ms=3, alpha=0.5, rasterized=len(measured) > 2000)
        axes.set(title=name, xlabel="measured (ms)", xscale="log", yscale="log")
    all_axes[0][0].set_ylabel("predicted (ms)")
    figure.suptitle(title)
    _save(figure, path)


def plot_calibration(panels: dict[str, tuple[Floats, Floats]], path: Path, title: str) -> None:
    """Share of measurements inside intervals over the share that was promised.

    Args:
        panels: (promised, realised), each (n,) in 0..1, by name of the line.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(4.2, 3.8), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.5", lw=0.8)
    for name, (promised, realised) in panels.items():
        axes.plot(promised, realised, marker=".", label=name)
    axes.set(title=title, xlabel="promised coverage", ylabel="realised coverage")
    axes.legend(fontsize=8)
    _save(figure, path)


def plot_bars(values: dict[str, float], path: Path, title: str, unit: str) -> None:
    """Horizontal bars, for errors by layer and for ablations."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6.0, 0.8 + 0.24 * len(values)), layout="constrained")
    axes.barh(list(values), list(values.values()))
    axes.invert_yaxis()
    axes.set(title=title, xlabel=unit)
    axes.tick_params(labelsize=8)
    _save(figure, path)


def plot_intervals(
    panels: dict[str, list[tuple[float, float, float]]],
    path: Path,
    title: str,
    unit: str,
    *,
    at: float,
) -> None:
    """Points with their intervals, a panel each, and a line at `at` that they are held against.

    Args:
        panels: (low, middle, high) of each point, by name of the panel.
    """
    plt = _pyplot()
    figure, all_axes = plt.subplots(
        1,
        len(panels),
        figsize=(1.2 + 2.2 * len(panels), 3.4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, (name, points) in zip(all_axes[0], panels.items(), strict=True):
        low, middle, high = np.array(points).T  # (n,) each
        errors = np.stack([middle - low, high - middle])
        axes.axhline(at, color="0.4", lw=0.8)
        axes.errorbar(range(len(middle)), middle, errors, fmt="o", ms=3, lw=1, capsize=2)
        axes.set(title=name, xticks=[])
    all_axes[0][0].set_ylabel(unit)
    figure.suptitle(title)
    _save(figure, path)


def _without_folders(arguments: list[str]) -> list[str]:
    """Paths without the folders that only this machine has."""
    return [Path(a).name if a.startswith(("/", "../")) else a for a in arguments]


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
