"""Secrets are taken out of every text that leaves: log lines, problems, the audit log."""

import re

# no word boundary in front: in a JSON line, the n of an escaped line break stands there
_SECRETS = re.compile(
    r"(tl[ras]|whsec)_[\w-]{16,}"  # keys, agents' tokens, sessions, webhooks
    r"|(?<![A-Z0-9-])(?:[A-HJ-NP-Z2-9]{4}-){2}[A-HJ-NP-Z2-9]{4}(?![A-Z0-9-])"  # enrolment codes
    r'|(://[^\s:/@"]*):[^\s/]+(?=@)',  # the password of a URL
    re.ASCII,
)


def redact(text: str) -> str:
    """`text` with every secret replaced; what kind it was stays."""
    return _SECRETS.sub(_placeholder, text)


def _placeholder(found: re.Match[str]) -> str:
    prefix, address = found.groups()
    if address is not None:
        return f"{address}:[redacted]"
    return f"{prefix}_[redacted]" if prefix else "[redacted]"
