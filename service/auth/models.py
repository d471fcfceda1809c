"""API keys as rows; only their hashes are kept."""

from datetime import datetime

from sqlalchemy import ColumnElement, ForeignKey, Text, and_, or_
from sqlalchemy.orm import Mapped, mapped_column

from service.auth.principal import Principal, Scope
from service.db.base import Base, Id


class ApiKey(Base):
    """A person's or a program's key; what it makes belongs to its account.

    Attributes:
        created_by: the key it was made with; None for the first and those of before 0.2.
        last_used_at: to the minute, see `service.auth.verification`.
        previous_hash: of the secret before the last rotation, good until `previous_expires_at`.
    """

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    account: Mapped[str] = mapped_column(Text)
    scope: Mapped[Scope] = mapped_column(Text)
    token_hash: Mapped[str] = mapped_column(Text, unique=True)
    previous_hash: Mapped[str | None] = mapped_column(Text, unique=True)
    previous_expires_at: Mapped[datetime | None]
    created_by: Mapped[str | None] = mapped_column(ForeignKey("api_keys.id"))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]

    @classmethod
    def is_good(cls, now: datetime) -> ColumnElement[bool]:
        """The condition under which a key opens anything."""
        return and_(cls.revoked_at.is_(None), or_(cls.expires_at.is_(None), cls.expires_at > now))

    def principal(self) -> Principal:
        """Who asks with this key."""
        return Principal(self.id, self.name, self.account, self.scope, self.expires_at)
