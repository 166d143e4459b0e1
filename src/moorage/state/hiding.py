"""What of a record is hidden in its seal, and the record without it. Pure.

Hidden are secrets, mount flags (drivers take passwords in them) and publish contexts. Which fields of which class
hold them is here and nowhere else; a test walks all record classes and fails where one is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from moorage.model.claim import Allocation, Attached, Claim, Mounted
from moorage.model.operation import Operation
from moorage.model.volume import MountOptions, Secrets, Volume

replace = msgspec.structs.replace
R = TypeVar("R", bound=msgspec.Struct)
_NONE = Secrets()


class Hidden(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The hidden part. ``mount_flags``: by the position of the volume request in an allocation, else under 0."""

    secrets: dict[str, str] = {}
    delete_secrets: dict[str, str] = {}
    publish_context: dict[str, str] = {}
    mount_flags: dict[int, tuple[str, ...]] = {}

    def __repr__(self) -> str:
        return "Hidden([REDACTED])"

    __str__ = __repr__


NOTHING = Hidden()


def _cover_flags(options: MountOptions | None) -> MountOptions | None:
    return replace(options, mount_flags=None) if options is not None and options.mount_flags else options


def _flags_of(options: MountOptions | None) -> dict[int, tuple[str, ...]]:
    return {0: options.mount_flags} if options is not None and options.mount_flags else {}


def _put_flags(options: MountOptions | None, hidden: Hidden, position: int = 0) -> MountOptions | None:
    flags = hidden.mount_flags.get(position)
    return replace(options, mount_flags=flags) if options is not None and flags else options


def _split_volume(volume: Volume) -> tuple[Volume, Hidden]:
    flags = _flags_of(volume.mount_options)
    if not (flags or volume.secrets.values or volume.delete_secrets.values):
        return volume, NOTHING
    hidden = Hidden(secrets=volume.secrets.values, delete_secrets=volume.delete_secrets.values, mount_flags=flags)
    covered = _cover_flags(volume.mount_options)
    return replace(volume, secrets=_NONE, delete_secrets=_NONE, mount_options=covered), hidden


def _join_volume(volume: Volume, hidden: Hidden) -> Volume:
    return replace(
        volume,
        secrets=Secrets(hidden.secrets),
        delete_secrets=Secrets(hidden.delete_secrets),
        mount_options=_put_flags(volume.mount_options, hidden),
    )


def _split_operation(operation: Operation) -> tuple[Operation, Hidden]:
    step: Any = operation.step
    secrets: Secrets = getattr(step, "secrets", _NONE)
    flags = _flags_of(getattr(step, "mount_options", None))
    if not (flags or secrets.values):
        return operation, NOTHING
    changes: dict[str, Any] = {"secrets": _NONE} if secrets.values else {}
    if flags:
        changes["mount_options"] = _cover_flags(step.mount_options)
    return replace(operation, step=replace(step, **changes)), Hidden(secrets=secrets.values, mount_flags=flags)


def _join_operation(operation: Operation, hidden: Hidden) -> Operation:
    step: Any = operation.step
    changes: dict[str, Any] = {"secrets": Secrets(hidden.secrets)} if hidden.secrets else {}
    if hidden.mount_flags:
        changes["mount_options"] = _put_flags(step.mount_options, hidden)
    return replace(operation, step=replace(step, **changes))


def _split_claim(claim: Claim) -> tuple[Claim, Hidden]:
    flags = _flags_of(claim.mount_options)
    state = claim.state
    context = state.publish_context if isinstance(state, (Attached, Mounted)) else {}
    if not (flags or context):
        return claim, NOTHING
    if context and isinstance(state, (Attached, Mounted)):
        state = replace(state, publish_context={})
    covered = replace(claim, state=state, mount_options=_cover_flags(claim.mount_options))
    return covered, Hidden(publish_context=context, mount_flags=flags)


def _join_claim(claim: Claim, hidden: Hidden) -> Claim:
    state = claim.state
    if hidden.publish_context and isinstance(state, (Attached, Mounted)):
        state = replace(state, publish_context=hidden.publish_context)
    return replace(claim, state=state, mount_options=_put_flags(claim.mount_options, hidden))


def _split_allocation(allocation: Allocation) -> tuple[Allocation, Hidden]:
    flags = {
        position: request.mount_options.mount_flags
        for position, request in enumerate(allocation.volumes)
        if request.mount_options is not None and request.mount_options.mount_flags
    }
    if not flags:
        return allocation, NOTHING
    covered = tuple(replace(r, mount_options=_cover_flags(r.mount_options)) for r in allocation.volumes)
    return replace(allocation, volumes=covered), Hidden(mount_flags=flags)


def _join_allocation(allocation: Allocation, hidden: Hidden) -> Allocation:
    volumes = tuple(
        replace(request, mount_options=_put_flags(request.mount_options, hidden, position))
        for position, request in enumerate(allocation.volumes)
    )
    return replace(allocation, volumes=volumes)


_SPLITS: Mapping[type, Callable[[Any], tuple[Any, Hidden]]] = {
    Volume: _split_volume,
    Operation: _split_operation,
    Claim: _split_claim,
    Allocation: _split_allocation,
}
_JOINS: Mapping[type, Callable[[Any, Hidden], Any]] = {
    Volume: _join_volume,
    Operation: _join_operation,
    Claim: _join_claim,
    Allocation: _join_allocation,
}
HIDING: frozenset[type] = frozenset(_SPLITS)


def split(record: R) -> tuple[R, Hidden]:
    """The record without what is to be hidden, and that; ``NOTHING`` where there is none."""
    found: tuple[R, Hidden] = _SPLITS[type(record)](record)
    return found


def join(record: R, hidden: Hidden) -> R:
    """The record whole again."""
    whole: R = _JOINS[type(record)](record, hidden)
    return whole
