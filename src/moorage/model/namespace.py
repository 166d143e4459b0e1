"""Namespaces: a volume is identified by (namespace, id).

Never: I/O, clock.
"""

from __future__ import annotations

from typing import Any

import msgspec

from moorage.model.ids import NamespaceName


class Namespace(msgspec.Struct, frozen=True, kw_only=True):
    """A namespace's record; ``default`` exists without one.

    ``meta`` None: none was given, and answers say so. ``settings``: members that mean something to a scheduler only
    (``Capabilities``, ``NodePoolConfiguration`` …), kept as they came and given back, so that a client that writes
    back what it has read finds no change. ``is_closing``: a deletion has looked at this record and is about to look
    for volumes; a new volume takes the mark away, and the deletion then starts over.
    """

    name: NamespaceName
    description: str = ""
    quota: str = ""
    meta: dict[str, str] | None = None
    settings: dict[str, Any] = msgspec.field(default_factory=dict)
    is_closing: bool = False
