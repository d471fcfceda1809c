"""The errors of the service and the one map from any layer's errors to HTTP.

TailorError                     status code, machine code, optional field
├── NotFoundError          404  nothing has that id
├── InvalidRequestError    422  well-formed but meaningless; names the field
├── IdempotencyKeyReusedError 422  another request had that key
├── BudgetUnreachableError 422  no network of the space is that fast on that target
├── ConflictError          409  the resource is not in a state that allows it
├── NoLatencyModelError    409  the target has to be measured first
├── StaleLeaseError        409  another lease has replaced this one
├── PreconditionFailedError 412  it has changed since it was read
├── PreconditionRequiredError 428  say with If-Match which version is to be changed
├── QuotaExceededError     429  the account has as much as it may; `used` and `limit`
├── RateLimitedError       429  too many requests; `retry_after_seconds`
├── UnauthenticatedError   401  no key, or none that is valid
├── AgentTooOldError       426  the agent must be updated before it may measure
├── ForbiddenError         403  a valid key that may not do this
├── BadRequestError        400  the body is not what its headers say
├── UnsupportedEncodingError 415  a Content-Encoding other than gzip
├── PayloadTooLargeError   413  the body is over the limit
├── StoreUnavailableError  503  the store restarts, is full or out of reach; try again
└── TooBusyError           503  as many as can be served at once; `retry_after_seconds`
LeaseLostError                  an attempt's own lease is gone; it must stop writing
StoreUnfitError                 a store that this version must not work on, or a backup of none
"""

from dataclasses import dataclass
from typing import Any

from search_core.errors import ArchitectureSyntaxError, UnknownDatasetError, UnknownSpaceError


@dataclass(frozen=True)
class FieldProblem:
    """One thing wrong with one field of a request."""

    field: str
    message: str


class TailorError(Exception):
    """Base of the errors a client sees; becomes a problem document (RFC 9457).

    Attributes:
        status: HTTP status.
        code: machine-readable, stable.
        title: the same for every error of the code.
        fields: which parts of the request are at fault.
        extra: further members of the problem document.
    """

    status = 500
    code = "internal_error"
    title = "Internal error"

    def __init__(self, detail: str, *, field: str | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = [FieldProblem(field, detail)] if field else []
        self.extra = extra


class NotFoundError(TailorError):
    """Nothing has that id."""

    status, code, title = 404, "not_found", "Not found"


class InvalidRequestError(TailorError):
    """Well-formed, but it names something that does not exist or cannot be."""

    status, code, title = 422, "invalid_request", "Invalid request"


class BudgetUnreachableError(TailorError):
    """No network of the space is that fast on that target."""

    status, code, title = 422, "budget_unreachable", "Budget unreachable"


class IdempotencyKeyReusedError(TailorError):
    """Another request of the account had that Idempotency-Key."""

    status, code, title = 422, "idempotency_key_reused", "Idempotency key reused"


class ConflictError(TailorError):
    """The resource is not in a state that allows it."""

    status, code, title = 409, "conflict", "Conflict"


class NoLatencyModelError(TailorError):
    """The target has to be measured before this can be answered; `detail` says how."""

    status, code, title = 409, "no_latency_model", "No latency model"


class StaleLeaseError(TailorError):
    """Another lease has replaced this one."""

    status, code, title = 409, "stale_lease", "Stale lease"


class UnauthenticatedError(TailorError):
    """No key was sent, or none that is valid."""

    status, code, title = 401, "unauthenticated", "Authentication required"


class AgentTooOldError(TailorError):
    """The agent must be updated before it may measure."""

    status, code, title = 426, "agent_too_old", "Agent too old"


class ForbiddenError(TailorError):
    """The key is valid but may not do this."""

    status, code, title = 403, "forbidden", "Forbidden"


class PreconditionFailedError(TailorError):
    """The resource has changed since it was read."""

    status, code, title = 412, "precondition_failed", "Precondition failed"


class PreconditionRequiredError(TailorError):
    """Which version is to be changed must be said with `If-Match`."""

    status, code, title = 428, "precondition_required", "Precondition required"


class QuotaExceededError(TailorError):
    """The account has as much of something as it may; `used` and `limit` say how much."""

    status, code, title = 429, "quota_exceeded", "Quota exceeded"


class RateLimitedError(TailorError):
    """Too many requests at once; `retry_after_seconds` says when to come again."""

    status, code, title = 429, "rate_limited", "Too many requests"


class BadRequestError(TailorError):
    """The body is not what its headers say."""

    status, code, title = 400, "bad_request", "Bad request"


class UnsupportedEncodingError(TailorError):
    """A Content-Encoding other than gzip."""

    status, code, title = 415, "unsupported_encoding", "Unsupported encoding"


class PayloadTooLargeError(TailorError):
    """The body is over the limit."""

    status, code, title = 413, "payload_too_large", "Payload too large"


class TooBusyError(TailorError):
    """As many as can be served at once; `retry_after_seconds` says when to come again."""

    status, code, title = 503, "too_busy", "Too busy"


class StoreUnavailableError(TailorError):
    """The store restarts, is full or out of reach; trying again helps."""

    status, code, title = 503, "store_unavailable", "Store unavailable"


class LeaseLostError(Exception):
    """An attempt's own lease is gone; another attempt may be running, so it must stop."""


class StoreUnfitError(Exception):
    """The store, or a backup, is not one to work on; the message says what to do."""


def from_layers_below(error: Exception) -> TailorError | None:
    """The service's form of an error of the search core or the predictor, if it has one."""
    match error:
        case UnknownSpaceError():
            return InvalidRequestError(str(error), field="search_space")
        case UnknownDatasetError():
            return InvalidRequestError(str(error), field="dataset")
        case ArchitectureSyntaxError():
            return InvalidRequestError(str(error), field="architecture")
    return None
