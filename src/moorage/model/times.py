"""Times as texts. Never: the clock."""

from __future__ import annotations

from datetime import UTC, datetime


def format_time(at_ns: int) -> str | None:
    """RFC 3339 in UTC with up to nine fractional digits; None for never. Units: nanoseconds since the epoch."""
    if not at_ns:
        return None
    seconds, rest = divmod(at_ns, 1_000_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{text}{fraction}Z"
