"""From the text of a filter to its tree. Pure.

The grammar is one of ordered choices: the first that fits is taken, and what a repetition took is never given back.
What stands between parentheses or braces is read once per place, so that the work grows with the text's length only.
Source: contract volumes-api §5.2 (errors), §5.3 (grammar).
"""

from __future__ import annotations

from moorage.errors import BadRequest
from moorage.rules.filter_scanner import Scanner
from moorage.rules.filter_tree import All, Any, Collection, Match, Names, Node, Not, Operator

PREFIX = "failed to create result paginator: failed to read filter expression: "
LENGTH_MAX_BYTES = 16 * 1024
TERMS_MAX = 512
NESTING_MAX = 32
FINDINGS_MAX = 10

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

# What was read and where it ends; None when it does not fit.
_Read = tuple[Node, int] | None


def parse(text: str, *, bytes_max: int = LENGTH_MAX_BYTES, terms_max: int = TERMS_MAX) -> Node:
    """The tree of a filter. Raises BadRequest with the line, column and offset of the fault, and what was expected."""
    if len(text.encode("utf-8", "surrogatepass")) > bytes_max:
        # The fault stands where the limit was passed, as far as that is worth telling.
        raise _over_limit(f"is longer than {bytes_max} bytes", "filter_bytes")
    found = _Parser(text).parse()
    if count_terms(found) > terms_max:
        raise _over_limit(f"has more than {terms_max} comparisons", "filter_terms")
    return found


def _over_limit(what: str, limit: str) -> BadRequest:
    advice = "ask for less, or narrow the list with prefix, plugin_id or namespace"
    return BadRequest(f"{PREFIX}1:1 (0): the expression {what}; {advice}", code="over_limit", limit=limit)


def count_terms(node: Node) -> int:
    """How many comparisons a filter has; it is nested within limits, so this does not go deep."""
    match node:
        case Match():
            return 1
        case Not():
            return count_terms(node.operand)
        case All() | Any():
            return sum(map(count_terms, node.parts))
        case Collection():
            return count_terms(node.body)


class _Parser(Scanner):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._or_read: dict[int, _Read] = {}

    def parse(self) -> Node:
        found = self._enclosed() or self._bare()
        if found is None and not self.findings:
            self.report(self.far, "", f"no match found, expected: {self.list_wanted()}")
        if self.findings or found is None:
            raise BadRequest(PREFIX + "\n".join(list(self.findings)[:FINDINGS_MAX]))
        return found

    # -- expressions ---------------------------------------------------------------------------------------------------

    def _enclosed(self) -> Node | None:
        inner = self._nested(self.gap(self.word(self.gap(0), "(")))
        if inner and self.end(self.gap(self.word(self.gap(inner[1]), ")"))) >= 0:
            return inner[0]
        return None

    def _bare(self) -> Node | None:
        found = self._or(self.gap(0))
        return found[0] if found and self.end(self.gap(found[1])) >= 0 else None

    def _nested(self, at: int) -> _Read:
        """What stands between parentheses or braces."""
        if at < 0:
            return None
        if at in self._or_read:
            return self._or_read[at]
        if self._depth == NESTING_MAX:
            raise BadRequest(f"{PREFIX}{self.place(at)}: the expression is nested more than {NESTING_MAX} levels deep")
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
            next_at = self.blank(self.words(end, ("or",)))
        if not parts:
            return None
        return (parts[0] if len(parts) == 1 else Any(tuple(parts))), end

    def _and(self, at: int) -> _Read:
        parts: list[Node] = []
        end = next_at = at
        while next_at >= 0 and (found := self._not(next_at)):
            parts.append(found[0])
            end = found[1]
            next_at = self.blank(self.words(end, ("and",)))
        if not parts:
            return None
        return (parts[0] if len(parts) == 1 else All(tuple(parts))), end

    def _not(self, at: int) -> _Read:
        """Any number of "not". When nothing fits after the last, that "not" is tried as a bare word, and so on back."""
        starts = [at]
        while (after := self.blank(self.word(starts[-1], "not"))) >= 0:
            starts.append(after)
        while starts:
            found = self._group(starts.pop())
            if found:
                return (Not(found[0]), found[1]) if len(starts) % 2 else found
        return None

    def _group(self, at: int) -> _Read:
        inner = self._nested(self.gap(self.word(at, "(")))
        if inner is None:
            return self._match(at)
        after = self.gap(inner[1])
        end = self.word(after, ")")
        if end >= 0:
            return inner[0], end
        found = self._match(at)
        self.report(after, "grouping", "Unmatched parentheses")
        return found

    def _collection(self, at: int) -> _Read:
        after = self.blank(self.word(at, "any"))
        is_all = after < 0
        if is_all:
            after = self.blank(self.word(at, "all"))
        selected = self.selector(after)
        if selected is None:
            return None
        named = self._names(self.blank(self.words(selected[1], ("as",))))
        if named is None:
            return None
        body = self._nested(self.gap(self.word(self.gap(named[1]), "{")))
        if body is None:
            return None
        end = self.word(self.gap(body[1]), "}")
        return (Collection(is_all, selected[0], named[0], body[0]), end) if end >= 0 else None

    def _names(self, at: int) -> tuple[Names, int] | None:
        one = self.identifier(at)
        after = self.gap(self.word(self.gap(one), ","))
        two = self.identifier(after)
        if two >= 0:
            return Names(first=self.text[at:one], second=self.text[after:two]), two
        skipped = self.word(after, "_")
        if skipped >= 0:
            return Names(first=self.text[at:one]), skipped
        after = self.gap(self.word(self.gap(self.word(at, "_")), ","))
        two = self.identifier(after)
        if two >= 0:
            return Names(second=self.text[after:two]), two
        return (Names(single=self.text[at:one]), one) if one >= 0 else None

    # -- matches -------------------------------------------------------------------------------------------------------

    def _match(self, at: int) -> _Read:
        return self._selector_first(at) or self._value_first(at)

    def _selector_first(self, at: int) -> _Read:
        selected = self.selector(at)
        if selected is None:
            return None
        selector, after = selected
        operator, is_negated, value_at = self._comparison(after)
        value = self.value(value_at)
        if value is not None:
            return Match(selector, operator, is_negated, value[0]), value[1]
        for words, alone in _ALONE:
            end = self.words(after, words)
            if end >= 0:
                return Match(selector, alone, len(words) == 3), end
        return None

    def _comparison(self, at: int) -> tuple[Operator, bool, int]:
        """An operator that takes a value: which, whether negated, and where its value starts (-1: there is none)."""
        for sign in ("==", "!="):
            end = self.gap(self.word(self.gap(at), sign))
            if end >= 0:
                return "equal", sign == "!=", end
        for words, operator in _TAKING:
            end = self.blank(self.words(at, words))
            if end >= 0:
                return operator, len(words) == 2, end
        return "equal", False, -1

    def _value_first(self, at: int) -> _Read:
        value = self.value(at)
        if value is None:
            return None
        for words in _INSIDE:
            after = self.blank(self.words(value[1], words))
            if after < 0:
                continue
            selected = self.selector(after)
            if selected:
                return Match(selected[0], "in", len(words) == 2, value[0]), selected[1]
            self.report(after, "match", "Invalid selector")
            break
        return None
