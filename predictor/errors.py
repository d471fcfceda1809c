"""Errors of the predictor.

PredictorError
├── MissingMeasurementsError   a model was asked of blocks that nobody measured
├── UnusableMeasurementsError  measurements that no latency model can be fitted to
├── BadTableError              a table of latencies with something wrong in it; names the row
├── BadModelFileError          an ONNX file whose kernels cannot be read
├── ModelDocumentError         a stored model cannot be read
├── TooNoisyError              the device never became quiet enough to measure
├── RuntimeFailedError         the runtime could not load or run a model
│   └── DeviceLostError        the device is not there; the model is not to blame
├── NotAuthenticError          a file or a task that is not what the service signed
└── TaskFailedError            a measuring task ended without a measurement
"""

from predictor.measurements import Reason


class PredictorError(Exception):
    """Base of every error the predictor raises on purpose."""


class MissingMeasurementsError(PredictorError):
    """Blocks without a measurement; `subjects` lists what has to be measured."""

    def __init__(self, subjects: list[str]) -> None:
        shown = ", ".join(subjects[:5]) + (", ..." if len(subjects) > 5 else "")
        super().__init__(f"{len(subjects)} subjects have no measurement: {shown}")
        self.subjects = subjects


class UnusableMeasurementsError(PredictorError):
    """The measurements contradict every latency model that could be fitted."""


class BadTableError(PredictorError):
    """A table of latencies cannot be used.

    Attributes:
        row: of the values, counted from 0 below the heading; None where no single row is wrong.
        column: name of the column at fault; empty where none is.
    """

    def __init__(self, text: str, *, row: int | None = None, column: str = "") -> None:
        where = [f"row {row}"] if row is not None else []
        where += [f"column {column}"] if column else []
        super().__init__(f"{', '.join(where)}: {text}" if where else text)
        self.row = row
        self.column = column


class BadModelFileError(PredictorError):
    """An ONNX file is damaged, too large or not whole, or the runtime refuses it."""


class ModelDocumentError(PredictorError):
    """A stored latency model is damaged or of an unknown format."""


class TooNoisyError(PredictorError):
    """The device never became quiet enough for the protocol."""


class RuntimeFailedError(PredictorError):
    """The runtime could not load or run a model file; `reason` is for machines."""

    def __init__(self, detail: str, reason: Reason = "refused") -> None:
        super().__init__(detail)
        self.reason: Reason = reason


class DeviceLostError(RuntimeFailedError):
    """The device that runs the model is not there, for now or for good."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, "device_lost")


class NotAuthenticError(PredictorError):
    """A file has another hash than announced, or a signature is not the service's."""


class TaskFailedError(PredictorError):
    """A measuring task ended without a measurement.

    Attributes:
        code: ``unsupported``: the target cannot run it; ``too_noisy``: not now.
        reason, detail: why, for machines and for people.
    """

    def __init__(self, code: str, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.reason: Reason = reason
        self.detail = detail
