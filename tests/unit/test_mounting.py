"""The mount table reader, and bind mounts on a real kernel."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage.csi import mounting

TABLE = r"""
22 27 0:21 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
27 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 27 8:1 /srv/a\040b /mnt/with\040space ro,noatime master:1 propagate_from:2 - ext4 /dev/sda1 rw
31 27 0:40 / /data rw - btrfs /dev/sdb rw,subvol=/
32 31 0:40 /v/one /mnt/stack rw - btrfs /dev/sdb rw
33 32 0:40 /v/two /mnt/stack rw - btrfs /dev/sdb rw
34 27 0:41 / /mnt/tab\011and\134back rw - tmpfs none rw
35 27 0:42 /gone//deleted /mnt/gone rw - tmpfs none rw
99 27 0:50 / /cut
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory under which every mount is gone after the test."""
    yield tmp_path
    for mount in reversed(mounting.read_mounts()):
        if mount.target.startswith(f"{tmp_path}/"):
            mounting.unmount(mount.target, lazy=True)


def test_parse_reads_every_field_and_octal_escapes() -> None:
    mounts = mounting.parse_mounts(TABLE)
    assert len(mounts) == 8
    spaced = mounts[2]
    assert (spaced.mount_id, spaced.parent_id, spaced.device) == (30, 27, "8:1")
    assert (spaced.root, spaced.target) == ("/srv/a b", "/mnt/with space")
    assert (spaced.fs_type, spaced.source, spaced.is_read_only) == ("ext4", "/dev/sda1", True)
    assert mounts[6].target == "/mnt/tab\tand\\back"
    assert not mounts[0].is_read_only


def test_find_gives_the_uppermost_of_stacked_mounts() -> None:
    mounts = mounting.parse_mounts(TABLE)
    for order in (mounts, mounts[::-1]):
        found = mounting.find_in(order, "/mnt/stack")
        assert found is not None
        assert found.mount_id == 33
    assert mounting.find_in(mounts, "/mnt") is None
    assert mounting.find_in(mounts, "/mnt/stack/") is not None


def test_origin_is_the_longest_mount_and_the_path_inside_it() -> None:
    mounts = mounting.parse_mounts(TABLE)
    assert mounting.origin_of(mounts, "/data/v/one") == ("0:40", "/v/one")
    assert mounting.origin_of(mounts, "/database/x") == ("8:1", "/database/x")
    assert mounting.origin_of(mounts, "/data") == ("0:40", "/")
    assert [mount.mount_id for mount in mounting.mounts_of(mounts, "/data/v/one")] == [32]
    with pytest.raises(FileNotFoundError):
        mounting.origin_of((), "/data")


def test_unknown_flags_are_named_and_refused(tmp_path: Path) -> None:
    assert mounting.unknown_flags(("ro", "data=journal", "noatime", "discard")) == ("data=journal", "discard")
    with pytest.raises(ValueError, match="'discard'"):
        mounting.bind(tmp_path, tmp_path, flags=("discard",))


def test_resolve_follows_all_symlinks_but_the_last(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert mounting.resolve(tmp_path / "link") == str(tmp_path / "link")
    assert mounting.resolve(tmp_path / "link" / "x") == str(tmp_path / "real" / "x")
    assert mounting.resolve("/") == "/"


def test_can_mount_agrees_with_the_kernel() -> None:
    before = mounting.read_mounts()
    assert mounting.can_mount() == (os.geteuid() == 0 and mounting._has_mount_capability())
    assert mounting.read_mounts() == before


@pytest.mark.root
@pytest.mark.parametrize("name", ["plain", "with space", "tab\tback\\slash", "ünï"])
def test_bind_shows_the_directory_and_unmount_takes_it_away(place: Path, name: str) -> None:
    source, target = place / "source", place / name
    source.mkdir()
    target.mkdir()
    (source / "file").write_text("here")
    assert not mounting.is_mount_point(target)
    mounting.bind(source, target)
    found = mounting.find_mount(target)
    assert found is not None
    assert (found.device, found.root) == mounting.origin_of(mounting.read_mounts(), source)
    assert mounting.mounts_of(mounting.read_mounts(), source) == (found,)
    assert (target / "file").read_text() == "here"
    mounting.unmount(target)
    assert not mounting.is_mount_point(target)
    assert list(target.iterdir()) == []


@pytest.mark.root
@pytest.mark.parametrize("by", ["detached", "mount"])
def test_bind_flags_hold_for_the_target_only(place: Path, by: str) -> None:
    source, target = place / "source", place / "target"
    source.mkdir()
    target.mkdir()
    if by == "mount":
        mounting._bind_by_mount(str(source), str(target), mounting._attributes(("ro", "noexec")), recursive=False)
    else:
        mounting.bind(source, target, flags=("ro", "noexec"))
    found = mounting.find_mount(target)
    assert found is not None
    assert {"ro", "noexec"} <= set(found.options)
    with pytest.raises(OSError) as caught:
        (target / "x").write_text("no")
    assert caught.value.errno == errno.EROFS
    (source / "x").write_text("yes")
    if by == "mount":
        mounting._remount_by_mount(str(target), mounting._attributes(("rw", "nosuid")))
    else:
        mounting.remount(target, flags=("rw", "nosuid"))
    found = mounting.find_mount(target)
    assert found is not None
    assert {"rw", "noexec", "nosuid"} <= set(found.options)
    (target / "y").write_text("yes")


@pytest.mark.root
def test_bind_keeps_the_flags_of_the_mount_it_comes_from(place: Path) -> None:
    for name in ("source", "middle", "target"):
        (place / name).mkdir()
    mounting.bind(place / "source", place / "middle", flags=("nosuid", "nodev", "noatime"))
    mounting.bind(place / "middle", place / "target", flags=("ro", "suid"))
    found = mounting.find_mount(place / "target")
    assert found is not None
    assert {"ro", "nodev", "noatime"} <= set(found.options)
    assert "nosuid" not in found.options


@pytest.mark.root
def test_the_later_of_two_flags_wins(place: Path) -> None:
    (place / "target").mkdir()
    for flags, writable in ((("ro", "rw"), True), (("rw", "ro"), False)):
        mounting.bind(place, place / "target", flags=flags)
        found = mounting.find_mount(place / "target")
        assert found is not None
        assert found.is_read_only is not writable
        mounting.unmount(place / "target")


@pytest.mark.root
def test_unmount_says_busy_and_not_mounted(place: Path) -> None:
    source, target = place / "source", place / "target"
    source.mkdir()
    target.mkdir()
    with pytest.raises(OSError) as caught:
        mounting.unmount(target)
    assert caught.value.errno == errno.EINVAL
    mounting.bind(source, target)
    holder = subprocess.Popen(["sleep", "60"], cwd=target)
    try:
        with pytest.raises(OSError) as caught:
            mounting.unmount(target)
        assert caught.value.errno == errno.EBUSY
        assert mounting.is_mount_point(target)
    finally:
        holder.kill()
        holder.wait()
    mounting.unmount(target)


@pytest.mark.root
def test_a_missing_target_leaves_no_mount(place: Path) -> None:
    before = mounting.read_mounts()
    with pytest.raises(FileNotFoundError) as caught:
        mounting.bind(place, place / "missing", flags=("ro",))
    assert caught.value.filename == str(place / "missing")
    assert mounting.read_mounts() == before


@pytest.mark.root
def test_a_file_can_be_bound_too(place: Path) -> None:
    (place / "source").write_text("text")
    (place / "target").touch()
    mounting.bind(place / "source", place / "target", flags=("ro",))
    assert mounting.is_mount_point(place / "target")
    assert stat.S_ISREG(os.stat(place / "target").st_mode)
    assert (place / "target").read_text() == "text"


def test_one_path_is_looked_at_without_the_table(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/proc")
    (tmp_path / "up").symlink_to("/")
    names = [
        "directory",
        "directory/",
        "file",
        "link",
        "none",
        "none/none",
        "file/none",
        "up/proc",
        "up/proc/self",
        "up",
    ]
    paths = [*(str(tmp_path / name) for name in names), "/", "/proc", "/proc/self/mountinfo"]
    table = mounting.read_mounts()
    assert {p: mounting.is_mounted_at(p) for p in paths} == {p: mounting.find_in(table, p) is not None for p in paths}


@pytest.mark.skipif(not mounting.can_mount(), reason="takes the right to mount")
def test_one_path_is_seen_mounted_once_twice_and_no_more(place: Path) -> None:
    target = place / "target"
    target.mkdir()
    found = []
    for change in (None, mounting.bind, mounting.bind, mounting.unmount, mounting.unmount):
        if change is mounting.bind:
            mounting.bind(place, target)
        elif change is not None:
            mounting.unmount(target)
        found.append(mounting.is_mounted_at(str(target)))
        assert mounting.is_mount_point(target) is found[-1]
    assert found == [False, True, True, True, False]
