"""Patterns of ``matches``: RE2, searched in the text, in time linear in its length. Pure.

Bad patterns are reported in the words of the recorded server. Source: contract volumes-api §5.2, §5.3.
"""

from __future__ import annotations

import re2  # type: ignore[import-untyped]

from moorage.errors import BadRequest

# The engine below the package's public calls: those keep a cache of their own, which nothing bounds by memory, and wrap
# each hit in objects, which makes them some ten times slower.
_engine = re2._re2.RE2
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


class Pattern:
    """A pattern, compiled once. ``memory_bytes`` bounds what its automaton may take.

    Raises BadRequest with the finding about a pattern that is none.
    """

    __slots__ = ("_run", "_where")

    def __init__(self, text: str, memory_bytes: int) -> None:
        options = _engine.Options()
        options.log_errors = False
        options.never_capture = True
        options.max_mem = memory_bytes
        compiled = _engine(text.encode("utf-8", "surrogatepass"), options)
        if not compiled.ok():
            raise BadRequest(explain(compiled.error()))
        self._run = compiled.Match
        self._where = _engine.Anchor.UNANCHORED

    def is_in(self, text: str | None) -> bool:
        """Whether the pattern is found anywhere in the text."""
        data = (text or "").encode("utf-8", "surrogatepass")
        return bool(self._run(self._where, data, 0, len(data))[0] != _NO_SPAN)


def explain(finding: bytes) -> str:
    """The library's finding in the words of the recorded server: what is wrong, then where in backticks."""
    what, colon, where = finding.decode("utf-8", "replace").partition(": ")
    if not colon:
        # The text at fault may be empty, and then the separator stands at the end.
        what, where = what.removesuffix(":"), ""
    return f"{_FINDINGS.get(what, what)}: `{where}`"
