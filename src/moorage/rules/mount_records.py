"""What an agent remembers about mounts, where they live, and what a consumer's target may be. Pure.

The journal has a ``Use`` for every claim that an agent began to mount and a ``Staging`` for every disk that it began
to stage. Each is on disk before the first driver call and goes after the last, so that a crash between the two loses
nothing. Never: I/O, clock.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal

import msgspec

from moorage.errors import BadRequest
from moorage.model.ids import ClaimId, PluginId

PATH_BYTES_MAX = 127
TARGET_BYTES_MAX = 1024

# What is seen at a path of ours. broken: there, and every look at it fails (a dead FUSE daemon, a stale handle).
PathKind = Literal["absent", "plain", "mount", "link", "broken"]
# What is seen at a consumer's target. other: a file with content, a device, a socket, an unreadable thing.
TargetKind = Literal["absent", "empty_directory", "full_directory", "empty_file", "other", "link", "mount"]

# begun  calls may have been made, their result is not known: repeat them, or undo them
# done   published (staged), and ``seen_as`` says what was seen then
# foul   something is there that must be undone before anything else
# gone   unpublished; the entry stays until the server knows
UsePhase = Literal["begun", "done", "foul", "gone"]
StagingPhase = Literal["begun", "done", "foul"]
BindPhase = Literal["none", "begun", "done"]


class Disk(msgspec.Struct, frozen=True):
    """What a driver calls a volume: all records of one (plugin, external ID) share one staging and one worker."""

    plugin_id: PluginId
    external_id: str


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """Journal entry of a claim's mount; undo uses these values, never recomputed ones.

    ``made``: what we made to have a target, outermost first, to be removed at release. ``is_replaced``: an empty
    directory stood where our link is. ``boot_id``: of the boot in which ``phase`` was written.
    """

    claim_id: ClaimId
    plugin_id: PluginId
    external_id: str
    publish_path: str
    staging_path: str = ""
    target: str = ""
    attachment_mode: str = ""
    read_only: bool = False
    boot_id: str = ""
    phase: UsePhase = "begun"
    seen_as: PathKind = "absent"
    bind: BindPhase = "none"
    made: tuple[str, ...] = ()
    is_replaced: bool = False
    grown_bytes: int = 0
    version: int = 1

    @property
    def disk(self) -> Disk:
        """The disk used."""
        return Disk(self.plugin_id, self.external_id)


class Staging(msgspec.Struct, frozen=True, kw_only=True):
    """Journal entry of a disk's staging."""

    plugin_id: PluginId
    external_id: str
    staging_path: str
    boot_id: str = ""
    phase: StagingPhase = "begun"
    seen_as: PathKind = "absent"
    version: int = 1

    @property
    def disk(self) -> Disk:
        """The disk staged."""
        return Disk(self.plugin_id, self.external_id)


class TargetSeen(msgspec.Struct, frozen=True):
    """A look at a consumer's target. ``is_same``: it shows what the publish path shows."""

    kind: TargetKind = "absent"
    is_same: bool = False


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A look at the paths of one disk. A claim that is missing has nothing there."""

    staging: PathKind = "absent"
    published: dict[ClaimId, PathKind] = {}
    targets: dict[ClaimId, TargetSeen] = {}


class Layout(msgspec.Struct, frozen=True):
    """Where things are below an agent's state directory: ``s`` stagings, ``p`` publications, ``u`` the journal, ``t``
    its spare files.

    Names are hashes, because drivers pass these paths on to tools with small limits.
    Source: CSI spec "Size Limits" (128 bytes a string).
    """

    state_dir: str

    def staging(self, disk: Disk) -> str:
        """The one staging path of a disk."""
        return f"{self.state_dir}/s/{_name(disk.plugin_id, disk.external_id)}"

    def publish(self, claim_id: ClaimId) -> str:
        """Where a claim is published; the driver makes the last component."""
        return f"{self.state_dir}/p/{_name(claim_id)}/mount"

    def use_file(self, claim_id: ClaimId) -> str:
        """The journal entry of a claim."""
        return f"{self.state_dir}/u/{_name(claim_id)}.json"

    def staging_file(self, disk: Disk) -> str:
        """The journal entry of a disk's staging."""
        return f"{self.state_dir}/u/{_name(disk.plugin_id, disk.external_id)}.stage.json"


def _name(*parts: str) -> str:
    return blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()


def check_state_dir(path: str) -> Layout:
    """The layout below an absolute state directory; BadRequest where its paths would be too long for drivers."""
    if not path.startswith("/") or path == "/":
        raise BadRequest(f"state directory {path!r} is not an absolute path below /")
    layout = Layout(path.rstrip("/"))
    longest = len(layout.publish(ClaimId("")).encode("utf-8", "surrogateescape"))
    if longest > PATH_BYTES_MAX:
        over = longest - PATH_BYTES_MAX
        raise BadRequest(
            f"state directory {path!r} is {over} bytes too long: drivers get paths below it, "
            f"which may have {PATH_BYTES_MAX} bytes; choose a shorter one"
        )
    return layout


def check_target(target: str, layout: Layout) -> None:
    """Accept a path at which a consumer wants its volume; BadRequest naming the path and what is wrong with it."""
    parts = target.split("/")
    if not target.startswith("/"):
        why = "it must be an absolute path"
    elif "\0" in target:
        why = "it holds a NUL character"
    elif ".." in parts or "." in parts:
        why = "it must not hold . or .. as a component"
    elif not target.strip("/"):
        why = "the root directory cannot be replaced"
    elif "" in parts[1:]:
        why = "it must not hold // or end in /"
    elif len(target.encode("utf-8", "surrogatepass")) > TARGET_BYTES_MAX:
        why = f"it is longer than {TARGET_BYTES_MAX} bytes"
    elif f"{target}/".startswith(f"{layout.state_dir}/") or layout.state_dir.startswith(f"{target}/"):
        why = "it overlaps the agent's own state directory"
    else:
        return
    raise BadRequest(f"Target {target!r} cannot be used: {why}")


_UNUSABLE: dict[TargetKind, str] = {
    "mount": "another mount is there; choose another path or unmount it",
    "link": "a symlink is there that is not ours; choose another path or remove it",
    "full_directory": "the directory is not empty, and a mount would hide what is in it",
    "other": "something is there that is neither a directory nor an empty file",
}


def why_target_unusable(target: str, kind: TargetKind, *, layout: Layout, is_block: bool) -> str:
    """Why a consumer's target cannot be used where ``kind`` is seen at it; empty if it can."""
    try:
        check_target(target, layout)
    except BadRequest as e:
        return e.message
    why = _UNUSABLE.get(kind, "")
    if kind == "empty_file" and not is_block:
        why = "a file is there, and a filesystem needs a directory"
    if kind == "empty_directory" and is_block:
        why = "a directory is there, and a block device needs a file"
    return f"Target {target!r} cannot be used: {why}" if why else ""
