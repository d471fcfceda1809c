"""Which agents may work with this service."""

import re

from service.errors import AgentTooOldError

OLDEST_AGENT = "0.1.0"
"""The oldest agent whose measurements mean what this version takes them to mean."""


def is_outdated(version: str) -> bool:
    """Whether an agent of that version is too old; what is no version counts as new."""
    given = _numbers(version)
    return given is not None and given < (_numbers(OLDEST_AGENT) or ())


def require_recent(version: str) -> None:
    """Refuse agents that are too old.

    Raises:
        AgentTooOldError: naming the version that is needed.
    """
    if is_outdated(version):
        raise AgentTooOldError(
            f"this agent is version {version}; the service needs {OLDEST_AGENT} or newer: "
            "pip install --upgrade 'tailor-nas[agent]', then start it again; nothing it has "
            "measured is lost",
            minimum_version=OLDEST_AGENT,
        )


def _numbers(version: str) -> tuple[int, ...] | None:
    found = re.match(r"(\d{1,9})(?:\.(\d{1,9}))?(?:\.(\d{1,9}))?(?:[.+a-z-]|$)", version)
    return tuple(int(part or 0) for part in found.groups()) if found else None
