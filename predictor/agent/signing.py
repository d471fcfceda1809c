"""What the API signs and the agent checks: which file a task is about."""

import base64
import binascii

from predictor.errors import NotAuthenticError


def task_message(target_id: str, subject: str, model_sha256: str, anchor_sha256: str) -> bytes:
    """The bytes that the signature of a task covers."""
    return f"tailor-task/1\n{target_id}\n{subject}\n{model_sha256}\n{anchor_sha256}".encode()


def check_signature(message: bytes, signature: str, signing_key: str) -> None:
    """Check an Ed25519 signature.

    Args:
        signature, signing_key: base64 of the raw bytes.

    Raises:
        NotAuthenticError: the signature is not the key's over `message`.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(signing_key, validate=True))
        key.verify(base64.b64decode(signature, validate=True), message)
    except (InvalidSignature, ValueError, binascii.Error) as error:
        raise NotAuthenticError("the signature is not the service's; nothing was run") from error
