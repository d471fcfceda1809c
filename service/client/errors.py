"""What the client raises.

TailorClientError
├── ApiError            the API answered with a problem; code, field and text are in it
├── ApiUnreachableError nobody answers at the URL
├── SearchTimeoutError  a search had not ended in the time given
├── SearchEndedError    a search ended, but not well; `search` is what it was at its end
│   ├── SearchInfeasibleError
│   ├── SearchFailedError
│   └── SearchCancelledError
└── DatasetTimeoutError a data set had not been checked in the time given
"""

from typing import Any

from service.searches.schemas import SearchRead


class TailorClientError(Exception):
    """Base of what the client raises on purpose."""


class ApiError(TailorClientError):
    """A problem document from the API.

    Attributes:
        status: HTTP status.
        code: machine-readable, stable.
        problem: the whole document.
    """

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.code = str(problem.get("code", "http_error"))
        self.problem = problem
        super().__init__(str(problem.get("detail") or problem.get("title") or f"HTTP {status}"))


class ApiUnreachableError(TailorClientError):
    """Nobody answers at the URL."""


class SearchTimeoutError(TailorClientError):
    """A search had not ended in the time given."""


class SearchEndedError(TailorClientError):
    """A search ended, but not well.

    Attributes:
        search: as it was at its end.
    """

    def __init__(self, search: SearchRead) -> None:
        self.search = search
        reason = search.status_reason
        super().__init__(f"search {search.id} is {search.status}: {reason.text if reason else ''}")


class SearchInfeasibleError(SearchEndedError):
    """Nothing broke; no network of the space is that fast on the target."""


class SearchFailedError(SearchEndedError):
    """Something broke, or its time was over; the reason says what."""


class SearchCancelledError(SearchEndedError):
    """Somebody stopped it."""


class DatasetTimeoutError(TailorClientError):
    """A data set had not been checked in the time given."""
