"""What the client raises.

TailorClientError
├── ApiError            the API answered with a problem; code, field and text are in it
├── ApiUnreachableError nobody answers at the URL
└── SearchTimeoutError  a search had not ended in the time given
"""

from typing import Any


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
