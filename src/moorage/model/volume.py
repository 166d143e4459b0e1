"""Volumes: what was asked for (``wanted``, the spec) and what is known (``state``, the driver's answers).

Never: I/O, clock. Structs are frozen; a dict or tuple inside is never changed after it was put there.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from moorage.model.ids import NamespaceName, PluginId, VolumeId

# Access modes as the API spells them. A mode is kept as plain text because a register without a controller
# stores any text, as recorded; admission knows only these.
SINGLE_NODE_READER = "single-node-reader-only"
SINGLE_NODE_WRITER = "single-node-writer"
SINGLE_NODE_SINGLE_WRITER = "single-node-single-writer"
SINGLE_NODE_MULTI_WRITER = "single-node-multi-writer"
MULTI_NODE_READER = "multi-node-reader-only"
MULTI_NODE_SINGLE_WRITER = "multi-node-single-writer"
MULTI_NODE_MULTI_WRITER = "multi-node-multi-writer"
ACCESS_MODES = (
    SINGLE_NODE_READER,
    SINGLE_NODE_WRITER,
    SINGLE_NODE_SINGLE_WRITER,
    SINGLE_NODE_MULTI_WRITER,
    MULTI_NODE_READER,
    MULTI_NODE_SINGLE_WRITER,
    MULTI_NODE_MULTI_WRITER,
)
READER_MODES = frozenset({SINGLE_NODE_READER, MULTI_NODE_READER})

FILE_SYSTEM = "file-system"
BLOCK_DEVICE = "block-device"
ATTACHMENT_MODES = (FILE_SYSTEM, BLOCK_DEVICE)


class Secrets(msgspec.Struct, frozen=True, gc=False):
    """A set of secrets, text to text, that never prints.

    ``values`` is what a driver gets. ``repr`` and ``str`` show ``[REDACTED]``.
    """

    values: dict[str, str] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        return "Secrets([REDACTED])" if self.values else "Secrets()"

    __str__ = __repr__

    def overlaid(self, other: Secrets) -> Secrets:
        """These secrets with those of ``other`` put over them."""
        return Secrets({**self.values, **other.values}) if other.values else self


class Capability(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One way a volume may be used: an access mode with an attachment mode."""

    access_mode: str = ""
    attachment_mode: str = ""


class MountOptions(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Filesystem type and mount flags; flags are sensitive and redacted in answers. ``None``: none were given."""

    fs_type: str = ""
    mount_flags: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        flags = "[REDACTED]" if self.mount_flags else self.mount_flags
        return f"MountOptions(fs_type={self.fs_type!r}, mount_flags={flags!r})"


class Topology(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Segments, key to value, that a node or a volume belongs to."""

    segments: dict[str, str] = msgspec.field(default_factory=dict)


class TopologyRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Topologies asked for; a side that was not given is ``None`` and stays ``None`` in answers."""

    required: tuple[Topology, ...] | None = None
    preferred: tuple[Topology, ...] | None = None


class Fault(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What went wrong in the last step.

    ``status`` is the gRPC code's name (``NOT_FOUND``) or, for faults before any call, our error code.
    ``message`` is the text for people, free of secrets. ``final``: nothing is in progress any more.
    ``at_ns``: nanoseconds since the epoch.
    """

    method: str
    status: str
    message: str
    final: bool
    at_ns: int = 0


class Progress(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How far the step in hand has come: tries so far, the last fault, and when the next try is due (ns).

    ``unclear`` counts the answers in a row that leave open what the driver did.
    """

    attempts: int = 0
    unclear: int = 0
    last_fault: Fault | None = None
    next_try_at_ns: int = 0
    since_ns: int = 0


# wanted: the user's intent.  state: the fact at the driver.
#   absent   nothing is known to exist there (a create may have begun)
#   ready    the driver has it, external_id names it
VolumeWanted = Literal["present", "absent"]
VolumeState = Literal["absent", "ready"]


class Volume(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A volume's record. Sizes in bytes, times in nanoseconds since the epoch."""

    id: VolumeId
    namespace: NamespaceName
    plugin_id: PluginId
    name: str = ""
    wanted: VolumeWanted = "present"
    state: VolumeState = "absent"
    external_id: str = ""
    capacity_bytes: int = 0
    requested_min_bytes: int = 0
    requested_max_bytes: int = 0
    capabilities: tuple[Capability, ...] | None = None
    mount_options: MountOptions | None = None
    secrets: Secrets = Secrets()
    parameters: dict[str, str] = msgspec.field(default_factory=dict)
    context: dict[str, str] = msgspec.field(default_factory=dict)
    requested_topologies: TopologyRequest | None = None
    topologies: tuple[Topology, ...] = ()
    clone_id: str = ""
    snapshot_id: str = ""
    # The modes in use now: set by the first claim, cleared with the last.
    access_mode: str = ""
    attachment_mode: str = ""
    # What the client that registered the volume gave as its modes. Shown until the first claim, and without a say in
    # anything: admission and updates look at the modes in use only.
    shown_access_mode: str = ""
    shown_attachment_mode: str = ""
    # What the plugin said last; kept when the plugin is gone.
    provider: str = ""
    provider_version: str = ""
    controller_required: bool = False
    # An expansion that is under way, and the filesystem growth that nodes still owe (0: none).
    expand_min_bytes: int = 0
    expand_max_bytes: int = 0
    node_expansion_bytes: int = 0
    # Secrets given for the deletion in hand; gone when it is refused.
    delete_secrets: Secrets = Secrets()
    created_at_ns: int = 0
    modified_at_ns: int = 0
    progress: Progress = Progress()

    @property
    def key(self) -> tuple[NamespaceName, VolumeId]:
        """(namespace, id): a volume's identity."""
        return (self.namespace, self.id)
