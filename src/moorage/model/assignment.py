"""What a server hands to an agent and what the agent reports back; sent as JSON in these very structs.

Pages (all under ``/v1/node/:id``): ``PUT join`` (the agent's secret becomes the node's), ``PUT register`` and ``PUT
plugins`` (the node and its driver instances),
``GET steps`` and ``GET claims`` (standing queries with ``index`` and ``wait``), ``PUT reports`` (outcomes).
A report carries the revision of the record it acted on: one for an older revision is ignored. Never: I/O, clock.
"""

from __future__ import annotations

import msgspec

from moorage.model.claim import Claim
from moorage.model.identity import JoinedBy
from moorage.model.ids import ClaimId, PluginId, Revision
from moorage.model.node import Node
from moorage.model.plugin import Instance
from moorage.model.steps import ControllerStep, Outcome
from moorage.model.volume import Fault, MountOptions, Secrets


class NodeJoin(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``PUT join``. The agent's own secret, which it has chosen and kept before, is the request's token."""

    name: str
    join_token: str = ""


class NodeJoined(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to ``PUT join``: what let the node in, now or when it first joined."""

    joined_by: JoinedBy


class NodeRegistration(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``PUT register``.

    ``clean_by``: nothing is mounted here for a claim that is not this node's own by the list of claims that named this
    ``node_revision``; 0: not looked. A node that the server had lost is taken back only clean by the newest list.
    ``is_empty``: this agent has begun no mount since the host booted.
    ``epoch``: the run of the server whose steps this agent begins; it has dropped those of an earlier one. 0: of none
    yet; None: the agent tells nothing of that. ``calling``: the serial keys that it is at a controller call of.
    """

    node: Node
    clean_by: int = 0
    is_empty: bool = False
    epoch: int | None = None
    calling: tuple[str, ...] = ()


class NodeRegistered(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to ``PUT register``: how long the node may stay silent, and how long after that a self-fencing agent has
    to let go of everything; both in seconds.

    ``node_revision``: the modify revision of the node's record now. A node just taken (back) mounts by lists of
    claims from then on only: claims may have been freed in the same step. ``epoch``: this run of the server, as in
    ``StepAssignments``; an agent that has begun steps of another drops them and registers again.
    """

    lease_s: float
    grace_s: float = 30.0
    node_revision: int = 0
    epoch: int = 0


class PluginReport(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``PUT plugins``: every driver instance of the node by plugin ID; one that is missing is gone.

    ``calling``: the serial keys that the node is at a controller call of; it begins none of a driver that is told sick.
    ``after``: the report before this one, by the server's count (``PluginsReported``), or the server's run where none
    was taken yet; None: the agent does not count, and its report is taken as it comes.
    """

    instances: dict[PluginId, Instance]
    calling: tuple[str, ...] = ()
    after: int | None = None


class PluginsReported(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to ``PUT plugins``. ``count``: that of the report which was taken last. ``is_taken``: it is this one; if
    not, it does not come after that one as it says: it was overtaken, or the agent has not heard of it."""

    count: int = 0
    is_taken: bool = True


class StepAssignment(msgspec.Struct, frozen=True, kw_only=True):
    """A controller call for this node to make.

    ``key`` names the record it comes from (a report repeats it), ``revision`` that record's modify revision.
    Assignments with the same ``serial_key`` run one at a time, in order. ``timeout_s``: the call's own deadline.
    The same (key, revision) may be handed out again: an agent that is at it does not start it twice.
    """

    key: str
    revision: Revision
    plugin_id: PluginId
    serial_key: str
    step: ControllerStep
    timeout_s: float


class StepAssignments(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to ``GET steps``: all calls that are due for this node now; ``index`` goes into the next query.

    ``epoch`` names the server's run that counts these indexes. A query that gives it back with ``index`` may be
    answered by what is new since then: ``is_delta``, with the keys of the calls that are ``gone``.
    """

    index: int
    steps: tuple[StepAssignment, ...]
    epoch: int = 0
    is_delta: bool = False
    gone: tuple[str, ...] = ()


class ClaimAssignment(msgspec.Struct, frozen=True, kw_only=True):
    """A claim on this node with all that mounting it takes.

    The agent acts on ``claim.wanted`` and ``claim.state``: held and attached → mount; held and mounted → see that it
    is; released and attached or mounted → unmount. Others are shown for the count of uses and need no action.
    ``grow_to_bytes`` > 0: the filesystem must have grown to that size (NodeExpandVolume) once published.
    """

    claim: Claim
    revision: Revision
    context: dict[str, str] = {}
    mount_options: MountOptions | None = None
    secrets: Secrets = Secrets()
    grow_to_bytes: int = 0
    timeout_s: float = 120.0


class ClaimAssignments(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to ``GET claims``: every claim of this node; ``index`` goes into the next query.

    ``node_revision``: the modify revision of the node's record with which the list was read (0: no such record). It
    moves with everything that takes claims from a lost node. ``epoch``, ``is_delta``, ``gone``: as in StepAssignments.
    """

    index: int
    claims: tuple[ClaimAssignment, ...]
    node_revision: int = 0
    epoch: int = 0
    is_delta: bool = False
    gone: tuple[ClaimId, ...] = ()


class StepReport(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    """What came of a StepAssignment. ``took_s``: how long the driver's call took, with the
    wait for its turn; 0: not told."""

    key: str
    revision: Revision
    outcome: Outcome
    took_s: float = 0.0


class MountedReport(msgspec.Struct, frozen=True, kw_only=True, tag="mounted"):
    """The claim is published; the fields are those of ``claim.Mounted``. Also sent when the filesystem has grown."""

    claim_id: ClaimId
    revision: Revision
    path: str
    publish_path: str
    staging_path: str = ""
    grown_bytes: int = 0


class UnmountedReport(msgspec.Struct, frozen=True, kw_only=True, tag="unmounted"):
    """Nothing of the claim is left on the node."""

    claim_id: ClaimId
    revision: Revision


class MountFailedReport(msgspec.Struct, frozen=True, kw_only=True, tag="mount_failed"):
    """A node step failed; ``fault.final`` means that repeating the same call cannot help."""

    claim_id: ClaimId
    revision: Revision
    fault: Fault


Report = StepReport | MountedReport | UnmountedReport | MountFailedReport


class Reports(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``PUT reports``."""

    reports: tuple[Report, ...]
