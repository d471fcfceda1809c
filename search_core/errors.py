"""Errors of the search core.

SearchCoreError
├── UnknownSpaceError        no search space of that name
├── SpaceFileError           a file that should describe a search space does not
├── UnknownDatasetError      no data set of that name
├── DatasetError             images that are missing, damaged or no classification set
│   └── DatasetChecksumError a known data set's files hold something else
├── BlockSyntaxError         a block string does not follow the grammar
├── ArchitectureSyntaxError  an architecture string does not belong to its space
├── UnpricedBlockError       a cost table does not hold a block
├── BudgetUnreachableError   no architecture of the space costs that little
├── CheckpointError          a checkpoint is damaged or belongs to another run
├── ProfileDocumentError     a machine profile is damaged or of another version
├── UnknownEstimatorError    no estimator of that name
├── NonFiniteLossError       the loss became NaN or infinite
├── OutOfMemoryError         a training step does not fit into memory
├── ExportError              a file written for a network does not compute what it computes
└── SearchInterrupted        should_stop() said so; the last checkpoint event can resume the run
"""


class SearchCoreError(Exception):
    """Base of every error the search core raises on purpose."""


class UnknownSpaceError(SearchCoreError):
    """No search space has the name given."""


class SpaceFileError(SearchCoreError):
    """A file does not describe a search space.

    Attributes:
        path, line, column: where; line and column count from 1.
    """

    def __init__(self, path: str, line: int, column: int, message: str) -> None:
        super().__init__(f"{path}:{line}:{column}: {message}")
        self.path, self.line, self.column = path, line, column


class UnknownDatasetError(SearchCoreError):
    """No data set has the name given."""


class DatasetError(SearchCoreError):
    """A data set cannot be used: its files are missing or damaged, or nothing can be learnt."""


class DatasetChecksumError(DatasetError):
    """Files said to be a known data set hold other images or labels than the published ones.

    Attributes:
        expected: the published checksum.
        found: that of the files.
    """

    def __init__(self, message: str, expected: str, found: str) -> None:
        super().__init__(message)
        self.expected = expected
        self.found = found


class BlockSyntaxError(SearchCoreError):
    """A block string does not follow the grammar of `search_core.space.blocks`."""


class ArchitectureSyntaxError(SearchCoreError):
    """An architecture string does not name one candidate for each slot of its space."""


class UnpricedBlockError(SearchCoreError):
    """A cost table does not hold a block of the network.

    Attributes:
        block: its string.
    """

    def __init__(self, block: str) -> None:
        super().__init__(
            f"the cost table has no entry for {block}; measure it, or take a space whose blocks "
            "it holds"
        )
        self.block = block


class BudgetUnreachableError(SearchCoreError):
    """No architecture of the space costs as little as the budget.

    Attributes:
        budget: what was asked for, in the cost's unit.
        minimum: the least cost any architecture of the space has.
        name: of the constraint, where there are several.
    """

    def __init__(self, budget: float, minimum: float, name: str = "") -> None:
        super().__init__(
            f"{name}{' ' if name else ''}budget {budget:g} is below the cheapest architecture, "
            f"{minimum:g}; ask for at least {minimum:g}"
        )
        self.budget = budget
        self.minimum = minimum
        self.name = name


class SeveredError(SearchCoreError):
    """Every architecture within the budgets pays for operations that change nothing."""

    def __init__(self) -> None:
        super().__init__(
            "every architecture within the budgets has operations that no path from its input "
            "to its output runs through; allow more than zeros where they cut it"
        )


class CheckpointError(SearchCoreError):
    """A checkpoint cannot be read, or was written by a run with other settings."""


class NonFiniteLossError(SearchCoreError):
    """The training loss became NaN or infinite."""


class ProfileDocumentError(SearchCoreError):
    """A stored machine profile is damaged or of a version this one does not read."""


class UnknownEstimatorError(SearchCoreError):
    """No estimator of the architecture gradient has the name given."""


class OutOfMemoryError(SearchCoreError):
    """A training step does not fit into the memory of its device.

    Attributes:
        batch_size: that did not fit.
        fitting: a smaller one that did, when tried; None when not even one image fits.
    """

    def __init__(self, batch_size: int, fitting: int | None, reason: str) -> None:
        advice = (
            f"a batch of {fitting} fits; use that"
            if fitting
            else "not even one image fits; choose a smaller space or resolution"
        )
        super().__init__(
            f"a batch of {batch_size} images does not fit in memory: {advice} ({reason})"
        )
        self.batch_size = batch_size
        self.fitting = fitting


class ExportError(SearchCoreError):
    """A network cannot be written in some format, or a file of it gives other scores."""


class SearchInterrupted(SearchCoreError):  # noqa: N818 - an interruption is not a failure
    """`should_stop()` returned true; the checkpoint reported last resumes the run."""
