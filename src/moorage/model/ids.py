"""Names of things: new types over ``str`` and ``int``, and the rules a name must keep.

Never: I/O, clock, randomness.
"""

from __future__ import annotations

import re
from typing import NewType

from moorage.errors import BadRequest

VolumeId = NewType("VolumeId", str)
NamespaceName = NewType("NamespaceName", str)
PluginId = NewType("PluginId", str)
NodeId = NewType("NodeId", str)
AllocationId = NewType("AllocationId", str)
ClaimId = NewType("ClaimId", str)
OperationId = NewType("OperationId", str)
Revision = NewType("Revision", int)

DEFAULT_NAMESPACE = NamespaceName("default")
ALL_NAMESPACES = "*"

# No client can address an id with one of these: the public API client cuts or splits the path at them.
_UNADDRESSABLE = re.compile(r"[/?#%\x00-\x1f\x7f]")
_NAMESPACE = re.compile(r"[a-zA-Z0-9-]{1,128}")
VOLUME_ID_BYTES_MAX = 128


def check_volume_id(text: str) -> VolumeId:
    """Accept a volume ID that every client can address.

    Raises BadRequest naming the first character that cannot stand in a URL path, or an ID over 128 bytes.
    Source: contract clients §0 rule 19; CSI spec "Size Limits".
    """
    found = _UNADDRESSABLE.search(text)
    if found:
        where = f"position {found.start()}"
        raise BadRequest(
            f"volume ID {text!r} holds {found.group()!r} at {where}: no client could address it; "
            "leave out / ? # % and control characters"
        )
    if len(text.encode("utf-8", "surrogatepass")) > VOLUME_ID_BYTES_MAX:
        raise BadRequest(f"volume ID is longer than {VOLUME_ID_BYTES_MAX} bytes: {text[:32]!r}…")
    return VolumeId(text)


def check_namespace(text: str) -> NamespaceName:
    """Accept a namespace name: 1 to 128 of letters, digits and hyphens; else BadRequest."""
    if not _NAMESPACE.fullmatch(text):
        raise BadRequest(f"invalid namespace name {text[:64]!r}: 1 to 128 letters, digits and hyphens are allowed")
    return NamespaceName(text)
