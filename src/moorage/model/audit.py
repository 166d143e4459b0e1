"""What the audit log says of a request. Never: I/O, clock; a secret, a token, a body, a query."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

# done: it is so.  refused: the caller may not, or must change something.  failed: it did not work, or not yet.
# left: the caller went away before the answer; what was begun goes on.
Result = Literal["done", "refused", "failed", "left", "started", "stopped"]


class Who(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who asked, as far as it is known. ``accessor`` and ``name`` are the token's, ``node`` the node's ID, ``address``
    where the request came from. A bearer of a token that nobody knows is of the kind ``unknown``."""

    kind: str = "anonymous"
    accessor: str = ""
    name: str = ""
    node: str = ""
    address: str = ""


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One request. ``at_ns``: when it was answered, ns since the epoch; ``took_us``: how long that took, µs.

    ``route`` is the pattern of the path; ``status`` 0 where no answer was sent; ``code`` is the error's.
    """

    at_ns: int
    request_id: str
    who: Who
    method: str
    path: str
    route: str
    namespace: str
    result: Result
    status: int
    code: str = ""
    took_us: int = 0


class AuditSink(Protocol):
    """Where entries go."""

    async def note(self, entry: AuditEntry) -> None:
        """Take an entry; waits for a bounded time only, and never raises. One that could not be taken is counted."""
        ...

    def note_now(self, entry: AuditEntry) -> None:
        """Take an entry without waiting."""
        ...
