"""Search: which contexts there are, and which names match. Pure.

A context is a kind of thing; those that moorage does not have are known, and always empty.
Source: golden around.jsonl steps 5 and 10 to 14; contract volumes-api Appendix A, clients §3.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from moorage.errors import Rejected

# In the order of the recorded refusal.
CONTEXTS = (
    "allocs",
    "jobs",
    "nodes",
    "node_pools",
    "evals",
    "deployment",
    "plugins",
    "volumes",
    "scaling_policy",
    "vars",
    "namespaces",
    "host_volumes",
)
ALL = "all"
MATCHES_MAX = 20
FUZZY_CHARACTERS_MIN = 2


class Named(msgspec.Struct, frozen=True):
    """Something that can be found: ``text`` is what is looked at and shown, ``scope`` says where it is."""

    text: str
    scope: tuple[str, ...] = ()


class Matches(msgspec.Struct, frozen=True):
    """At most MATCHES_MAX matches of a context, and whether there were more."""

    found: tuple[Named, ...]
    is_truncated: bool


def expand_context(context: str) -> tuple[str, ...]:
    """The contexts that are asked for. Raises Rejected with the recorded text for an unknown one."""
    if context == ALL:
        return CONTEXTS
    if context not in CONTEXTS:
        known = " ".join(CONTEXTS)
        raise Rejected(
            f"context must be one of [{known}] or 'all' for all contexts; got \"{context[:64]}\"", code="search"
        )
    return (context,)


def match_prefix(prefix: str, names: Iterable[Named]) -> Matches:
    """The names that begin with ``prefix``, ascending."""
    return _cut(sorted((n for n in names if n.text.startswith(prefix)), key=lambda n: (n.text, n.scope)))


def match_fuzzy(text: str, names: Iterable[Named]) -> Matches:
    """The names that hold ``text`` in any letter case, the earlier it stands the better; then ascending."""
    wanted = text.lower()
    found = [(n.text.lower().find(wanted), n.text, n.scope) for n in names]
    return _cut([Named(name, scope) for at, name, scope in sorted(found) if at >= 0])


def _cut(found: list[Named]) -> Matches:
    return Matches(tuple(found[:MATCHES_MAX]), len(found) > MATCHES_MAX)


def check_fuzzy(text: str) -> None:
    """A fuzzy search needs something to look for. Raises Rejected."""
    if len(text) < FUZZY_CHARACTERS_MIN:
        raise Rejected(
            f"fuzzy search query must be at least {FUZZY_CHARACTERS_MIN} characters, got {len(text)}", code="search"
        )


def check_node_prefix(prefix: str) -> None:
    """Node IDs are UUIDs, so a prefix is hexadecimal. Raises Rejected with the recorded text."""
    for character in prefix:
        if character not in "0123456789abcdefABCDEF-":
            # The recorded server reads bytes: of a character beyond ASCII it names the first.
            byte = character.encode("utf-8", "surrogatepass")[0]
            shown = f" '{chr(byte)}'" if chr(byte).isprintable() else ""
            text = f"Invalid UUID: encoding/hex: invalid byte: U+{byte:04X}{shown}"
            raise Rejected(f"node lookup failed: index error: {text}", code="node_prefix")
