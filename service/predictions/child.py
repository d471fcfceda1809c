"""The process that reads one ONNX file of a stranger: ``python -m service.predictions.child FILE``.

Parsing and optimising run native code on bytes that anybody sent, so they happen here, under
limits, with an environment that holds no secrets. Prices of kernels arrive on standard input; on
standard output leaves one JSON document: a prediction, or why there is none.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

MEMORY_BYTES = 4 * 2**30  # of addresses: the libraries alone take one
CPU_SECONDS = 60
FILE_BYTES = 2**30  # the optimised graph is written to a temporary file


def main() -> None:
    """Answer and leave."""
    _limit()
    from predictor.errors import BadModelFileError, ModelDocumentError
    from predictor.models.kernel_prices import KernelPrices
    from predictor.onnx_kernels import read_kernels

    try:
        prices = KernelPrices.from_document(json.load(sys.stdin))
        graph = read_kernels(Path(sys.argv[1]).read_bytes())
        found = prices.predict(graph)
    except BadModelFileError as error:
        answer: dict[str, object] = {"bad_file": str(error)}
    except ModelDocumentError as error:
        answer = {"bad_prices": str(error)}
    except MemoryError:
        answer = {"bad_file": f"reading the file takes more than {MEMORY_BYTES >> 30} GiB"}
    else:
        answer = {
            "prediction": asdict(found),
            "level": prices.intervals_.level,
            "runtime": graph.runtime,
        }
    json.dump(answer, sys.stdout, allow_nan=False)


def _limit() -> None:
    try:
        import resource
    except ImportError:  # Windows has none of these; the time limit of the parent remains
        return
    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        _, hard = resource.getrlimit(kind)
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (limit, limit))


if __name__ == "__main__":
    main()
