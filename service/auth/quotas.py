"""How much an account may have at once; each limit is a setting, and 0 turns it off."""

from sqlalchemy.orm import Session

from service.auth.repository import n_unfinished_searches
from service.db.database import take_turns
from service.errors import QuotaExceededError
from service.settings import Settings


def check_searches(session: Session, settings: Settings, account: str) -> None:
    """Let an account have one more unfinished search.

    Raises:
        QuotaExceededError: it has as many as it may.
    """
    limit = settings.account_unfinished_searches
    if limit:
        take_turns(session, f"searches of {account}")  # two at once would each see room for one
        used = n_unfinished_searches(session, account)
        _check(used, 1, limit, "unfinished searches", "wait for some to end, or cancel some")


def check_dataset_bytes(settings: Settings, used: int, more: int) -> None:
    """Let an account that stores `used` bytes of data sets store `more` bytes.

    Raises:
        QuotaExceededError: together they are more than it may store.
    """
    _check(used, more, settings.account_dataset_bytes, "bytes of data sets", "delete some")


def check_webhooks(settings: Settings, used: int) -> None:
    """Let an account that has `used` webhooks have one more.

    Raises:
        QuotaExceededError: it has as many as it may.
    """
    _check(used, 1, settings.account_webhooks, "webhooks", "delete some")


def _check(used: int, more: int, limit: int, what: str, remedy: str) -> None:
    if limit and used + more > limit:
        raise QuotaExceededError(
            f"the account has {used} of at most {limit} {what}; {remedy}", used=used, limit=limit
        )
