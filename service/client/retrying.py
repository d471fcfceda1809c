"""Which requests a client sends again, and when."""

from typing import Any

import httpx
from tenacity import (
    RetryCallState,
    retry_if_exception_type,
    retry_if_result,
    stop_before_delay,
    wait_random_exponential,
)

PATIENCE_SECONDS = 20.0
_BACK_OFF = wait_random_exponential(0.1, 2.0)


def rules() -> dict[str, Any]:
    """Those of `tenacity`, for a client of either kind.

    Requests are sent again while nobody answers, and when they came too early.
    """
    return {
        "retry": retry_if_exception_type(httpx.ConnectError) | retry_if_result(_comes_too_early),
        "stop": stop_before_delay(PATIENCE_SECONDS),
        "wait": _pause_seconds,
        "retry_error_callback": _last_answer,
    }


def _comes_too_early(response: httpx.Response) -> bool:
    """Whether the request was refused unread for coming too early, and can be sent again."""
    return (
        response.status_code == httpx.codes.TOO_MANY_REQUESTS
        and response.headers.get("Retry-After", "").isdecimal()
        and isinstance(response.request.stream, httpx.ByteStream)
    )


def _pause_seconds(state: RetryCallState) -> float:
    """What the API asked for, else a little more each time."""
    assert state.outcome is not None
    if state.outcome.failed:
        return _BACK_OFF(state)
    return float(state.outcome.result().headers["Retry-After"])


def _last_answer(state: RetryCallState) -> httpx.Response:
    assert state.outcome is not None
    answer: httpx.Response = state.outcome.result()  # raises what the request raised
    return answer
