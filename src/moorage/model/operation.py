"""Operations: driver calls that belong to no volume's own state (snapshots, listings, validation), as records.

An operation is on record before the call and keeps its answer until its caller has read it or its time is over, so
that a crash between the two repeats the same call and never another one. Never: I/O, clock.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from moorage.model.ids import OperationId, PluginId
from moorage.model.steps import ControllerStep, Outcome
from moorage.model.volume import Progress

OperationState = Literal["pending", "done"]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One call through a plugin's controller. ``serial_key``: calls with the same key run one at a time, or empty.

    ``expires_at_ns``: after it the record goes, answered or not (a pending one has then nobody waiting for it).
    """

    id: OperationId
    plugin_id: PluginId
    step: ControllerStep
    serial_key: str = ""
    state: OperationState = "pending"
    outcome: Outcome | None = None
    created_at_ns: int = 0
    expires_at_ns: int = 0
    progress: Progress = Progress()
