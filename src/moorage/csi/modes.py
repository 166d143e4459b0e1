"""Access modes as numbers on the wire, and names of enum values.

Never: I/O.
"""

from __future__ import annotations

from typing import Any

from moorage.csi.proto import csi_pb2 as csi
from moorage.model.volume import (
    MULTI_NODE_MULTI_WRITER,
    MULTI_NODE_READER,
    MULTI_NODE_SINGLE_WRITER,
    SINGLE_NODE_MULTI_WRITER,
    SINGLE_NODE_READER,
    SINGLE_NODE_SINGLE_WRITER,
    SINGLE_NODE_WRITER,
)

_Mode = csi.VolumeCapability.AccessMode

MODE_NUMBERS = {
    SINGLE_NODE_WRITER: _Mode.SINGLE_NODE_WRITER,
    SINGLE_NODE_READER: _Mode.SINGLE_NODE_READER_ONLY,
    MULTI_NODE_READER: _Mode.MULTI_NODE_READER_ONLY,
    MULTI_NODE_SINGLE_WRITER: _Mode.MULTI_NODE_SINGLE_WRITER,
    MULTI_NODE_MULTI_WRITER: _Mode.MULTI_NODE_MULTI_WRITER,
    SINGLE_NODE_SINGLE_WRITER: _Mode.SINGLE_NODE_SINGLE_WRITER,
    SINGLE_NODE_MULTI_WRITER: _Mode.SINGLE_NODE_MULTI_WRITER,
}
# Sent only to drivers that advertise SINGLE_NODE_MULTI_WRITER.
NEWER_MODES = frozenset({SINGLE_NODE_SINGLE_WRITER, SINGLE_NODE_MULTI_WRITER})


def get_enum_name(kind: Any, number: int) -> str:
    """The name of ``number`` in the enum ``kind``; the number as text where it is newer than what we know."""
    value = kind.DESCRIPTOR.values_by_number.get(number)
    return str(number) if value is None else str(value.name)
