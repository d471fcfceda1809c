"""Who asks, and what his scope lets him do."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, Self, get_args

Scope = Literal["viewer", "user", "operator", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""Each may do what the ones before it may."""


@dataclass(frozen=True)
class Principal:
    """An API key, or a session that was opened with it.

    Attributes:
        id: of the key.
        account: what it makes belongs to this account, and so does what it finds.
        expires_at: when what was sent is worth nothing any more; None: never.
        session_id: of the session, None when the key itself was sent.
    """

    id: str
    name: str
    account: str
    scope: Scope
    expires_at: datetime | None = None
    session_id: str | None = None

    def may(self, scope: Scope) -> bool:
        """Whether its scope is that one or a wider one."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)

    def sees(self, owner: str) -> bool:
        """Whether what belongs to that account exists for it."""
        return owner == self.account or self.may("operator")

    def until(self, at: datetime) -> Self:
        """The same, for no longer than that."""
        return replace(self, expires_at=min(at, self.expires_at or at))

    def within(self, session_id: str, expires_at: datetime) -> Self:
        """The same, by way of a session."""
        return replace(self.until(expires_at), session_id=session_id)
