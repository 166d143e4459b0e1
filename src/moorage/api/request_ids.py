"""Request ids: the client's own, if it is one that can be put into a header and a log, else a new one."""

from __future__ import annotations

import re
from collections.abc import Callable

import structlog

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def choose_id(given: str, new_id: Callable[[], str]) -> str:
    """The id of a request whose client gave this one (empty: none)."""
    return given if given and _REQUEST_ID.fullmatch(given) else new_id()


class BoundId:
    """The request's ID in each line of the log that is written in the block."""

    __slots__ = ("_request_id", "_tokens")

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id

    def __enter__(self) -> None:
        self._tokens = structlog.contextvars.bind_contextvars(request_id=self._request_id)

    def __exit__(self, *exc_info: object) -> None:
        structlog.contextvars.reset_contextvars(**self._tokens)
