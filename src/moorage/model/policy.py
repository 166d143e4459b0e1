"""The rules of a policy, as data. Never: I/O, clock."""

from __future__ import annotations

import msgspec


class NamespaceRule(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy says about namespaces. ``name`` may hold ``*``, which stands for any run of characters.

    ``capabilities``: those given, then those that ``policy``, the coarse level, stands for.
    """

    name: str
    policy: str = ""
    capabilities: tuple[str, ...] = ()


class PolicyRules(msgspec.Struct, frozen=True, kw_only=True):
    """A policy's rules. A level is empty where the policy has no such block.

    ``host_volumes`` and ``node_pools`` are understood and kept for answers; nothing here asks for them.
    """

    namespaces: tuple[NamespaceRule, ...] = ()
    host_volumes: tuple[NamespaceRule, ...] = ()
    node_pools: tuple[NamespaceRule, ...] = ()
    plugin: str = ""
    node: str = ""
    agent: str = ""
    operator: str = ""
    quota: str = ""
    sentinel: str = ""
