"""Public tables of measured convolutions and blocks, as what the regressors are fitted to."""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.tables import Table
from predictor.errors import BadTableError
from predictor.features import Convolutions, Workload, element_bytes
from search_core.space.blocks import BlockKind, BlockSpec

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CONVOLUTION_COLUMNS = (
    "precision",
    "conv_type",
    "batch",
    "in_c",
    "in_h",
    "in_w",
    "out_c",
    "kernel",
    "stride",
    "elmt_fused",
    "latency_ms",
)
BLOCK_COLUMNS = ("device", "op", "input", "output", "mean_ms", "std_ms", "count")

_AT_RESOLUTION = re.compile(r"(?P<device>.+)_r(?P<resolution_px>\d+)")
_SHAPE = re.compile(r"(?:(?P<height>\d+)x(?P<width>\d+)x)?(?P<channels>\d+)")
_MOST_EXPANSION = 7  # a larger `expand` counts hidden channels


@dataclass(frozen=True)
class MeasuredBlocks:
    """Rows of a block table, each (n,).

    Attributes:
        devices: names without the resolution of the network.
        network_px: resolution of the network that the block was measured for, 0 where untold.
        ops: as the table calls them.
        sigma_ms: standard error of the mean.
    """

    blocks: list[Workload]
    devices: NDArray[np.str_]
    network_px: Integers
    ops: NDArray[np.str_]
    latency_ms: Floats
    sigma_ms: Floats

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> "MeasuredBlocks":
        which = np.arange(len(self))[rows]
        return MeasuredBlocks(
            [self.blocks[row] for row in which],
            *(column[which] for column in (self.devices, self.network_px, self.ops)),
            self.latency_ms[which],
            self.sigma_ms[which],
        )

    @property
    def specs(self) -> list[BlockSpec]:
        """The blocks without how they are run."""
        return [workload.block for workload in self.blocks]


def is_convolutions(table: Table) -> bool:
    """Whether a table is one of single convolutions; else it is one of blocks.

    Raises:
        BadTableError: it is neither.
    """
    if all(name in table.columns for name in CONVOLUTION_COLUMNS):
        return True
    if all(name in table.columns for name in BLOCK_COLUMNS):
        return False
    raise BadTableError(
        f"{table.path} is neither a table of convolutions ({', '.join(CONVOLUTION_COLUMNS)}) "
        f"nor one of blocks ({', '.join(BLOCK_COLUMNS)})"
    )


def read_convolutions(table: Table) -> tuple[Convolutions, Floats]:
    """Convolutions and their latencies (n,) in ms.

    Raises:
        BadTableError: naming the row and column at fault.
    """
    precision = np.array(table.text("precision"))
    for name in np.unique(precision):
        try:
            element_bytes(str(name))
        except BadTableError as error:
            row = int(np.argmax(precision == name))
            raise BadTableError(str(error), row=row, column="precision") from None
    kinds = np.array(table.text("conv_type"))
    _refuse(~np.isin(kinds, ("Regular", "Depthwise")), "neither Regular nor Depthwise", "conv_type")
    depthwise = kinds == "Depthwise"
    in_channels, out_channels = _counts(table, "in_c"), _counts(table, "out_c")
    _refuse(depthwise & (in_channels != out_channels), "depthwise with in_c not out_c", "out_c")
    height = _counts(table, "in_h")
    _refuse(height != _counts(table, "in_w"), "in_h and in_w differ", "in_w")
    convolutions = Convolutions(
        precision=precision,
        depthwise=depthwise,
        batch=_counts(table, "batch"),
        in_channels=in_channels,
        resolution_px=height,
        out_channels=out_channels,
        kernel=_counts(table, "kernel"),
        stride=_counts(table, "stride"),
        fused=_counts(table, "elmt_fused", least=0),
    )
    return convolutions, table.latencies_ms("latency_ms")


def read_blocks(table: Table) -> MeasuredBlocks:
    """Blocks, devices and latencies of a table of blocks.

    Raises:
        BadTableError: naming the row and column at fault.
    """
    named = [(_AT_RESOLUTION.fullmatch(name), name) for name in table.text("device")]
    rows = zip(*table.columns.values(), strict=True)
    cells = [dict(zip(table.columns, row, strict=True)) for row in rows]
    latency_ms = table.latencies_ms("mean_ms")
    sigma_ms = table.numbers("std_ms") / np.sqrt(_counts(table, "count"))
    return MeasuredBlocks(
        blocks=[_workload(row, cell) for row, cell in enumerate(cells)],
        devices=np.array([m["device"] if m else name for m, name in named]),
        network_px=np.array([int(m["resolution_px"]) if m else 0 for m, _ in named]),
        ops=np.array(table.text("op")),
        latency_ms=latency_ms,
        sigma_ms=sigma_ms,
    )


def _workload(row: int, cell: dict[str, str]) -> Workload:
    in_px, in_channels = _shape(row, "input", cell)
    out_px, out_channels = _shape(row, "output", cell)
    if in_px % out_px and -(-in_px // out_px) * out_px - in_px >= out_px:
        raise BadTableError(f"{cell['output']} is no output of {cell['input']}", row=row)
    stride = -(-in_px // out_px)

    def block(kind: BlockKind, kernel: int, expansion: int = 1) -> BlockSpec:
        return BlockSpec(kind, kernel, expansion, stride, in_channels, out_channels, in_px)

    op = cell["op"]
    if op == "expanded_conv":
        kernel, expand = (_whole(row, name, cell) for name in ("kernel", "expand"))
        expansion = expand if expand <= _MOST_EXPANSION else expand / in_channels
        if expansion != int(expansion):
            raise BadTableError(
                f"{expand} hidden channels are no multiple of {in_channels}",
                row=row,
                column="expand",
            )
        flags = (cell.get(name, "") not in ("", "0", "0.0") for name in ("se", "hs"))
        squeeze_excite, hard_swish = flags
        spec = block(BlockKind.MBCONV, kernel, int(expansion))
        return Workload(spec, squeeze_excite=squeeze_excite, hard_swish=hard_swish)
    if op == "Logits":
        spec = BlockSpec(BlockKind.CLASSIFIER, 1, 1, 1, in_channels, out_channels, in_px)
        return Workload(spec)
    if op.startswith("AvgPool"):
        return Workload(block(BlockKind.AVG_POOL, kernel=in_px))
    if op.startswith("Conv"):  # a stem shrinks the image, the others mix channels
        return Workload(block(BlockKind.CONV, kernel=3 if stride > 1 else 1))
    raise BadTableError(f"unknown operation {op!r}", row=row, column="op")


def _shape(row: int, column: str, cell: dict[str, str]) -> tuple[int, int]:
    """Side and channels of a cell that reads HxWxC, or C for a single pixel."""
    match = _SHAPE.fullmatch(cell[column])
    if match is None or match["height"] != match["width"]:
        raise BadTableError(f"{cell[column]!r} is no square HxWxC", row=row, column=column)
    side, channels = int(match["height"] or 1), int(match["channels"])
    if side < 1 or channels < 1:
        raise BadTableError(f"{cell[column]!r} is empty", row=row, column=column)
    return side, channels


def _whole(row: int, column: str, cell: dict[str, str]) -> int:
    try:
        value = float(cell[column])
    except (KeyError, ValueError):
        value = 0.0
    if value < 1.0 or value != int(value):
        raise BadTableError(
            f"{cell.get(column, '')!r} is no whole number above 0", row=row, column=column
        )
    return int(value)


def _counts(table: Table, name: str, least: int = 1) -> Integers:
    values = table.numbers(name)
    _refuse((values < least) | (values != np.floor(values)), f"no whole number >= {least}", name)
    return values.astype(np.int64)


def _refuse(wrong: NDArray[np.bool_], why: str, column: str) -> None:
    if wrong.any():
        raise BadTableError(why, row=int(np.argmax(wrong)), column=column)
