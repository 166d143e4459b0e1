"""Namespaces: a volume is identified by (namespace, id).

Never: I/O, clock.
"""

from __future__ import annotations

import msgspec

from moorage.model.ids import NamespaceName


class Namespace(msgspec.Struct, frozen=True, kw_only=True):
    """A namespace's record; ``default`` exists without one."""

    name: NamespaceName
    description: str = ""
    quota: str = ""
    meta: dict[str, str] = {}
