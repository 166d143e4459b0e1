"""What settings are made of: the base of all sections, and the kinds of values."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e9)]
Count = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Amount = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
OwnCount = Annotated[int, msgspec.Meta(ge=-1, le=10_000)]
CountOrNone = Annotated[int, msgspec.Meta(ge=0, le=10_000)]
LogLevel = Literal["debug", "info", "warning", "error"]
Role = Literal["detected", "controller", "node", "monolith"]
Takeover = Literal["evidence", "timeout"]
Reboot = Literal["resume", "free"]
Join = Literal["auto", "open", "token"]
VerifyClient = Literal["no", "agents", "all"]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of the file. ``has_own_flags``: its flags are ``--section-key``, not ``--key``."""

    has_own_flags: ClassVar[bool] = False
