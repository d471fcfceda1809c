"""The process that reads one ONNX file of a stranger: ``python -m service.predictions.child``.

Parsing and optimising run native code on bytes that anybody sent, so they happen here, under
limits, with an environment that holds no secrets. The path of the file and prices of kernels
arrive on standard input; on standard output leaves one JSON document: a prediction, or why there
is none.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from service.confined import answer, limit_resources, take_request

MEMORY_BYTES = 4 * 2**30  # of addresses: the libraries alone take one
CPU_SECONDS = 60
FILE_BYTES = 2**30  # the optimised graph is written to a temporary file


def main() -> None:
    """Answer and leave."""
    request = take_request()
    limit_resources(memory_bytes=MEMORY_BYTES, cpu_seconds=CPU_SECONDS, file_bytes=FILE_BYTES)
    answer(_priced(Path(request["path"]), request["prices"]))


def _priced(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    """The prediction for a file, or under `bad_file` or `bad_prices` what is wrong."""
    from predictor.errors import BadModelFileError, ModelDocumentError  # under limits already
    from predictor.models.kernel_prices import KernelPrices
    from predictor.onnx_kernels import read_kernels

    try:
        prices = KernelPrices.from_document(document)
        graph = read_kernels(path.read_bytes())
        found = prices.predict(graph)
    except BadModelFileError as error:
        return {"bad_file": str(error)}
    except ModelDocumentError as error:
        return {"bad_prices": str(error)}
    except MemoryError:
        return {"bad_file": f"reading the file takes more than {MEMORY_BYTES >> 30} GiB"}
    return {
        "prediction": asdict(found),
        "level": prices.intervals_.level,
        "runtime": graph.runtime,
    }


if __name__ == "__main__":
    main()
