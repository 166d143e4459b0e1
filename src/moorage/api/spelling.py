"""The bytes of volumes' answers, as the shelf keeps them: exact copies, encoded once.

Members come in byte order and in five parts (``moorage.api.answers``), so that joining the parts' bytes gives what
encoding the whole stub gives.
"""

from __future__ import annotations

from moorage.api import answers
from moorage.api.http import encode
from moorage.engine.reads import VolumeRead
from moorage.engine.segments import Row, Shape
from moorage.rules.plugins import Health


class JsonSpelling:
    """Answers as JSON."""

    def cut(self, read: VolumeRead) -> Row:
        """A volume's stub without what it takes from its plugin."""
        volume = read.record.value
        shape = Shape(
            lead=_members(answers.volume_lead(volume)),
            tail=_members(answers.volume_tail(volume)),
            plugin_id=volume.plugin_id,
            provider=volume.provider,
            controller_required=volume.controller_required,
        )
        return Row(_members(answers.volume_core(read) | answers.counters(read)), shape)

    def frame(self, shape: Shape, health: Health) -> tuple[bytes, bytes]:
        """What stands before and after a core of this shape: from the stub's first byte on, and up to its last."""
        first = _members(answers.controllers(health, is_required=shape.controller_required))
        last = _members(answers.plugin_part(health, shape.plugin_id, shape.provider))
        return b"{%s,%s," % (shape.lead, first), b",%s,%s}" % (last, shape.tail)

    def whole(self, read: VolumeRead) -> bytes:
        """A volume whole."""
        return _copy(encode(answers.volume(read)))


def _members(value: answers.Json) -> bytes:
    """An object's members without its braces, as a copy of its own: what an encoder gives may keep more memory alive
    than its length says."""
    return bytes(memoryview(encode(value))[1:-1])


def _copy(body: bytes) -> bytes:
    return bytes(memoryview(body))
