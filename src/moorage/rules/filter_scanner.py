"""The words and values of a filter's text, and the record of what was expected where reading failed. Pure.

Each selector and value is read once per place, so that the work grows with the text's length only.
Source: contract volumes-api §5.2 (errors), §5.3 (grammar).
"""

from __future__ import annotations

import re

from moorage.rules.filter_literals import LiteralError, unquote
from moorage.rules.filter_tree import Selector

_BLANK = re.compile(r"[ \t\r\n]+")
_IDENTIFIER = re.compile(r"[a-zA-Z][a-zA-Z0-9_/]*")
_DIGITS = re.compile(r"[0-9]+")
_NONZERO = re.compile(r"[1-9][0-9]*")
# \w is letters and numbers of any script, and "_".
_SEGMENT = re.compile(r"[\w\-.~:|]+")
_BLANK_WANT, _SEGMENT_WANT = r"[ \t\r\n]", r"[\pL\pN-_.~:|]"


class Scanner:
    """One filter's text, the words and values in it, and what was missed at the farthest place that was reached.

    A reading starts at a place and gives its end, or -1 (or None) when it does not fit; from -1 nothing fits.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.far = 0
        self._wanted: set[str] = set()
        self.findings: dict[str, None] = {}
        self._selectors: dict[int, tuple[Selector, int] | None] = {}
        self._values: dict[int, tuple[str, int] | None] = {}

    # -- failures ----------------------------------------------------------------------------------------------------

    def miss(self, at: int, want: str) -> None:
        """Remember what was wanted at the furthest place that the scanner came to."""
        if at > self.far:
            self.far = at
            self._wanted.clear()
        if at == self.far:
            self._wanted.add(want)

    def list_wanted(self) -> str:
        """What was wanted there, as the recorded parser lists it."""
        wanted = sorted(self._wanted - {"EOF"}) + (["EOF"] if "EOF" in self._wanted else [])
        return wanted[0] if len(wanted) == 1 else f"{', '.join(wanted[:-1])} or {wanted[-1]}"

    def report(self, at: int, rule: str, finding: str) -> None:
        """Keep a finding of a rule at a place; each once, in order."""
        named = f'rule "{rule}": ' if rule else ""
        self.findings[f"{self.place(at)}: {named}{finding}"] = None

    def place(self, at: int) -> str:
        """Line and column from 1 in characters, offset from 0 in bytes. A line break is column 0 of the next line."""
        line = 1 + self.text.count("\n", 0, at + 1)
        column = at - self.text.rfind("\n", 0, at + 1)
        return f"{line}:{column} ({len(self.text[:at].encode('utf-8', 'surrogatepass'))})"

    # -- single tokens: the end of what was read, or -1 ---------------------------------------------------------------

    def word(self, at: int, word: str) -> int:
        """A fixed text."""
        if at >= 0 and self.text.startswith(word, at):
            return at + len(word)
        if at >= 0:
            quoted = word.replace('"', '\\"')
            self.miss(at, f'"{quoted}"')
        return -1

    def blank(self, at: int) -> int:
        """At least one blank."""
        if at < 0:
            return -1
        found = _BLANK.match(self.text, at)
        end = found.end() if found else at
        self.miss(end, _BLANK_WANT)
        return end if found else -1

    def gap(self, at: int) -> int:
        """Any number of blanks."""
        return max(self.blank(at), at) if at >= 0 else -1

    def end(self, at: int) -> int:
        """The end of the text."""
        if at == len(self.text):
            return at
        if at >= 0:
            self.miss(at, "EOF")
        return -1

    def identifier(self, at: int) -> int:
        """A name: a letter, then letters, digits, ``_`` and ``/``."""
        if at < 0:
            return -1
        found = _IDENTIFIER.match(self.text, at)
        if found is None:
            self.miss(at, "[a-zA-Z]")
            return -1
        self.miss(found.end(), "[a-zA-Z0-9_/]")
        return found.end()

    def words(self, at: int, words: tuple[str, ...]) -> int:
        """Words, each after blanks."""
        for word in words:
            at = self.word(self.blank(at), word)
        return at

    # -- selectors and values ------------------------------------------------------------------------------------------

    def selector(self, at: int) -> tuple[Selector, int] | None:
        """A selector, dotted or as a pointer, and where it ends; tried once a place."""
        if at < 0:
            return None
        if at not in self._selectors:
            self._selectors[at] = self._dotted(at) or self._pointer(at)
        return self._selectors[at]

    def _dotted(self, at: int) -> tuple[Selector, int] | None:
        end = self.identifier(at)
        if end < 0:
            return None
        path = [self.text[at:end]]
        while True:
            dot = self.word(end, ".")
            part_end = self.identifier(dot)
            if part_end >= 0:
                path.append(self.text[dot:part_end])
                end = part_end
                continue
            indexed = self._index(end)
            if indexed:
                path.append(indexed[0])
                end = indexed[1]
                continue
            digits = _DIGITS.match(self.text, dot) if dot >= 0 else None
            if digits is None:
                if dot >= 0:
                    self.miss(dot, "[0-9]")
                return Selector(tuple(path)), end
            path.append(digits[0])
            end = digits.end()
            self.miss(end, "[0-9]")

    def _index(self, at: int) -> tuple[str, int] | None:
        opened = self.gap(self.word(at, "["))
        if opened < 0:
            return None
        found = self._string(opened)
        if found is None:
            self.report(opened, "index", "Invalid index")
            return None
        after = self.gap(found[1])
        end = self.word(after, "]")
        if end >= 0:
            return found[0], end
        self.report(after, "index", "Unclosed index expression")
        return None

    def _pointer(self, at: int) -> tuple[Selector, int] | None:
        end = self.word(at, '"')
        parts: list[str] = []
        while (start := self.word(end, "/")) >= 0:
            segment_end = self._segment(start)
            if segment_end == start:
                break
            parts.append(self.text[start:segment_end].replace("~1", "/").replace("~0", "~"))
            end = segment_end
        end = self.word(end, '"')
        return (Selector(tuple(parts) or ("",), is_pointer=True), end) if end >= 0 else None

    def _segment(self, at: int) -> int:
        found = _SEGMENT.match(self.text, at)
        end = found.end() if found else at
        self.miss(end, _SEGMENT_WANT)
        return end

    def value(self, at: int) -> tuple[str, int] | None:
        """A value as text, and where it ends; tried once a place."""
        if at < 0:
            return None
        if at not in self._values:
            self._values[at] = self._read_value(at)
        return self._values[at]

    def _read_value(self, at: int) -> tuple[str, int] | None:
        selected = self.selector(at)
        if selected:
            selector, end = selected
            # A quoted text that looks like a pointer is compared whole; the recorded server drops its first slash.
            return (self.text[at + 1 : end - 1] if selector.is_pointer else selector.text), end
        return self._number(at) or self._string(at)

    def _number(self, at: int) -> tuple[str, int] | None:
        minus = self.word(at, "-")
        whole = max(minus, at)
        end = self.word(whole, "0")
        if end < 0:
            found = _NONZERO.match(self.text, whole)
            if found is None:
                self.miss(whole, "[1-9]")
                return None
            end = found.end()
            self.miss(end, "[0-9]")
        point = self.word(end, ".")
        fraction = _DIGITS.match(self.text, point) if point >= 0 else None
        if fraction:
            end = fraction.end()
        if point >= 0:
            self.miss(end if fraction else point, "[0-9]")
        if self.blank(end) >= 0 or self.end(end) >= 0 or self.word(end, ")") >= 0:
            return self.text[at:end], end
        self.report(end, "number", "Invalid number literal")
        return None

    def _string(self, at: int) -> tuple[str, int] | None:
        quote = self.text[at : at + 1]
        if quote not in ("`", '"') or not quote:
            self.word(at, "`")
            self.word(at, '"')
            return None
        end = self.text.find(quote, at + 1)
        if end < 0:
            self.report(len(self.text), "string", "Unterminated string literal")
            return None
        inner = self.text[at + 1 : end]
        if quote == "`":
            return inner.replace("\r", ""), end + 1
        try:
            return unquote(inner), end + 1
        except LiteralError as error:
            self.report(at, "string", str(error))
            return "", end + 1
