"""Every statement on prices of kernels."""

from typing import Any

from sqlalchemy.orm import Session

from service.db.base import utc_now
from service.predictions.models import KernelPricesRow


def find_prices(session: Session, target_id: str) -> KernelPricesRow | None:
    """What kernels cost on a target, if it is known."""
    return session.get(KernelPricesRow, target_id)


def keep_prices(session: Session, target_id: str, document: dict[str, Any]) -> None:
    """Keep what kernels cost on a target, in the place of what was known before."""
    session.merge(KernelPricesRow(target_id=target_id, document=document, created_at=utc_now()))
