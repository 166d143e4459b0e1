"""The whole error tree. Imports nothing of ours.

MoorageError            code: stable string; message: one sentence; fields: the ids concerned; cause chained with "from"
├─ Rejected             the caller must change something; never retried by us
│  ├─ BadRequest        malformed body, spec or filter (with position)
│  ├─ Forbidden         token missing, unknown or lacking the grant
│  ├─ NotFound          volume, plugin, snapshot, node, allocation
│  └─ Conflict          a record in use, a claim that another holder blocks, an identity that cannot change
├─ Unavailable          true later without any change by the caller; carries retry_after_s
│  ├─ StoreUnavailable  disk full, store unreachable
│  ├─ PluginUnavailable no healthy instance for the step
│  └─ DeadlineExceeded  the record holds the intent; work goes on; asking again is safe
├─ DriverFault          a CSI call failed: method, gRPC code, driver's text, final
│  ├─ DriverRefused     final: nothing is in progress
│  └─ DriverUncertain   not final: it may still be running; repeat the same call with back-off
├─ StateConflict        a compare failed: re-read and decide again; never shown
└─ Compacted            a watch asked for a revision that is gone: list again; never shown

Identity is the class and ``code``, never the text. Text is for people; where existing clients match on a text,
``api`` owns it. ``fields`` never hold a secret.
"""

from __future__ import annotations


class MoorageError(Exception):
    """Something went wrong that moorage has a name for.

    ``message`` is one sentence for people, ``code`` a stable string for programs, ``fields`` the ids concerned.
    """

    code = "error"

    def __init__(self, message: str, /, *, code: str | None = None, **fields: str) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        self.fields = fields


class Rejected(MoorageError):
    """The caller must change something; never retried by us."""

    code = "rejected"


class BadRequest(Rejected):
    """Malformed body, parameter, spec or filter; the message names the field or position."""

    code = "bad_request"


class Forbidden(Rejected):
    """Token missing, unknown or lacking the grant."""

    code = "forbidden"


class NotFound(Rejected):
    """No such volume, plugin, snapshot, node or allocation."""

    code = "not_found"


class Conflict(Rejected):
    """The request contradicts a record: in use, held by another, identity cannot change."""

    code = "conflict"


class Unavailable(MoorageError):
    """True later without any change by the caller. ``retry_after_s`` is a hint in seconds."""

    code = "unavailable"

    def __init__(self, message: str, /, *, code: str | None = None, retry_after_s: float = 1.0, **fields: str) -> None:
        super().__init__(message, code=code, **fields)
        self.retry_after_s = retry_after_s


class StoreUnavailable(Unavailable):
    """The store cannot take the write: disk full, unreachable, closed."""

    code = "store_unavailable"


class PluginUnavailable(Unavailable):
    """No healthy instance of the plugin can run the step."""

    code = "plugin_unavailable"


class DeadlineExceeded(Unavailable):
    """Time is up; the record holds the intent, work goes on, asking again is safe."""

    code = "deadline_exceeded"


class DriverFault(MoorageError):
    """A CSI call failed. ``method``: the CSI method; ``status``: the gRPC code's name; ``final``: it is over."""

    code = "driver_fault"

    def __init__(self, message: str, /, *, method: str, status: str, final: bool, **fields: str) -> None:
        super().__init__(message, **fields)
        self.method = method
        self.status = status
        self.final = final


class DriverRefused(DriverFault):
    """Final: nothing is in progress at the driver."""

    code = "driver_refused"


class DriverUncertain(DriverFault):
    """Not final: the call may still be running. Keep the state; repeat the same call with back-off."""

    code = "driver_uncertain"


class StateConflict(MoorageError):
    """A compare failed in a transaction: re-read and decide again. Internal; never shown."""

    code = "state_conflict"


class Compacted(MoorageError):
    """The revision asked for is no longer kept: list everything again. Internal; never shown."""

    code = "compacted"
