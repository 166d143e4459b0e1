"""Register, create and update: checks, merge and growth of a volume's record. Pure.

The texts are those of the recorded server: clients stop or retry on phrases in them.
Source: contract volumes-api §2.3, §2.4, §4.1, §4.3; clients §6.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from moorage.errors import BadRequest, Conflict, Rejected
from moorage.model.ids import check_volume_id
from moorage.model.volume import Capability, MountOptions, Topology, Volume

replace = msgspec.structs.replace
REDACTED = "[REDACTED]"
BYTES_MAX = 2**63 - 1


def join_errors(texts: Sequence[str]) -> str:
    """Several errors as the recorded server writes them: a count, then a line each, then an empty line."""
    count = "1 error occurred:" if len(texts) == 1 else f"{len(texts)} errors occurred:"
    return count + "".join(f"\n\t* {text}" for text in texts) + "\n\n"


def check_volume(volume: Volume) -> None:
    """Check the fields of a volume that was sent. Raises Rejected with every finding, code ``validation``."""
    findings = []
    if not volume.id:
        findings.append("missing volume id")
    if not volume.plugin_id:
        findings.append("missing plugin id")
    if volume.snapshot_id and volume.clone_id:
        findings.append("only one of snapshot_id and clone_id is allowed")
    if not volume.capabilities:
        findings.append("must include at least one capability block")
    findings += _check_topologies(volume)
    for name, size in (("min", volume.requested_min_bytes), ("max", volume.requested_max_bytes)):
        # A negative size is for the driver to refuse, as recorded; what does not fit the wire never reaches it.
        if not -BYTES_MAX <= size <= BYTES_MAX:
            findings.append(f"requested capacity {name} is larger than {BYTES_MAX} bytes")
    try:
        check_volume_id(volume.id)
    except BadRequest as error:
        findings.append(error.message)
    if findings:
        raise Rejected("validation: " + ", ".join(findings), code="validation", volume=volume.id)


def _check_topologies(volume: Volume) -> list[str]:
    asked = volume.requested_topologies
    if asked is None:
        return []
    texts = ["required topology is missing segments field" for t in asked.required or () if not t.segments]
    return texts + ["preferred topology is missing segments field" for t in asked.preferred or () if not t.segments]


def merge(old: Volume, new: Volume, *, is_claimed: bool) -> Volume:
    """The stored volume with the changes that an update may make; capacity bounds are ``plan_growth``'s business.

    Raises Conflict with every field that cannot change, as one text.
    """
    findings = _find_identity_changes(old, new)
    in_use = Capability(access_mode=old.access_mode, attachment_mode=old.attachment_mode)
    if old.access_mode and in_use not in (new.capabilities or ()):
        findings.append("volume requested capabilities update was not compatible with existing capability in use")
    if old.topologies and new.requested_topologies != old.requested_topologies:
        findings.append("volume topology request update was not compatible with existing topology")
    options = _merge_mount_options(old.mount_options, new.mount_options)
    if is_claimed and not _is_same_options(old.mount_options, options):
        findings.append("can not update mount options while volume is in use")
    if new.parameters and new.parameters != old.parameters:
        findings.append("volume parameters cannot be updated")
    if findings:
        raise Conflict(join_errors(findings), code="identity", volume=old.id)
    return replace(
        old,
        capabilities=new.capabilities,
        mount_options=options,
        secrets=new.secrets,
        context=new.context or old.context,
        requested_topologies=old.requested_topologies if old.topologies else new.requested_topologies,
    )


def _find_identity_changes(old: Volume, new: Volume) -> list[str]:
    findings = []
    if new.name and new.name != old.name:
        findings.append("volume name cannot be updated")
    if new.external_id and new.external_id != old.external_id:
        findings.append("volume external ID cannot be updated")
    if new.plugin_id != old.plugin_id:
        findings.append("volume plugin ID cannot be updated")
    if new.clone_id and new.clone_id != old.clone_id:
        findings.append("volume clone ID cannot be updated")
    if new.snapshot_id and new.snapshot_id != old.snapshot_id:
        findings.append("volume snapshot ID cannot be updated")
    return findings


def _merge_mount_options(old: MountOptions | None, new: MountOptions | None) -> MountOptions | None:
    """Flags that come back as they were shown, redacted, mean "unchanged"."""
    if new is not None and new.mount_flags == (REDACTED,):
        return replace(new, mount_flags=old.mount_flags if old else None)
    return new


def _is_same_options(old: MountOptions | None, new: MountOptions | None) -> bool:
    old, new = old or MountOptions(), new or MountOptions()
    return old.fs_type == new.fs_type and set(old.mount_flags or ()) == set(new.mount_flags or ())


def format_bytes(size: int) -> str:
    """A size in SI units as the recorded server prints it: ``999 B``, ``1.0 MB``, ``21 MB``."""
    if size < 10:
        return f"{size} B"
    units = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
    value, unit = float(size), 0
    while value >= 1000 and unit < len(units) - 1:
        value /= 1000
        unit += 1
    value = int(value * 10 + 0.5) / 10
    return f"{value:.1f} {units[unit]}" if value < 10 and unit else f"{value:.0f} {units[unit]}"


def plan_growth(old: Volume, new: Volume, *, supports_expand: bool) -> tuple[int, int] | None:
    """Whether new capacity bounds ask for a driver call.

    Shapes: ``old`` is the stored volume, ``new`` the one that was sent.
    Units: bytes. Returns None when no call is needed (then the caller stores the bounds), else (min, max) to ask for.
    Raises Rejected: bounds that contradict each other or the present size, or a driver that cannot expand.
    """
    least, most = new.requested_min_bytes, new.requested_max_bytes
    current = old.capacity_bytes
    if not is_growth_asked(old, new):
        return None
    if most and most < least:
        raise Rejected(
            f"max requested capacity ({format_bytes(most)}) less than or equal to min ({format_bytes(least)})",
            code="capacity",
            volume=old.id,
        )
    if most and most < current:
        raise Rejected(
            f"max requested capacity ({format_bytes(most)}) less than or equal to current ({format_bytes(current)})",
            code="capacity",
            volume=old.id,
        )
    if least <= current:
        return None
    if not supports_expand:
        raise Rejected("expand is not implemented by this controller plugin", code="unsupported", volume=old.id)
    return least, most


def is_growth_asked(old: Volume, new: Volume) -> bool:
    """Whether the bounds that were sent differ from the stored ones (none given means no change)."""
    given = (new.requested_min_bytes, new.requested_max_bytes)
    return given != (0, 0) and given != (old.requested_min_bytes, old.requested_max_bytes)


def prepare_new(volume: Volume, *, now_ns: int) -> Volume:
    """A volume that was registered or is to be created, with only the members that a client may set."""
    required = volume.requested_topologies.required if volume.requested_topologies else None
    topologies: tuple[Topology, ...] = volume.topologies or required or ()
    return replace(volume, topologies=topologies, created_at_ns=now_ns, modified_at_ns=now_ns)
