"""Check the fields of CSI requests. No I/O.

Raises Rejected whose ``code`` is the name of the gRPC status; the message names the field and what to do.
Source: CSI spec 1.12, sections on each message and "Size limits".
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence

import msgspec

from moorage.csi import mounting
from moorage.csi.local.loop import SECTOR_BYTES
from moorage.csi.local.records import R
from moorage.csi.proto import csi_pb2 as csi
from moorage.errors import Rejected

MIB = 1024 * 1024
DEFAULT_BYTES = 1024 * MIB
NAME_BYTES_MAX = 128
PAGE_MAX = 1000

Mode = csi.VolumeCapability.AccessMode
STRICT_MODES = frozenset({Mode.SINGLE_NODE_WRITER, Mode.SINGLE_NODE_READER_ONLY, Mode.SINGLE_NODE_SINGLE_WRITER})
"""A second target path on the same node is refused in these modes."""
SINGLE_NODE_MODES = STRICT_MODES | {Mode.SINGLE_NODE_MULTI_WRITER}

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_MODES = frozenset(range(1, 8))


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """A checked capability: the mode's number, and the mount flags of one that is not for block access."""

    mode: int
    flags: tuple[str, ...] = ()
    is_block: bool = False


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """A checked capacity range; 0 is unset."""

    required_bytes: int = 0
    limit_bytes: int = 0

    def holds(self, size: int) -> bool:
        """Whether ``size`` is within both bounds."""
        return size >= self.required_bytes and (not self.limit_bytes or size <= self.limit_bytes)


def refuse(status: str, message: str) -> Rejected:
    """The error that is answered as the gRPC status named ``status``."""
    return Rejected(message, code=status)


def require(value: str, field: str) -> str:
    """``value``, which may not be empty."""
    if not value:
        raise refuse("INVALID_ARGUMENT", f"{field} is required")
    return value


def check_path(value: str, field: str) -> str:
    """``value``, an absolute path below the root."""
    require(value, field)
    if not value.startswith("/") or "\0" in value or value.strip("/") == "":
        raise refuse("INVALID_ARGUMENT", f"{field} must be an absolute path below the root, not {value!r}")
    return value.rstrip("/")


def check_name(value: str) -> str:
    """``value``, a name as the orchestrator may choose it."""
    require(value, "name")
    if len(value.encode()) > NAME_BYTES_MAX:
        raise refuse("INVALID_ARGUMENT", f"name has more than {NAME_BYTES_MAX} bytes")
    if _CONTROL.search(value):
        raise refuse("INVALID_ARGUMENT", "name has a control character")
    return value


def check_access(capability: csi.VolumeCapability, field: str = "volume_capability") -> Access:
    """What a capability asks for. Raises for an unknown mode or an unknown mount flag."""
    kind = capability.WhichOneof("access_type")
    if kind is None:
        raise refuse("INVALID_ARGUMENT", f"{field}.access_type is required")
    mode = int(capability.access_mode.mode)
    if mode not in _MODES:
        raise refuse("INVALID_ARGUMENT", f"{field}.access_mode is required and must be a mode of CSI 1.12, not {mode}")
    if kind == "block":
        return Access(mode=mode, is_block=True)
    if capability.mount.volume_mount_group:
        raise refuse("INVALID_ARGUMENT", f"{field}.mount.volume_mount_group is not supported by the local driver")
    if not capability.mount.mount_flags:
        return Access(mode=mode)
    flags = tuple(word for entry in capability.mount.mount_flags for word in entry.split(",") if word)
    unknown = mounting.unknown_flags(flags)
    if unknown:
        raise refuse(
            "INVALID_ARGUMENT",
            f"{field}.mount.mount_flags: {unknown[0]!r} is not supported by the local driver; "
            f"it knows {', '.join(sorted(mounting.KNOWN_FLAGS))}",
        )
    return Access(mode=mode, flags=flags)


def check_accesses(capabilities: Sequence[csi.VolumeCapability]) -> tuple[Access, ...]:
    """What the capabilities of a create or a validation ask for; at least one is required."""
    if not capabilities:
        raise refuse("INVALID_ARGUMENT", "volume_capabilities is required")
    found = tuple(check_access(one, f"volume_capabilities[{number}]") for number, one in enumerate(capabilities))
    if len({access.is_block for access in found}) > 1:
        raise refuse(
            "INVALID_ARGUMENT", "volume_capabilities: a volume is for block access or for mounts, not for both"
        )
    return found


def check_kind(access: Access, *, is_block: bool, field: str = "volume_capability") -> None:
    """Refuse an access of the other kind than the volume is of."""
    if access.is_block != is_block:
        kind, other = ("block access", "mounts") if is_block else ("mounts", "block access")
        raise refuse("INVALID_ARGUMENT", f"{field}: the volume was created for {kind}, not for {other}")


def choose_image_size(wanted: Range, source_bytes: int) -> int:
    """The size of a new block volume: as ``choose_capacity``, with a default, in whole sectors."""
    size = choose_capacity(wanted, source_bytes) or DEFAULT_BYTES
    return round_up_sectors(size, wanted)


def round_up_sectors(size: int, wanted: Range) -> int:
    """``size`` in whole sectors. Raises OUT_OF_RANGE when that passes the limit."""
    rounded = -(-size // SECTOR_BYTES) * SECTOR_BYTES
    if wanted.limit_bytes and rounded > wanted.limit_bytes:
        text = f"a block device has whole sectors of {SECTOR_BYTES} bytes: none fits between the bounds"
        raise refuse("OUT_OF_RANGE", f"capacity_range: {text}")
    return rounded


def check_range(
    request: csi.CreateVolumeRequest | csi.ControllerExpandVolumeRequest | csi.NodeExpandVolumeRequest,
) -> Range:
    """The capacity range of a request; both bounds 0 when there is none."""
    if not request.HasField("capacity_range"):
        return Range()
    found = request.capacity_range
    for field, value in (("required_bytes", found.required_bytes), ("limit_bytes", found.limit_bytes)):
        if value < 0:
            raise refuse("INVALID_ARGUMENT", f"capacity_range.{field} may not be negative")
    if not found.required_bytes and not found.limit_bytes:
        raise refuse("INVALID_ARGUMENT", "capacity_range needs required_bytes or limit_bytes")
    if found.limit_bytes and found.limit_bytes < found.required_bytes:
        raise refuse("OUT_OF_RANGE", "capacity_range.limit_bytes is below capacity_range.required_bytes")
    return Range(required_bytes=found.required_bytes, limit_bytes=found.limit_bytes)


def choose_capacity(wanted: Range, source_bytes: int) -> int:
    """The capacity of a new volume: as required, or as its source, or below the limit; 0, which says "unknown", when
    nothing was asked for: a directory has no size of its own."""
    if source_bytes and wanted.required_bytes and wanted.required_bytes < source_bytes:
        raise refuse("OUT_OF_RANGE", f"capacity_range.required_bytes is below the {source_bytes} bytes of the source")
    if source_bytes and wanted.limit_bytes and wanted.limit_bytes < source_bytes:
        raise refuse("OUT_OF_RANGE", f"capacity_range.limit_bytes is below the {source_bytes} bytes of the source")
    if wanted.required_bytes or source_bytes:
        return wanted.required_bytes or source_bytes
    return min(wanted.limit_bytes, DEFAULT_BYTES)


def check_page(max_entries: int, starting_token: str) -> tuple[int, int]:
    """(entries at most, serial after which the page starts)."""
    if max_entries < 0:
        raise refuse("INVALID_ARGUMENT", "max_entries may not be negative")
    if starting_token and not (starting_token.isascii() and starting_token.isdigit() and len(starting_token) < 19):
        raise refuse("ABORTED", f"starting_token {starting_token[:32]!r} is not valid: start from the first page")
    return min(max_entries or PAGE_MAX, PAGE_MAX), int(starting_token or 0)


def cut_page(records: tuple[R, ...], limit: int, after: int) -> tuple[tuple[R, ...], str]:
    """(at most ``limit`` records with a serial above ``after``, the token of the next page or "")."""
    start = bisect_right(records, after, key=lambda record: record.serial)
    page = records[start : start + limit]
    return page, str(page[-1].serial) if page and start + limit < len(records) else ""


def check_ownership(parameters: Iterable[tuple[str, str]]) -> tuple[int, int, int]:
    """(mode, uid, gid) of a new volume's directory from its parameters; -1 leaves the owner."""
    mode, owners = 0o755, {"uid": -1, "gid": -1}
    for key, value in parameters:
        if key == "mode":
            if not re.fullmatch("0?[0-7]{3,4}", value):
                raise refuse("INVALID_ARGUMENT", f"parameters.mode must be octal such as 0750, not {value!r}")
            mode = int(value, 8)
        elif key in owners:
            if not re.fullmatch("[0-9]{1,9}", value):
                raise refuse("INVALID_ARGUMENT", f"parameters.{key} must be a number, not {value!r}")
            owners[key] = int(value)
    return mode, owners["uid"], owners["gid"]
