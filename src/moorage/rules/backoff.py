"""When to try again. Pure: the jitter is an argument."""

from __future__ import annotations

import msgspec

from moorage.model.volume import Fault, Progress

FIRST_S = 0.5
CAP_S = 60.0
# After so many failed tries the caller is told what the driver says, and may ask again.
TRIES_TOLD = 3
# Answers that leave open what the driver did. Many drivers give them for everything: after so many in a row they are
# taken for a refusal.
UNCLEAR = frozenset({"INTERNAL", "UNKNOWN"})
UNCLEAR_MAX = 3
_NS = 1_000_000_000


def delay_s(attempts: int, jitter: float, *, first_s: float = FIRST_S, cap_s: float = CAP_S) -> float:
    """Seconds to wait after ``attempts`` failed tries: doubling from ``first_s`` to ``cap_s``, spread over half of
    itself.

    ``jitter`` is in [0, 1). The result is never below half the full delay and never above ``cap_s``.
    """
    full = min(cap_s, first_s * 2.0 ** min(attempts - 1, 16))
    return full * (0.5 + 0.5 * jitter)


def after_fault(progress: Progress, fault: Fault, *, now_ns: int, jitter: float) -> Progress:
    """The progress after one more failed try: the fault kept, the next try set (none for a final fault)."""
    attempts = progress.attempts + 1
    next_try = 0 if fault.final else now_ns + int(delay_s(attempts, jitter) * _NS)
    return Progress(
        attempts=attempts,
        unclear=progress.unclear + 1 if _is_unclear(fault) else 0,
        last_fault=fault,
        next_try_at_ns=next_try,
        since_ns=progress.since_ns or now_ns,
    )


def take_for_refusal(progress: Progress, fault: Fault, *, unclear_max: int = UNCLEAR_MAX) -> Fault:
    """The fault, made final when it is the last of ``unclear_max`` unclear answers in a row; ``progress`` is the one
    before it."""
    is_last = _is_unclear(fault) and progress.unclear + 1 >= unclear_max
    return msgspec.structs.replace(fault, final=True) if is_last else fault


def _is_unclear(fault: Fault) -> bool:
    return not fault.final and fault.status in UNCLEAR


def find_lasting(progress: Progress) -> Fault | None:
    """The fault of a step that has failed TRIES_TOLD times without an end in sight: the caller is told, instead of
    being kept to the deadline; the step is tried on."""
    fault = progress.last_fault
    return fault if fault is not None and not fault.final and progress.attempts >= TRIES_TOLD else None
