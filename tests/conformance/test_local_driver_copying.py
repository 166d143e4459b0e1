"""Copies of directory trees: what is kept, on the filesystems at hand."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage.csi.local.copying import SYNCED_SINGLY_MAX, copy_tree

MIB = 1024 * 1024


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    return directory


def test_data_modes_and_times_are_kept(source: Path, tmp_path: Path) -> None:
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "file").write_bytes(b"x" * 100_000)
    (source / "empty").touch()
    os.chmod(source / "a" / "b" / "file", 0o4751)
    os.chmod(source / "a" / "b", 0o2570)
    os.chmod(source, 0o1777)
    os.utime(source / "a" / "b" / "file", ns=(1_000_000_001, 2_000_000_002))
    os.utime(source / "a", ns=(3_000_000_003, 4_000_000_004))
    copied = copy_tree(source, tmp_path / "target")
    target = tmp_path / "target"
    assert (target / "a" / "b" / "file").read_bytes() == b"x" * 100_000
    assert stat.S_IMODE(os.stat(target / "a" / "b" / "file").st_mode) == 0o4751
    assert stat.S_IMODE(os.stat(target / "a" / "b").st_mode) == 0o2570
    assert stat.S_IMODE(os.stat(target).st_mode) == 0o1777
    assert os.stat(target / "a" / "b" / "file").st_mtime_ns == 2_000_000_002
    assert os.stat(target / "a").st_mtime_ns == 4_000_000_004
    assert (copied.files, copied.links, copied.skipped) == (2, 0, 0)


def test_a_sparse_file_stays_sparse(source: Path, tmp_path: Path) -> None:
    with open(source / "sparse", "wb") as file:
        file.write(b"start")
        file.seek(64 * MIB)
        file.write(b"middle")
        file.truncate(256 * MIB)
    copy_tree(source, tmp_path / "target")
    before, after = os.stat(source / "sparse"), os.stat(tmp_path / "target" / "sparse")
    assert after.st_size == 256 * MIB
    assert after.st_blocks <= before.st_blocks + 16 < 1024
    with open(tmp_path / "target" / "sparse", "rb") as file:
        assert file.read(5) == b"start"
        file.seek(64 * MIB)
        assert file.read(7) == b"middle\0"


def test_hard_links_within_the_tree_are_kept(source: Path, tmp_path: Path) -> None:
    (source / "one").write_text("one")
    (source / "deep").mkdir()
    os.link(source / "one", source / "deep" / "two")
    os.link(source / "one", tmp_path / "outside")
    copied = copy_tree(source, tmp_path / "target")
    first, second = os.stat(tmp_path / "target" / "one"), os.stat(tmp_path / "target" / "deep" / "two")
    assert (first.st_ino, first.st_nlink) == (second.st_ino, 2)
    assert first.st_ino != os.stat(source / "one").st_ino
    assert (copied.files, copied.links) == (1, 1)


def test_links_are_not_followed_and_fifos_are_made(source: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (source / "link").symlink_to("../secret")
    (source / "directory").symlink_to("/")
    (source / "dangling").symlink_to("nowhere")
    os.mkfifo(source / "fifo")
    os.chmod(source / "fifo", 0o624)
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(source)
        listener.bind("socket")
        os.chdir(here)
        copied = copy_tree(source, tmp_path / "target")
    target = tmp_path / "target"
    assert {name: os.readlink(target / name) for name in ("link", "directory", "dangling")} == {
        "link": "../secret",
        "directory": "/",
        "dangling": "nowhere",
    }
    assert stat.S_ISFIFO(os.stat(target / "fifo").st_mode)
    assert stat.S_IMODE(os.stat(target / "fifo").st_mode) == 0o624
    assert not (target / "socket").exists()
    assert (copied.files, copied.skipped) == (0, 1)


def test_extended_attributes_are_kept(source: Path, tmp_path: Path) -> None:
    (source / "file").touch()
    (source / "directory").mkdir()
    try:
        os.setxattr(source / "file", "user.colour", b"blue\0green")
    except OSError:
        pytest.skip("the filesystem of the temporary directory has no user attributes")
    os.setxattr(source / "directory", "user.kind", b"d")
    copy_tree(source, tmp_path / "target")
    assert os.getxattr(tmp_path / "target" / "file", "user.colour") == b"blue\0green"
    assert os.getxattr(tmp_path / "target" / "directory", "user.kind") == b"d"


@pytest.mark.root
def test_owners_and_devices_are_kept_by_root(source: Path, tmp_path: Path) -> None:
    (source / "file").touch()
    os.chown(source / "file", 1234, 5678)
    os.chmod(source / "file", 0o6755)
    (source / "link").symlink_to("file")
    os.chown(source / "link", 11, 12, follow_symlinks=False)
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.chown(source, 21, 22)
    copy_tree(source, tmp_path / "target")
    target = tmp_path / "target"
    file, link, device = os.stat(target / "file"), os.lstat(target / "link"), os.stat(target / "null")
    assert (file.st_uid, file.st_gid, stat.S_IMODE(file.st_mode)) == (1234, 5678, 0o6755)
    assert (link.st_uid, link.st_gid) == (11, 12)
    assert (stat.S_ISCHR(device.st_mode), device.st_rdev) == (True, os.makedev(1, 3))
    assert (os.stat(target).st_uid, os.stat(target).st_gid) == (21, 22)


def test_many_files_and_deep_directories(source: Path, tmp_path: Path) -> None:
    count = SYNCED_SINGLY_MAX + 50
    for number in range(count):
        (source / f"{number}").write_text(str(number))
    deep = os.open(source, os.O_RDONLY)
    depth = 100
    for _ in range(depth):
        os.mkdir("d" * 60, dir_fd=deep)  # in all longer than a path may be
        below = os.open("d" * 60, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=deep))
    os.close(deep)
    copied = copy_tree(source, tmp_path / "target")
    assert copied.files == count + 1
    assert (tmp_path / "target" / f"{count - 1}").read_text() == str(count - 1)
    assert sum(1 for _ in os.fwalk(tmp_path / "target")) == depth + 1
    shutil.rmtree(source)
    shutil.rmtree(tmp_path / "target")


def test_no_descriptor_is_left_open(source: Path, tmp_path: Path) -> None:
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "file").write_text("x")
    (source / "z").write_text("x")
    before = sorted(os.listdir("/proc/self/fd"))
    copy_tree(source, tmp_path / "target")
    asked = iter((False, False, False, True))
    with pytest.raises(OSError) as caught:
        copy_tree(source, tmp_path / "stopped", should_stop=lambda: next(asked, True))
    assert caught.value.errno == errno.ECANCELED
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_an_existing_target_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(FileExistsError):
        copy_tree(source, tmp_path / "target")


@pytest.fixture(params=["btrfs", "xfs"])
def sharing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A loop-mounted filesystem whose files can share extents."""
    kind = request.param
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"mkfs.{kind} is not installed")
    image, place = tmp_path / "image", tmp_path / "place"
    with open(image, "wb") as file:
        file.truncate(512 * MIB)
    options = ["-m", "reflink=1"] if kind == "xfs" else []
    subprocess.run([f"mkfs.{kind}", "-q", *options, image], check=True, capture_output=True)
    place.mkdir()
    mounted = subprocess.run(["mount", "-o", "loop", image, place], check=False, capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot loop-mount {kind} here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.root
def test_extents_are_shared_where_the_filesystem_can(sharing: Path) -> None:
    source = sharing / "source"
    source.mkdir()
    (source / "big").write_bytes(os.urandom(64 * MIB))
    with open(source / "sparse", "wb") as file:
        file.truncate(8 * MIB)
    os.sync()
    free_before = os.statvfs(sharing).f_bfree * os.statvfs(sharing).f_frsize
    copied = copy_tree(source, sharing / "target")
    os.sync()
    free_after = os.statvfs(sharing).f_bfree * os.statvfs(sharing).f_frsize
    assert (copied.files, copied.shared_files) == (2, 2)
    assert free_before - free_after < 16 * MIB
    assert (sharing / "target" / "big").read_bytes() == (source / "big").read_bytes()
    assert os.stat(sharing / "target" / "sparse").st_blocks == 0
    with open(sharing / "target" / "big", "r+b") as file:
        file.write(b"changed")
    assert (source / "big").read_bytes()[:7] != b"changed"
