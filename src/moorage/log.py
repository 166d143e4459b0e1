"""Structured logs to stderr: one line an event, key=value for people, never a secret."""

from __future__ import annotations

import datetime
import logging
import re
import sys
import time
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog

RECENT_MAX = 2000
LINE_CHARACTERS_MAX = 2000
# Names of fields that are known to be good; there are some dozens.
KEYS_MAX = 1000
_PLAIN = re.compile(r'[^ ="\\\n]*')
_recent: deque[str] = deque(maxlen=RECENT_MAX)


def list_recent() -> list[str]:
    """The newest lines of this process's log, oldest first; at most RECENT_MAX, each cut at LINE_CHARACTERS_MAX."""
    return list(_recent)


def _keep(logger: Any, method: str, line: Any) -> Any:
    """A processor behind the renderer, which made a text: keep it for ``list_recent``."""
    _recent.append(str(line)[:LINE_CHARACTERS_MAX])
    return line


class LogfmtLine:
    """A processor that makes the line: what ``structlog.processors.LogfmtRenderer`` makes with the keys of ``FIRST``
    first and flags as words, in a fraction of the time. Its exceptions are texts already."""

    FIRST = ("timestamp", "level", "event")

    def __init__(self) -> None:
        self._good_keys: set[str] = set()

    def __call__(self, logger: Any, method: str, fields: MutableMapping[str, Any]) -> str:
        parts = [_pair(key, fields.pop(key, None)) for key in self.FIRST]
        for key, value in fields.items():
            if key not in self._good_keys:
                if any(character <= " " for character in key):
                    raise ValueError(f'Invalid key: "{key}"')
                if len(self._good_keys) < KEYS_MAX:
                    self._good_keys.add(key)
            parts.append(_pair(key, value))
        return " ".join(parts)


def _pair(key: str, value: Any) -> str:
    if value is None:
        return f"{key}="
    if value is True or value is False:
        return f"{key}={'true' if value else 'false'}"
    text = str(value)
    if _PLAIN.fullmatch(text):
        return f"{key}={text}"
    is_quoted = " " in text or "=" in text or '"' in text
    if is_quoted:
        text = text.replace("\\", "\\\\")
    text = text.replace('"', '\\"').replace("\n", "\\n")
    return f'{key}="{text}"' if is_quoted else f"{key}={text}"


class Stamp:
    """A processor that puts the time: UTC, as ``datetime.isoformat`` writes it. The text of a second is made once."""

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._now_ns = now_ns
        self._second = -1
        self._text = ""

    def __call__(self, logger: Any, method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        second, rest_ns = divmod(self._now_ns(), 1_000_000_000)
        if second != self._second:
            self._text = datetime.datetime.fromtimestamp(second, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = second
        micros = rest_ns // 1000
        fields["timestamp"] = f"{self._text}.{micros:06d}Z" if micros else f"{self._text}Z"
        return fields


def configure_logging(level: str) -> None:
    """Log events of ``level`` (debug, info, warning, error) and above to stderr."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            Stamp(),
            structlog.processors.format_exc_info,
            LogfmtLine(),
            _keep,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
