"""Secret values that say where the secret is: ``file:/PATH``, ``env:NAME``, ``credential:NAME``. Pure.

A value that begins with one of these words is a reference; ``literal:`` before a value says that it is meant as it is.
Only the host that makes the driver call reads what a reference names; everywhere else it is a secret like others.
Never: I/O; a value that is no well-formed reference in a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import msgspec

from moorage.errors import BadRequest

Kind = Literal["file", "env", "credential"]
LITERAL = "literal:"
_KINDS: tuple[Kind, ...] = ("file", "env", "credential")
_NAMES: dict[Kind, re.Pattern[str]] = {
    "file": re.compile(r"/[^\0\n]{0,4095}"),
    "env": re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}"),
    "credential": re.compile(r"(?!\.\.?$)[A-Za-z0-9._@:-]{1,255}"),
}
_SHAPES: dict[Kind, str] = {"file": "file:/ABSOLUTE/PATH", "env": "env:NAME", "credential": "credential:NAME"}


class Reference(msgspec.Struct, frozen=True):
    """Where a secret is. Its text may be shown, what is there may not."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


def parse_reference(value: str) -> Reference | None:
    """The reference that a value is, or None for a value that is meant as it is.

    Raises BadRequest for one that begins like a reference and is none; the text does not show it.
    """
    for kind in _KINDS:
        if value.startswith(f"{kind}:"):
            name = value[len(kind) + 1 :]
            if _NAMES[kind].fullmatch(name) is None:
                raise BadRequest(
                    f"a value that begins with {kind}: says where the secret is and must be {_SHAPES[kind]}; for a "
                    f"value that is meant as it is, write {LITERAL} before it",
                    code="bad_reference",
                )
            return Reference(kind, name)
    return None


def read_literal(value: str) -> str:
    """A value that is no reference, as the driver gets it: without the escape."""
    return value.removeprefix(LITERAL)


def is_reference(value: str) -> bool:
    """Whether a value is a well-formed reference, which may be shown."""
    try:
        return parse_reference(value) is not None
    except BadRequest:
        return False


def check_references(values: Mapping[str, str]) -> None:
    """Refuse secrets of which one begins like a reference and is none. Raises BadRequest that names the key."""
    for key, value in values.items():
        try:
            parse_reference(value)
        except BadRequest as error:
            raise BadRequest(f'secret "{key}": {error.message}', code=error.code) from error
