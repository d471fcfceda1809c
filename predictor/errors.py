"""Errors of the predictor.

PredictorError
├── MissingMeasurementsError   a model was asked of blocks that nobody measured
├── UnusableMeasurementsError  measurements that no latency model can be fitted to
├── ModelDocumentError         a stored model cannot be read
├── TooNoisyError              the device never became quiet enough to measure
└── RuntimeFailedError         the runtime could not load or run a model
"""


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


class ModelDocumentError(PredictorError):
    """A stored latency model is damaged or of an unknown format."""


class TooNoisyError(PredictorError):
    """The device never became quiet enough for the protocol."""


class RuntimeFailedError(PredictorError):
    """The runtime could not load or run a model file."""
