"""From the text of a filter to its tree. Pure.

The grammar is one of ordered choices: the first that fits is taken, and what a repetition took is never given back.
Each place is tried once per rule, so that the work grows with the text's length only.
Source: contract volumes-api §5.2 (errors), §5.3 (grammar).
"""

from __future__ import annotations

import re
from typing import Literal

from moorage.errors import BadRequest
from moorage.rules.filter_literals import LiteralError, unquote
from moorage.rules.filter_tree import All, Any, Collection, Match, Names, Node, Not, Operator, Selector

PREFIX = "failed to create result paginator: failed to read filter expression: "
LENGTH_MAX_BYTES = 16 * 1024
NESTING_MAX = 32

_BLANK = re.compile(r"[ \t\r\n]+")
_IDENTIFIER = re.compile(r"[a-zA-Z][a-zA-Z0-9_/]*")
_DIGITS = re.compile(r"[0-9]+")
_NONZERO = re.compile(r"[1-9][0-9]*")
# Word characters are letters and numbers of any script, and "_"; what else \w takes is sorted out one by one.
_SEGMENT = re.compile(r"[\w\-.~:|]+")
_BLANK_WANT, _SEGMENT_WANT = r"[ \t\r\n]", r"[\pL\pN-_.~:|]"

# What may stand between a selector and a value, and between a selector and nothing, in the order of the choices.
_TAKING: tuple[tuple[tuple[str, ...], Operator], ...] = (
    (("contains",), "in"),
    (("not", "contains"), "in"),
    (("matches",), "matches"),
    (("not", "matches"), "matches"),
)
_ALONE: tuple[tuple[tuple[str, ...], Operator], ...] = (
    (("is", "empty"), "empty"),
    (("is", "not", "empty"), "empty"),
    (("is", "nil"), "nil"),
    (("is", "not", "nil"), "nil"),
)
_INSIDE: tuple[tuple[str, ...], ...] = (("in",), ("not", "in"))

# A rule's finding: what was read and where it ends; None when it does not fit.
_Read = tuple[Node, int] | None


def parse(text: str) -> Node:
    """The tree of a filter. Raises BadRequest with the line, column and offset of the fault, and what was expected."""
    if len(text.encode("utf-8", "surrogatepass")) > LENGTH_MAX_BYTES:
        # The fault stands where the limit was passed, as far as that is worth telling.
        raise BadRequest(
            f"{PREFIX}1:1 (0): the expression is longer than {LENGTH_MAX_BYTES} bytes; "
            "ask for less, or narrow the list with prefix, plugin_id or namespace"
        )
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._far = 0
        self._wanted: set[str] = set()
        self._findings: dict[str, None] = {}
        self._depth = 0
        self._or_read: dict[int, _Read] = {}
        self._selectors: dict[int, tuple[Selector, int] | None] = {}
        self._values: dict[int, tuple[str, int] | None] = {}

    def parse(self) -> Node:
        found = self._enclosed() or self._bare()
        if found is None and not self._findings:
            self._report(self._far, "", f"no match found, expected: {self._list_wanted()}")
        if self._findings or found is None:
            raise BadRequest(PREFIX + "\n".join(self._findings))
        return found

    # -- failures ----------------------------------------------------------------------------------------------------

    def _miss(self, at: int, want: str) -> None:
        if at > self._far:
            self._far = at
            self._wanted.clear()
        if at == self._far:
            self._wanted.add(want)

    def _list_wanted(self) -> str:
        wanted = sorted(self._wanted - {"EOF"}) + (["EOF"] if "EOF" in self._wanted else [])
        return wanted[0] if len(wanted) == 1 else f"{', '.join(wanted[:-1])} or {wanted[-1]}"

    def _report(self, at: int, rule: str, finding: str) -> None:
        named = f'rule "{rule}": ' if rule else ""
        self._findings[f"{self._place(at)}: {named}{finding}"] = None

    def _place(self, at: int) -> str:
        """Line and column from 1 in characters, offset from 0 in bytes. A line break is column 0 of the next line."""
        line = 1 + self._text.count("\n", 0, at + 1)
        column = at - self._text.rfind("\n", 0, at + 1)
        return f"{line}:{column} ({len(self._text[:at].encode('utf-8', 'surrogatepass'))})"

    # -- single tokens: the end of what was read, or -1 ---------------------------------------------------------------

    def _word(self, at: int, word: str) -> int:
        if at >= 0 and self._text.startswith(word, at):
            return at + len(word)
        if at >= 0:
            quoted = word.replace('"', '\\"')
            self._miss(at, f'"{quoted}"')
        return -1

    def _blank(self, at: int) -> int:
        if at < 0:
            return -1
        found = _BLANK.match(self._text, at)
        end = found.end() if found else at
        self._miss(end, _BLANK_WANT)
        return end if found else -1

    def _gap(self, at: int) -> int:
        return max(self._blank(at), at) if at >= 0 else -1

    def _end(self, at: int) -> int:
        if at == len(self._text):
            return at
        if at >= 0:
            self._miss(at, "EOF")
        return -1

    def _identifier(self, at: int) -> int:
        if at < 0:
            return -1
        found = _IDENTIFIER.match(self._text, at)
        if found is None:
            self._miss(at, "[a-zA-Z]")
            return -1
        self._miss(found.end(), "[a-zA-Z0-9_/]")
        return found.end()

    def _words(self, at: int, words: tuple[str, ...]) -> int:
        """Words, each after blanks."""
        for word in words:
            at = self._word(self._blank(at), word)
        return at

    # -- expressions ---------------------------------------------------------------------------------------------------

    def _enclosed(self) -> Node | None:
        inner = self._nested(self._gap(self._word(self._gap(0), "(")))
        if inner and self._end(self._gap(self._word(self._gap(inner[1]), ")"))) >= 0:
            return inner[0]
        return None

    def _bare(self) -> Node | None:
        found = self._or(self._gap(0))
        return found[0] if found and self._end(self._gap(found[1])) >= 0 else None

    def _nested(self, at: int) -> _Read:
        """What stands between parentheses or braces."""
        if at < 0:
            return None
        if at in self._or_read:
            return self._or_read[at]
        if self._depth == NESTING_MAX:
            raise BadRequest(f"{PREFIX}{self._place(at)}: the expression is nested more than {NESTING_MAX} levels deep")
        self._depth += 1
        found = self._or(at)
        self._depth -= 1
        return found

    def _or(self, at: int) -> _Read:
        if at not in self._or_read:
            self._or_read[at] = self._read_or(at)
        return self._or_read[at]

    def _read_or(self, at: int) -> _Read:
        """Parts joined by "or"; a collection may be the last. A dangling "or" is left unread."""
        parts: list[Node] = []
        end = next_at = at
        while next_at >= 0:
            found = self._and(next_at)
            last = found or self._collection(next_at)
            if last is None:
                break
            parts.append(last[0])
            end = last[1]
            if found is None:
                break
            next_at = self._blank(self._words(end, ("or",)))
        if not parts:
            return None
        return (parts[0] if len(parts) == 1 else Any(tuple(parts))), end

    def _and(self, at: int) -> _Read:
        parts: list[Node] = []
        end = next_at = at
        while next_at >= 0 and (found := self._not(next_at)):
            parts.append(found[0])
            end = found[1]
            next_at = self._blank(self._words(end, ("and",)))
        if not parts:
            return None
        return (parts[0] if len(parts) == 1 else All(tuple(parts))), end

    def _not(self, at: int) -> _Read:
        """Any number of "not". When nothing fits after the last, that "not" is tried as a bare word, and so on back."""
        starts = [at]
        while (after := self._blank(self._word(starts[-1], "not"))) >= 0:
            starts.append(after)
        while starts:
            found = self._group(starts.pop())
            if found:
                return (Not(found[0]), found[1]) if len(starts) % 2 else found
        return None

    def _group(self, at: int) -> _Read:
        inner = self._nested(self._gap(self._word(at, "(")))
        if inner is None:
            return self._match(at)
        after = self._gap(inner[1])
        end = self._word(after, ")")
        if end >= 0:
            return inner[0], end
        found = self._match(at)
        self._report(after, "grouping", "Unmatched parentheses")
        return found

    def _collection(self, at: int) -> _Read:
        after = self._blank(self._word(at, "any"))
        is_all = after < 0
        if is_all:
            after = self._blank(self._word(at, "all"))
        selected = self._selector(after)
        if selected is None:
            return None
        named = self._names(self._blank(self._words(selected[1], ("as",))))
        if named is None:
            return None
        body = self._nested(self._gap(self._word(self._gap(named[1]), "{")))
        if body is None:
            return None
        end = self._word(self._gap(body[1]), "}")
        return (Collection(is_all, selected[0], named[0], body[0]), end) if end >= 0 else None

    def _names(self, at: int) -> tuple[Names, int] | None:
        one = self._identifier(at)
        after = self._gap(self._word(self._gap(one), ","))
        two = self._identifier(after)
        if two >= 0:
            return Names(first=self._text[at:one], second=self._text[after:two]), two
        skipped = self._word(after, "_")
        if skipped >= 0:
            return Names(first=self._text[at:one]), skipped
        after = self._gap(self._word(self._gap(self._word(at, "_")), ","))
        two = self._identifier(after)
        if two >= 0:
            return Names(second=self._text[after:two]), two
        return (Names(single=self._text[at:one]), one) if one >= 0 else None

    # -- matches -------------------------------------------------------------------------------------------------------

    def _match(self, at: int) -> _Read:
        return self._selector_first(at) or self._value_first(at)

    def _selector_first(self, at: int) -> _Read:
        selected = self._selector(at)
        if selected is None:
            return None
        selector, after = selected
        operator, is_negated, value_at = self._comparison(after)
        value = self._value(value_at)
        if value is not None:
            return Match(selector, operator, is_negated, value[0]), value[1]
        for words, alone in _ALONE:
            end = self._words(after, words)
            if end >= 0:
                return Match(selector, alone, len(words) == 3), end
        return None

    def _comparison(self, at: int) -> tuple[Operator, bool, int]:
        """An operator that takes a value: which, whether negated, and where its value starts (-1: there is none)."""
        signs: tuple[Literal["==", "!="], ...] = ("==", "!=")
        for sign in signs:
            end = self._gap(self._word(self._gap(at), sign))
            if end >= 0:
                return "equal", sign == "!=", end
        for words, operator in _TAKING:
            end = self._blank(self._words(at, words))
            if end >= 0:
                return operator, len(words) == 2, end
        return "equal", False, -1

    def _value_first(self, at: int) -> _Read:
        value = self._value(at)
        if value is None:
            return None
        for words in _INSIDE:
            after = self._blank(self._words(value[1], words))
            if after < 0:
                continue
            selected = self._selector(after)
            if selected:
                return Match(selected[0], "in", len(words) == 2, value[0]), selected[1]
            self._report(after, "match", "Invalid selector")
            break
        return None

    # -- selectors and values --------------------------------------------------------------------------------------------

    def _selector(self, at: int) -> tuple[Selector, int] | None:
        if at < 0:
            return None
        if at not in self._selectors:
            self._selectors[at] = self._dotted(at) or self._pointer(at)
        return self._selectors[at]

    def _dotted(self, at: int) -> tuple[Selector, int] | None:
        end = self._identifier(at)
        if end < 0:
            return None
        path = [self._text[at:end]]
        while True:
            dot = self._word(end, ".")
            part_end = self._identifier(dot)
            if part_end >= 0:
                path.append(self._text[dot:part_end])
                end = part_end
                continue
            indexed = self._index(end)
            if indexed:
                path.append(indexed[0])
                end = indexed[1]
                continue
            digits = _DIGITS.match(self._text, dot) if dot >= 0 else None
            if digits is None:
                if dot >= 0:
                    self._miss(dot, "[0-9]")
                return Selector(tuple(path)), end
            path.append(digits[0])
            end = digits.end()
            self._miss(end, "[0-9]")

    def _index(self, at: int) -> tuple[str, int] | None:
        opened = self._gap(self._word(at, "["))
        if opened < 0:
            return None
        found = self._string(opened)
        if found is None:
            self._report(opened, "index", "Invalid index")
            return None
        after = self._gap(found[1])
        end = self._word(after, "]")
        if end >= 0:
            return found[0], end
        self._report(after, "index", "Unclosed index expression")
        return None

    def _pointer(self, at: int) -> tuple[Selector, int] | None:
        end = self._word(at, '"')
        parts: list[str] = []
        while (start := self._word(end, "/")) >= 0:
            segment_end = self._segment(start)
            if segment_end == start:
                break
            parts.append(self._text[start:segment_end].replace("~1", "/").replace("~0", "~"))
            end = segment_end
        end = self._word(end, '"')
        return (Selector(tuple(parts) or ("",), is_pointer=True), end) if end >= 0 else None

    def _segment(self, at: int) -> int:
        found = _SEGMENT.match(self._text, at)
        end = found.end() if found else at
        self._miss(end, _SEGMENT_WANT)
        return end

    def _value(self, at: int) -> tuple[str, int] | None:
        if at < 0:
            return None
        if at not in self._values:
            self._values[at] = self._read_value(at)
        return self._values[at]

    def _read_value(self, at: int) -> tuple[str, int] | None:
        selected = self._selector(at)
        if selected:
            selector, end = selected
            # A quoted text that looks like a pointer is compared whole; the recorded server drops its first slash.
            return (self._text[at + 1 : end - 1] if selector.is_pointer else selector.text), end
        return self._number(at) or self._string(at)

    def _number(self, at: int) -> tuple[str, int] | None:
        minus = self._word(at, "-")
        whole = max(minus, at)
        end = self._word(whole, "0")
        if end < 0:
            found = _NONZERO.match(self._text, whole)
            if found is None:
                self._miss(whole, "[1-9]")
                return None
            end = found.end()
            self._miss(end, "[0-9]")
        point = self._word(end, ".")
        fraction = _DIGITS.match(self._text, point) if point >= 0 else None
        if fraction:
            end = fraction.end()
        if point >= 0:
            self._miss(end if fraction else point, "[0-9]")
        if self._blank(end) >= 0 or self._end(end) >= 0 or self._word(end, ")") >= 0:
            return self._text[at:end], end
        self._report(end, "number", "Invalid number literal")
        return None

    def _string(self, at: int) -> tuple[str, int] | None:
        quote = self._text[at : at + 1]
        if quote not in ("`", '"') or not quote:
            self._word(at, "`")
            self._word(at, '"')
            return None
        end = self._text.find(quote, at + 1)
        if end < 0:
            self._report(len(self._text), "string", "Unterminated string literal")
            return None
        inner = self._text[at + 1 : end]
        if quote == "`":
            return inner.replace("\r", ""), end + 1
        try:
            return unquote(inner), end + 1
        except LiteralError as error:
            self._report(at, "string", str(error))
            return "", end + 1
