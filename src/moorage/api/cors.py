"""CORS: which browsers' pages may ask. Off unless origins are allowed. Source: the Fetch standard, CORS protocol."""

from __future__ import annotations

from collections.abc import Mapping

from moorage.api.http import Answer
from moorage.api.limits import HttpSettings

ANY = "*"
METHODS = "GET, PUT, POST, DELETE"
REQUEST_HEADERS = (
    "Authorization, Content-Type, X-Nomad-Token, X-Nomad-CSI-Secrets, X-Nomad-Index, X-Request-Id, X-Requested-With"
)
ANSWER_HEADERS = (
    b"X-Nomad-Index, X-Nomad-KnownLeader, X-Nomad-LastContact, X-Nomad-NextToken, X-Moorage-Warnings, X-Request-Id, "
    b"Retry-After, Server-Timing"
)


class Cors:
    """What is said to pages of the allowed origins. ``vary`` is the value of every answer's ``Vary``."""

    def __init__(self, settings: HttpSettings) -> None:
        self._origins = frozenset(settings.allowed_origins)
        self._max_age_s = settings.preflight_s
        self.vary = b"Accept-Encoding, Origin" if self._origins else b"Accept-Encoding"

    def allow(self, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
        """The headers that let the asking page read the answer; none when it may not."""
        if not self._is_allowed(headers):
            return []
        origin = headers["origin"].encode("latin-1")
        return [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", ANSWER_HEADERS)]

    def answer_preflight(self, headers: Mapping[str, str]) -> Answer | None:
        """The answer to a browser's question before a request; None: this is none, or its page may not ask."""
        if "access-control-request-method" not in headers or not self._is_allowed(headers):
            return None
        return Answer(
            status=204,
            headers={
                "Access-Control-Allow-Methods": METHODS,
                "Access-Control-Allow-Headers": REQUEST_HEADERS,
                "Access-Control-Max-Age": str(self._max_age_s),
            },
        )

    def _is_allowed(self, headers: Mapping[str, str]) -> bool:
        origin = headers.get("origin", "")
        return bool(origin) and (origin in self._origins or ANY in self._origins)
