"""Tables of latencies, by path: CSV or gzipped CSV, checked as they are read."""

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from predictor.errors import BadTableError

Floats = NDArray[np.float64]

ARCHITECTURE_COLUMNS = ("arch_str", "op_idx", "architecture", "choices")
"""Columns that say which network a row is about; the first one present counts."""

_MS_PER_UNIT = {"_us": 1e-3, "_ns": 1e-6, "_s": 1e3}
_ENERGIES = ("_mj", "_j", "_uj")


@dataclass(frozen=True)
class Table:
    """Rows of a file as columns of text.

    Attributes:
        path: where it was read, for messages.
        columns: text of every cell, by heading.
    """

    path: Path
    columns: dict[str, list[str]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def text(self, name: str) -> list[str]:
        """A column as it stands.

        Raises:
            BadTableError: there is no such column.
        """
        if name not in self.columns:
            there = ", ".join(self.columns)
            raise BadTableError(f"{self.path} has no column {name}; it has {there}", column=name)
        return self.columns[name]

    def numbers(self, name: str) -> Floats:
        """A column of numbers, (n,).

        Raises:
            BadTableError: a cell is no finite number, or there is no such column.
        """
        values = np.empty(len(self))
        for row, cell in enumerate(self.text(name)):
            try:
                values[row] = float(cell)
            except ValueError:
                raise BadTableError(f"{cell!r} is not a number", row=row, column=name) from None
            if not np.isfinite(values[row]):
                raise BadTableError(f"{cell!r} is not finite", row=row, column=name)
        return values

    def latencies_ms(self, name: str) -> Floats:
        """A column of latencies, (n,), in ms.

        Raises:
            BadTableError: a value is not a positive number, the heading names another unit
                than ms, or there is no such column.
        """
        if name.endswith(_ENERGIES):
            raise BadTableError("this heading says energy, not latency", column=name)
        for suffix, factor in _MS_PER_UNIT.items():
            if name.endswith(suffix):
                raise BadTableError(
                    f"latencies are read in ms and this heading says {suffix[1:]}; "
                    f"multiply by {factor:g} and call it _ms",
                    column=name,
                )
        values = self.numbers(name)
        wrong = np.flatnonzero(values <= 0.0)
        if len(wrong):
            row = int(wrong[0])
            raise BadTableError(
                f"a latency is more than 0 ms, got {values[row]:g}", row=row, column=name
            )
        return values

    def architectures(self) -> list[str]:
        """What each row is about, as text.

        Raises:
            BadTableError: no column says so.
        """
        for name in ARCHITECTURE_COLUMNS:
            if name in self.columns:
                return self.columns[name]
        raise BadTableError(
            f"{self.path} has none of the columns {', '.join(ARCHITECTURE_COLUMNS)}"
        )


def read_table(path: Path) -> Table:
    """Read a CSV file, gzipped or not.

    Raises:
        BadTableError: it is empty, or a row has another number of cells than the heading.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        heading = next(rows, [])
        if len(set(heading)) != len(heading) or not heading:
            raise BadTableError(f"{path} needs a heading of distinct names, got {heading}")
        cells: list[list[str]] = [[] for _ in heading]
        for number, row in enumerate(rows):
            if len(row) != len(heading):
                raise BadTableError(
                    f"{path} has {len(heading)} columns, this row {len(row)}", row=number
                )
            for column, cell in zip(cells, row, strict=True):
                column.append(cell)
    if not cells[0]:
        raise BadTableError(f"{path} has a heading and no rows")
    return Table(path, dict(zip(heading, cells, strict=True)))
