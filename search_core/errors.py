"""Errors of the search core.

SearchCoreError
├── UnknownSpaceError        no search space of that name
├── UnknownDatasetError      no data set of that name
├── BlockSyntaxError         a block string does not follow the grammar
├── ArchitectureSyntaxError  an architecture string does not belong to its space
├── BudgetUnreachableError   no architecture of the space costs that little
├── CheckpointError          a checkpoint is damaged or belongs to another run
├── NonFiniteLossError       the loss became NaN or infinite
└── SearchInterrupted        should_stop() said so; the last checkpoint event can resume the run
"""


class SearchCoreError(Exception):
    """Base of every error the search core raises on purpose."""


class UnknownSpaceError(SearchCoreError):
    """No search space has the name given."""


class UnknownDatasetError(SearchCoreError):
    """No data set has the name given."""


class BlockSyntaxError(SearchCoreError):
    """A block string does not follow the grammar of `search_core.space.blocks`."""


class ArchitectureSyntaxError(SearchCoreError):
    """An architecture string does not name one candidate for each slot of its space."""


class BudgetUnreachableError(SearchCoreError):
    """No architecture of the space costs as little as the budget.

    Attributes:
        budget: what was asked for, in the cost's unit.
        minimum: the least cost any architecture of the space has.
    """

    def __init__(self, budget: float, minimum: float) -> None:
        super().__init__(
            f"budget {budget:g} is below the cheapest architecture, {minimum:g}; "
            f"ask for at least {minimum:g}"
        )
        self.budget = budget
        self.minimum = minimum


class CheckpointError(SearchCoreError):
    """A checkpoint cannot be read, or was written by a run with other settings."""


class NonFiniteLossError(SearchCoreError):
    """The training loss became NaN or infinite."""


class SearchInterrupted(SearchCoreError):  # noqa: N818 - an interruption is not a failure
    """`should_stop()` returned true; the checkpoint reported last resumes the run."""
