"""Data sets as rows."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, Id


class DatasetRow(Base):
    """A data set that an account registered. `version` grows with every change.

    Attributes:
        source: `builtin`, `path` or `upload`.
        place: the known set's name, the path on the workers, or the sha256 of the upload.
        resize_px: side that the images of a folder are resized to.
        sha256: of an upload, the file in the artifact store.
        status: `checking`, `ready` or `rejected`.
        reason: why it was rejected.
        facts: what the check found (`child.Facts`); None until it is ready.
    """

    __tablename__ = "datasets"
    __table_args__ = (UniqueConstraint("owner", "name"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    source: Mapped[str] = mapped_column(Text)
    place: Mapped[str] = mapped_column(Text)
    resize_px: Mapped[int | None]
    sha256: Mapped[str | None] = mapped_column(Text, index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    facts: Mapped[dict[str, Any] | None]
    version: Mapped[int] = mapped_column()
    created_at: Mapped[datetime]
    checked_at: Mapped[datetime | None]

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - read by SQLAlchemy
