"""The node actions of the agent's table, and the view that a decision is made from. Pure.

An action says all that carrying it out takes, apart from what the journal has. Never: I/O, clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from moorage.model.assignment import ClaimAssignment, MountedReport, MountFailedReport, Report, UnmountedReport
from moorage.model.claim import Claim
from moorage.model.ids import ClaimId
from moorage.model.plugin import NodeInfo
from moorage.model.steps import ExpandNodeVolume, PublishVolume, StageVolume, UnpublishVolume, UnstageVolume
from moorage.rules.mount_records import Disk, Layout, Seen, Staging, TargetSeen, Use

NOBODY = ClaimId("")


class View(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decision needs. ``node`` is None while the driver's capabilities are not known; ``reported`` holds
    the last report of each claim that is on its way to the server or was taken by it. ``may_mount`` False: the server
    may give this node's claims away at any moment, so that nothing new is mounted; what is mounted stays."""

    disk: Disk
    layout: Layout
    boot_id: str
    assignments: tuple[ClaimAssignment, ...] = ()
    uses: tuple[Use, ...] = ()
    staging: Staging | None = None
    seen: Seen = Seen()
    node: NodeInfo | None = None
    reported: Mapping[ClaimId, Report] = {}
    may_mount: bool = True


class _Action(msgspec.Struct, frozen=True, kw_only=True):
    """``claim_id`` is whose failure it would be; empty for a staging that nobody holds any more."""

    claim_id: ClaimId = NOBODY


class Rest(_Action, frozen=True, kw_only=True):
    """Nothing to do until something changes."""


class Begin(_Action, frozen=True, kw_only=True):
    """Put the use (and the staging, where there is none yet) into the journal."""

    use: Use
    staging: Staging | None = None


class Stage(_Action, frozen=True, kw_only=True):
    """NodeStageVolume."""

    step: StageVolume


class Publish(_Action, frozen=True, kw_only=True):
    """NodePublishVolume."""

    step: PublishVolume


class Bind(_Action, frozen=True, kw_only=True):
    """Make the target show the published volume."""


class Unbind(_Action, frozen=True, kw_only=True):
    """Take the volume from the target, and remove what was made to have a target."""


class Unpublish(_Action, frozen=True, kw_only=True):
    """NodeUnpublishVolume; afterwards the use is ``then``: gone for ever, or begun anew."""

    step: UnpublishVolume
    then: Literal["gone", "begun"]


class Unstage(_Action, frozen=True, kw_only=True):
    """NodeUnstageVolume."""

    step: UnstageVolume


class Grow(_Action, frozen=True, kw_only=True):
    """NodeExpandVolume."""

    step: ExpandNodeVolume


class ReportMounted(_Action, frozen=True, kw_only=True):
    """Tell the server where the volume is."""

    report: MountedReport


class ReportUnmounted(_Action, frozen=True, kw_only=True):
    """Tell the server that nothing is left."""

    report: UnmountedReport


class Refuse(_Action, frozen=True, kw_only=True):
    """Tell the server why the target cannot be used."""

    report: MountFailedReport


class Forget(_Action, frozen=True, kw_only=True):
    """Take the use out of the journal."""


REST = Rest()
Action = (
    Rest
    | Begin
    | Stage
    | Publish
    | Bind
    | Unbind
    | Unpublish
    | Unstage
    | Grow
    | ReportMounted
    | ReportUnmounted
    | Refuse
    | Forget
)


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One claim's part of a view; ``assignment`` is None for one unknown to the server, ``use`` where none is begun."""

    view: View
    claim_id: ClaimId
    assignment: ClaimAssignment | None
    use: Use | None

    @property
    def claim(self) -> Claim:
        """The claim; only where there is one."""
        return self.known.claim

    @property
    def known(self) -> ClaimAssignment:
        """The assignment; only where there is one."""
        assert self.assignment is not None
        return self.assignment

    @property
    def begun(self) -> Use:
        """The journal entry; only where there is one."""
        assert self.use is not None
        return self.use

    @property
    def target(self) -> TargetSeen:
        """What was seen at the target."""
        return self.view.seen.targets.get(self.claim_id, TargetSeen())
