"""Look at a volume's paths, and the changes to them that no driver makes: directories, links, binds.

Every function blocks: call it in a worker thread. Failures are OSError with the kernel's errno.
Never: decides what to do; removes a directory that holds anything; removes what was not made here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Container, Mapping

import msgspec

from moorage.agent.ports import Mounter
from moorage.model.ids import ClaimId
from moorage.model.volume import BLOCK_DEVICE
from moorage.rules.mount_records import PathKind, Seen, TargetKind, TargetSeen, Use

replace = msgspec.structs.replace

STACKED_MAX = 8


def look(
    mounter: Mounter,
    *,
    staging_path: str,
    publish_paths: Mapping[ClaimId, str],
    targets: Mapping[ClaimId, str],
) -> First:
    """What is at a disk's paths now, no volume being touched yet. ``targets`` has only usable paths, each of a claim in
    ``publish_paths``."""
    mounted = mounter.find_mounted([staging_path, *publish_paths.values(), *targets.values()])
    ours = {path: look_at(path, is_mounted=path in mounted) for path in (staging_path, *publish_paths.values())}
    return First(staging_path=staging_path, publish_paths=publish_paths, targets=targets, mounted=mounted, ours=ours)


class First(msgspec.Struct, frozen=True, kw_only=True):
    """The first half of a look: what is at a disk's paths as far as no volume tells."""

    staging_path: str
    publish_paths: Mapping[ClaimId, str]
    targets: Mapping[ClaimId, str]
    mounted: frozenset[str]
    ours: Mapping[str, PathKind]

    @property
    def standing(self) -> frozenset[str]:
        """Those of our own paths that show a volume: mounted, or a link."""
        return frozenset(path for path, kind in self.ours.items() if kind in ("mount", "link"))

    def complete(self, mounter: Mounter, dead: Container[str] = ()) -> Seen:
        """The whole look. No volume is touched at ``dead`` paths, which do not answer."""
        ours: dict[str, PathKind] = {p: "broken" if p in dead else k for p, k in self.ours.items()}
        return Seen(
            staging=ours[self.staging_path],
            published={i: ours[p] for i, p in self.publish_paths.items()},
            targets={
                i: _look_at_target(mounter, t, p := self.publish_paths[i], (t in self.mounted, p in dead or t in dead))
                for i, t in self.targets.items()
            },
        )


def look_at(path: str, *, is_mounted: bool) -> PathKind:
    """What is at one path of ours, without touching the volume behind it."""
    if is_mounted:
        return "mount"
    try:
        if stat.S_ISLNK(os.lstat(path).st_mode):
            return "link"
    except (FileNotFoundError, NotADirectoryError):
        return "absent"
    except OSError:
        return "plain"
    return "plain"


def _look_at_target(mounter: Mounter, target: str, publish_path: str, facts: tuple[bool, bool]) -> TargetSeen:
    is_mounted, is_dead = facts
    if is_mounted:
        # What cannot be compared does not show the volume.
        return TargetSeen("mount", not is_dead and mounter.is_same(publish_path, target))
    try:
        mode = os.lstat(target)
        if stat.S_ISLNK(mode.st_mode):
            return TargetSeen("link", os.readlink(target) == publish_path)
        return TargetSeen(_kind_of_target(target, mode))
    except (FileNotFoundError, NotADirectoryError):
        return TargetSeen("absent")
    except OSError:
        return TargetSeen("other")


def _kind_of_target(target: str, mode: os.stat_result) -> TargetKind:
    if stat.S_ISDIR(mode.st_mode):
        with os.scandir(target) as entries:
            return "full_directory" if next(entries, None) is not None else "empty_directory"
    return "empty_file" if stat.S_ISREG(mode.st_mode) and mode.st_size == 0 else "other"


# -- published paths -------------------------------------------------------------------------------------------------


def make_parent(publish_path: str) -> None:
    """Make the directory in which the driver makes the last component."""
    _make_directory(os.path.dirname(publish_path), 0o755)


def clear_published(mounter: Mounter, publish_path: str) -> None:
    """After an unpublish: remove what the driver left, if it is empty. OSError EBUSY where it is still mounted,
    ENOTEMPTY where something was left in it."""
    if mounter.find_mounted([publish_path]):
        raise OSError(errno.EBUSY, "the driver says that it is unpublished, yet it is still mounted", publish_path)
    _remove_empty(publish_path)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(os.path.dirname(publish_path))


def make_staging(staging_path: str) -> None:
    """Make the staging directory."""
    _make_directory(staging_path, 0o700)


def _make_directory(path: str, mode: int) -> None:
    try:
        os.mkdir(path, mode)
    except FileNotFoundError:
        os.makedirs(path, mode, exist_ok=True)
    except FileExistsError:
        if not os.path.isdir(path):
            raise


def clear_staging(mounter: Mounter, staging_path: str) -> None:
    """After an unstage: remove the directory. OSError as ``clear_published``."""
    if mounter.find_mounted([staging_path]):
        raise OSError(errno.EBUSY, "the driver says that it is unstaged, yet it is still mounted", staging_path)
    _remove_empty(staging_path)


def _remove_empty(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        mode = os.lstat(path)
        if stat.S_ISDIR(mode.st_mode):
            os.rmdir(path)
        elif stat.S_ISLNK(mode.st_mode) or (stat.S_ISREG(mode.st_mode) and mode.st_size == 0):
            os.unlink(path)
        else:
            raise OSError(errno.ENOTEMPTY, "the driver left something here that is not empty", path)


# -- consumers' targets ----------------------------------------------------------------------------------------------


def plan_bind(use: Use) -> Use:
    """The use as it goes into the journal before its target is touched: what will be made, what will be replaced."""
    is_link = os.path.islink(use.publish_path)
    missing: list[str] = []
    path = os.path.dirname(use.target) if is_link else use.target
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    made = list(use.made) + [p for p in reversed(missing) if p not in use.made]
    is_replaced = use.is_replaced or (
        is_link and use.target not in made and os.path.isdir(use.target) and not os.path.islink(use.target)
    )
    return replace(use, bind="begun", made=tuple(made), is_replaced=is_replaced)


def make_bind(mounter: Mounter, use: Use) -> None:
    """Make the target show the published volume."""
    source, target = use.publish_path, use.target
    is_link = os.path.islink(source)
    os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
    if is_link:
        if os.path.islink(target) and os.readlink(target) == source:
            return
        if os.path.isdir(target) and not os.path.islink(target):
            os.rmdir(target)
        os.symlink(source, target)
        return
    if use.attachment_mode == BLOCK_DEVICE and not os.path.isdir(source):
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    else:
        os.makedirs(target, mode=0o755, exist_ok=True)
    mounter.bind(source, target, read_only=use.read_only)


def undo_bind(mounter: Mounter, use: Use) -> Use:
    """Take the volume from the target and what was made for it; the use as it is then."""
    target = use.target
    for _ in range(STACKED_MAX):
        if not mounter.find_mounted([target]):
            break
        if use.bind != "done" and not mounter.is_same(use.publish_path, target):
            break
        mounter.unmount(target)
        use = replace(use, bind="begun")
    if os.path.islink(target) and os.readlink(target) == use.publish_path:
        os.unlink(target)
    if use.is_replaced and not os.path.lexists(target):
        os.mkdir(target, mode=0o755)
    for path in reversed(use.made):
        try:
            _remove_empty(path)
        except OSError as e:
            # What others put there since stays, and so does what holds it.
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                raise
            break
    return replace(use, bind="none", made=(), is_replaced=False)
