"""Request ids: the client's own, if it is one that can be put into a header and a log, else a new one."""

from __future__ import annotations

import re
from collections.abc import Callable

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def choose_id(given: str, new_id: Callable[[], str]) -> str:
    """The id of a request whose client gave this one (empty: none)."""
    return given if given and _REQUEST_ID.fullmatch(given) else new_id()
