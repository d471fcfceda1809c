"""What this installation signs, so that agents run no file that somebody else slipped in."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select
from sqlalchemy.orm import Session

from predictor.agent.signing import task_message
from service.agents.models import SigningKey
from service.db.base import new_id, utc_now
from service.db.database import take_turns


class Signer:
    """Signs with the installation's Ed25519 key.

    Attributes:
        public_key: base64 of the raw key; what agents keep.
    """

    def __init__(self, private_key: str) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(private_key))
        self.public_key = base64.b64encode(self._key.public_key().public_bytes_raw()).decode()

    def sign(self, message: bytes) -> str:
        """The signature of `message`, base64."""
        return base64.b64encode(self._key.sign(message)).decode()

    def sign_task(self, target_id: str, subject: str, model_sha256: str, anchor_sha256: str) -> str:
        """The signature of a task."""
        return self.sign(task_message(target_id, subject, model_sha256, anchor_sha256))

    def sign_document(self, document: Mapping[str, Any]) -> str:
        """The signature of a document's canonical JSON."""
        return self.sign(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def ensure_signer(session: Session) -> Signer:
    """The installation's signer; its key is made with the first start."""
    take_turns(session, "signing key")
    row = session.scalars(select(SigningKey).order_by(SigningKey.id)).first()
    if row is None:
        secret = base64.b64encode(Ed25519PrivateKey.generate().private_bytes_raw()).decode()
        row = SigningKey(id=new_id("sgk"), private_key=secret, created_at=utc_now())
        session.add(row)
        session.flush()
    return Signer(row.private_key)
