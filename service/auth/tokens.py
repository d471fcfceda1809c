"""Secrets that are shown once and stored as hashes."""

import hashlib
import secrets


def new_token(prefix: str) -> str:
    """A fresh secret of 256 random bits, such as ``tlr_...``; the prefix helps secret scanners."""
    return f"{prefix}_{secrets.token_urlsafe(32)}"


def new_code() -> str:
    """A fresh one-time enrolment code a person can type: ``ABCD-EFGH-JKLM`` (60 bits)."""
    alphabet = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
    groups = ("".join(secrets.choice(alphabet) for _ in range(4)) for _ in range(3))
    return "-".join(groups)


def token_hash(token: str) -> str:
    """What is stored; a plain sha256 suffices because the secrets are random, not chosen."""
    return hashlib.sha256(token.encode()).hexdigest()
