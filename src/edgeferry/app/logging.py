"""How processes log: one line per event on standard error, JSON or plain, without secrets.

Rules:
- Set up once per process, by `cli/`; nothing below `app/` configures logging.
- The query of any URL, a SAS signature and a connection string's key are struck out of every value, whoever logs it.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_SECRETS = re.compile(
    r"(?i)(\b(?:sig|sas|token|api_key|SharedAccessKey|password)=)[^&;\s\"']+|(https?://[^\s\"'?]+)\?[^\s\"']+"
)


def redact(text: str) -> str:
    """`text` without signatures, keys and URL queries."""
    return _SECRETS.sub(lambda match: f"{match[1]}***" if match[1] else f"{match[2]}?***", text)


def _redact_values(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: redact(value) if isinstance(value, str) else value for key, value in event.items()}


def configure_logging(*, as_json: bool, level: str = "info") -> None:
    """Sets the process's logging up: events of structlog and of the standard library alike, on standard error."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redact_values,
    ]
    renderer = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
