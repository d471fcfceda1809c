"""Prices of kernels as rows."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base


class KernelPricesRow(Base):
    """What kernels cost on a target, fitted to everything its kits have measured."""

    __tablename__ = "kernel_prices"

    target_id: Mapped[str] = mapped_column(ForeignKey("targets.id"), primary_key=True)
    document: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
