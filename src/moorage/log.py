"""Structured logs to stderr: one line an event, key=value for people, never a secret."""

from __future__ import annotations

import logging
import sys
from collections import deque
from typing import Any

import structlog

RECENT_MAX = 2000
LINE_CHARACTERS_MAX = 2000
_recent: deque[str] = deque(maxlen=RECENT_MAX)


def list_recent() -> list[str]:
    """The newest lines of this process's log, oldest first; at most RECENT_MAX, each cut at LINE_CHARACTERS_MAX."""
    return list(_recent)


def _keep(logger: Any, method: str, line: Any) -> Any:
    """A processor behind the renderer, which made a text: keep it for ``list_recent``."""
    _recent.append(str(line)[:LINE_CHARACTERS_MAX])
    return line


def configure_logging(level: str) -> None:
    """Log events of ``level`` (debug, info, warning, error) and above to stderr."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False),
            _keep,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
