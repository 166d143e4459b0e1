"""What every store checks before it takes a transaction, and the key range that a prefix means.

Shapes: the compares and both branches of a ``Store.transact``; a key prefix.
Never:  I/O, clock.
"""

from __future__ import annotations

from collections.abc import Sequence

from moorage.state.store import TXN_OPS_MAX, VALUE_BYTES_MAX, Compare, Op, Put

_LAST_BEFORE_SURROGATES = "\ud7ff"
_FIRST_AFTER_SURROGATES = "\ue000"
_LAST_CHARACTER = "\U0010ffff"


def check_transaction(compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op]) -> int:
    """Accept a transaction within the limits of the contract.

    Returns the bytes of all its keys and values, by which a store bounds its queue.
    Raises ValueError naming the branch, position and limit.
    """
    if len(compares) > TXN_OPS_MAX:
        raise ValueError(f"compares: {len(compares)} in one transaction; at most {TXN_OPS_MAX} are allowed")
    size = 0
    for position, compare in enumerate(compares):
        size += _check_key(compare.key, "compares", position)
        if compare.revision < 0:
            raise ValueError(f"compares[{position}]: revision {compare.revision} is negative; 0 means absent")
    return size + _check_branch("then", then) + _check_branch("otherwise", otherwise)


def _check_branch(name: str, ops: Sequence[Op]) -> int:
    if len(ops) > TXN_OPS_MAX:
        raise ValueError(f"{name}: {len(ops)} operations in one transaction; at most {TXN_OPS_MAX} are allowed")
    size = 0
    for position, op in enumerate(ops):
        size += _check_key(op.key, name, position)
        if isinstance(op, Put):
            if len(op.value) > VALUE_BYTES_MAX:
                raise ValueError(
                    f"{name}[{position}]: value of key {op.key!r} has {len(op.value)} bytes; "
                    f"at most {VALUE_BYTES_MAX} are allowed"
                )
            size += len(op.value)
    if len(ops) > 1 and len({op.key for op in ops}) < len(ops):
        raise ValueError(f"{name}: key {_first_repeated(ops)!r} occurs twice; each key may be changed once")
    return size


def _check_key(key: str, where: str, position: int) -> int:
    if not key:
        raise ValueError(f"{where}[{position}]: the key is empty")
    if key.isascii():
        return len(key)
    try:
        return len(key.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}[{position}]: key {key!r} holds a lone surrogate") from error


def _first_repeated(ops: Sequence[Op]) -> str:
    seen: set[str] = set()
    for op in ops:
        if op.key in seen:
            return op.key
        seen.add(op.key)
    raise AssertionError("no key is repeated")


def check_limit(limit: int) -> None:
    """Accept a listing's limit; ValueError when it is negative."""
    if limit < 0:
        raise ValueError(f"limit {limit} is negative; 0 means all")


def prefix_end(prefix: str) -> str | None:
    """The first key after all keys with this prefix, in byte order; None: there is no such key.

    Code points and UTF-8 bytes sort alike, so this is the last character's successor, with a carry.
    """
    while prefix:
        last = prefix[-1]
        if last == _LAST_BEFORE_SURROGATES:
            return prefix[:-1] + _FIRST_AFTER_SURROGATES
        if last != _LAST_CHARACTER:
            return prefix[:-1] + chr(ord(last) + 1)
        prefix = prefix[:-1]
    return None
