"""Patterns of ``matches``: RE2, searched in the text, in time linear in its length. Pure.

Bad patterns are reported in the words of the recorded server. Source: contract volumes-api §5.2, §5.3.
"""

from __future__ import annotations

import re

import msgspec
import re2  # type: ignore[import-untyped]

from moorage.errors import BadRequest

MEMORY_BYTES = 8 * 1024 * 1024
MEMORY_MIN_BYTES = 64 * 1024
TEXTS_KEPT_MAX = 4096

# The engine below the package's public calls: those keep a cache of their own, which nothing bounds by memory, and wrap
# each hit in objects, which makes them some ten times slower.
_engine = re2._re2.RE2
# A single byte as \C is not of the language that the API promises, although this engine has it.
_ESCAPES = re.compile(r"\\Q.*?(?:\\E|\Z)|\\(.)", re.DOTALL)
_NO_SPAN = (-1, -1)
_FINDINGS = {
    "bad repetition operator": "invalid nested repetition operator",
    "invalid named capture group": "invalid named capture",
    "invalid perl operator": "invalid or unsupported Perl syntax",
    "invalid repetition size": "invalid repeat count",
    "missing )": "missing closing )",
    "missing ]": "missing closing ]",
    "no argument for repetition operator": "missing argument to repetition operator",
    "trailing \\": "trailing backslash at end of expression",
}


class Plain(msgspec.Struct, frozen=True):
    """A pattern that is only a text, at the begin or the end or anywhere: ``code`` compares it by itself."""

    code: str
    text: str


# Characters that stand for themselves in a pattern, one by one or behind a backslash.
_PLAIN = re.compile(r"(\^?)((?:[A-Za-z0-9 _/:@,=~#%&<>!;\"'-]|\\[.+*?()|\[\]{}^$\\/-])+)(\$?)")
_ESCAPED = re.compile(r"\\(.)")
_PLAIN_CODES = {
    ("", ""): "{text} in {value}",
    ("^", ""): "{value}.startswith({text})",
    ("", "$"): "{value}.endswith({text})",
    ("^", "$"): "{value} == {text}",
}


def find_plain(text: str) -> Plain | None:
    """A pattern as a plain comparison; None where it takes the engine. Most patterns that people write are such, and
    comparing texts is some ten times as fast."""
    found = _PLAIN.fullmatch(text)
    if found is None:
        return None
    return Plain(_PLAIN_CODES[found[1], found[3]], _ESCAPED.sub(r"\1", found[2]))


class Pattern:
    """A pattern, compiled once. ``share``: the part of the memory that is there for one filter, above 0 and up to 1.

    Raises BadRequest with the finding about a pattern that is none.
    """

    __slots__ = ("_known", "_known_max", "_run", "_where")

    def __init__(self, text: str, share: float = 1.0) -> None:
        if any(found[1] == "C" for found in _ESCAPES.finditer(text)):
            raise BadRequest("invalid escape sequence: `\\C`")
        options = _engine.Options()
        options.log_errors = False
        options.never_capture = True
        options.max_mem = max(int(MEMORY_BYTES * share), MEMORY_MIN_BYTES)
        compiled = _engine(_encode(text), options)
        if not compiled.ok():
            raise BadRequest(explain(compiled.error(), text))
        self._run = compiled.Match
        self._where = _engine.Anchor.UNANCHORED
        # The same few texts come again and again: a list is asked for by polling, and many volumes share a plugin.
        self._known: dict[str, bool] = {}
        self._known_max = int(TEXTS_KEPT_MAX * share)

    def is_in(self, text: str) -> bool:
        """Whether the pattern is found anywhere in the text."""
        found = self._known.get(text)
        if found is None:
            data = _encode(text)
            found = bool(self._run(self._where, data, 0, len(data))[0] != _NO_SPAN)
            if len(self._known) < self._known_max:
                self._known[text] = found
        return found


def _encode(text: str) -> bytes:
    """The text's bytes: those that were no UTF-8 in a literal as they were written."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def explain(finding: bytes, pattern: str) -> str:
    """The library's finding in the words of the recorded server: what is wrong, then where in backticks."""
    what, colon, where = finding.decode("utf-8", "replace").partition(": ")
    if what == "invalid UTF-8":
        where = pattern
    if not colon:
        # The text at fault may be empty, and then the separator stands at the end.
        what, where = what.removesuffix(":"), ""
    return f"{_FINDINGS.get(what, what)}: `{where}`"
