"""How well can the latency of a convolution or block that nobody measured be predicted?

    python -m benchmarks.kernel_regression --table v100_trt_conv_latency.csv.gz --json
    python -m benchmarks.kernel_regression --table mbconv_block_lut.csv --json
    python -m benchmarks.kernel_regression --table T.csv --test-table UNSEEN.csv \
        --baselines --ablation --out benchmarks/results/RECORD.json

The columns say which of two sorts a table is.

Single convolutions (`KernelRegressor`), grouped by precision: a random fifth is held out, or
``--test-table`` is the test. Beside that, in smaller runs, channel counts that were never seen,
in or out, and the largest kernel.

Blocks of networks (`BlockRegressor`), grouped by device: a block is left out at every resolution
that its device was measured at, in five folds (stems and heads, of which a device has one each,
are reported apart: nothing of their kind is known then); each resolution of a device is left
out; and all but a few blocks of a device are left out, the other devices being known in full. A
``--test-table`` is predicted from the whole table.

Errors are relative, 0.05 for 5 %; figures ending in ``_mean`` are means over everything that was
predicted. The last line of the output is JSON.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from benchmarks.kernel_blocks import block_figures
from benchmarks.kernel_convolutions import SPLITS, convolution_figures
from benchmarks.kernel_tables import is_convolutions, read_blocks, read_convolutions
from benchmarks.records import last_line, new_record, write_record
from benchmarks.tables import read_table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    arguments = _arguments(argv)
    start = time.perf_counter()
    table = read_table(arguments.table)
    test_table = read_table(arguments.test_table) if arguments.test_table else None
    record = new_record("kernel_regression")
    record["table"] = arguments.table.name
    record["test_table"] = arguments.test_table.name if test_table else None
    # threads wait for each other spinning: with one core busy elsewhere, two are slower than one
    with threadpool_limits(1):
        if is_convolutions(table):
            convolutions = read_convolutions(table)
            test = read_convolutions(test_table) if test_table else None
            record |= convolution_figures(convolutions, test, arguments)
        else:
            blocks = read_blocks(table)
            asked = read_blocks(test_table) if test_table else None
            record |= block_figures(blocks, asked, arguments)
    record["seconds"] = round(time.perf_counter() - start, 1)
    write_record(record, arguments.out)
    if not arguments.json:
        _show(record)
    last_line(record)


def _show(record: Mapping[str, Any]) -> None:
    print(
        f"{record['split']}: MAPE {100 * record['mape_mean']:.2f} %, within 10 % "
        f"{100 * record['within_10_mean']:.1f} %, Spearman {record['spearman_mean']:.4f}"
    )
    for name, figures in record["targets"].items():
        print(f"  {name:24s} {100 * figures['mape']:6.2f} % {100 * figures['within_10']:6.1f} %")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--test-table", type=Path, help="what to predict from the whole table")
    parser.add_argument(
        "--split", choices=sorted(SPLITS), default="random", help="what is held out"
    )
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--out", type=Path, help="the record; plots go beside it")
    parser.add_argument("--json", action="store_true", help="print the last line only")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
