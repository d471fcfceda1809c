"""Structured logs: one JSON object a line, on standard error."""

import logging
import sys
from typing import Any

import structlog

from service.redaction import redact


def configure_logging(level: str) -> None:
    """Send every log line, ours and the libraries', to standard error as JSON."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
                _redacted,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _redacted(_logger: Any, _method: str, line: Any) -> str:
    """The last step, so that no member of the line is forgotten, tracebacks included."""
    return redact(line)


def logger(name: str) -> Any:
    """A structured logger; keyword arguments become members of the line."""
    return structlog.get_logger(name)
