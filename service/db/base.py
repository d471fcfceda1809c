"""The declarative base and the column types both stores share."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, MetaData, String
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator
from ulid import ULID

JsonValue = JSON().with_variant(JSONB(), "postgresql")
Id = String(40)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime on both sides; SQLite keeps none of its own."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Refuse naive datetimes instead of guessing their zone."""
        if value is not None and value.tzinfo is None:
            raise ValueError(f"naive datetime {value}; use service.db.base.utc_now()")
        return value.astimezone(UTC) if value is not None else None  # SQLite drops the zone

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Give back what SQLite returns without a zone its zone; PostgreSQL may speak another."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Every table; constraint names are fixed so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        datetime: UtcDateTime,
        dict[str, Any]: JsonValue,
        list[Any]: JsonValue,
    }


def new_id(prefix: str) -> str:
    """A fresh opaque id that sorts by creation time, such as ``srch_01J...``."""
    return f"{prefix}_{ULID()}"


def utc_now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)
