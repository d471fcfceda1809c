"""A scatter plot in letters, for terminals."""

from collections.abc import Sequence
from typing import NamedTuple


class Dot(NamedTuple):
    """A point and the letter that stands for it; of several in one place, the last is seen."""

    x: float
    y: float
    letter: str


def scatter(
    dots: Sequence[Dot], x_name: str, y_name: str, *, width: int = 64, height: int = 16
) -> str:
    """Lines of text with the dots between two labelled axes; a single one is in the middle."""
    (left, right), (low, high) = (_range([getattr(dot, axis) for dot in dots]) for axis in "xy")
    rows = [[" "] * width for _ in range(height)]
    for dot in dots:
        column = round((dot.x - left) / (right - left) * (width - 1))
        row = round((high - dot.y) / (high - low) * (height - 1))
        rows[row][column] = dot.letter
    margin = max(len(f"{low:.4g}"), len(f"{high:.4g}"))
    labels = {0: f"{high:.4g}", height - 1: f"{low:.4g}"}
    lines = [f"{labels.get(i, ''):>{margin}} |{''.join(row)}" for i, row in enumerate(rows)]
    ends = f"{left:.4g}", f"{right:.4g}"
    gap = max(0, width - len(ends[0]) - len(ends[1]))
    return "\n".join(
        [
            f"{y_name}",
            *lines,
            f"{'':>{margin}} +{'-' * width}",
            f"{'':>{margin}}  {ends[0]}{x_name:^{gap}}{ends[1]}",
        ]
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest, never the same."""
    low, high = min(values), max(values)
    if low < high:
        return low, high
    half = abs(low) / 2 or 0.5
    return low - half, high + half
