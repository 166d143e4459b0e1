"""What /proc tells about who holds a path, and how it is said."""

from __future__ import annotations

import pytest

from moorage.rules import holders
from moorage.rules.holders import Holder

TABLE = """\
25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
90 25 8:1 /volumes/a /srv/a\\040b rw shared:7 master:3 - ext4 /dev/sda1 rw
91 90 0:50 / /srv/a\\040b/inner rw - tmpfs tmpfs rw
92 25 cut
"""
ID = "0123456789abcdef" * 4


def test_a_mount_table_is_read() -> None:
    lines = holders.parse_mount_table(TABLE)
    assert [(x.mount_id, x.parent_id, x.device, x.root, x.point) for x in lines] == [
        (25, 1, "8:1", "/", "/"),
        (90, 25, "8:1", "/volumes/a", "/srv/a b"),
        (91, 90, "0:50", "/", "/srv/a b/inner"),
    ]
    assert [sorted(x.peers) for x in lines] == [["1"], ["3", "7"], []]
    assert lines[1].shows("8:1", "/volumes")
    assert not lines[1].shows("8:1", "/vol")
    assert not lines[1].shows("8:2", "/volumes")


@pytest.mark.parametrize(
    ("path", "place", "is_so"),
    [("/a", "/a", True), ("/a/b", "/a", True), ("/ab", "/a", False), ("/", "/a", False), ("/a", "/", True)],
)
def test_at_or_below(path: str, place: str, is_so: bool) -> None:
    assert holders.is_at_or_below(path, place) is is_so


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/postgresql.service\n", "postgresql.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/editor.service\n", "editor.service"),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", "session-3.scope"),
        (f"0::/system.slice/docker-{ID}.scope\n", "docker 0123456789ab"),
        (f"0::/machine.slice/libpod-{ID}.scope/container\n", "podman 0123456789ab"),
        (f"0::/kubepods.slice/pod1/cri-containerd-{ID}.scope\n", "containerd 0123456789ab"),
        (f"12:cpu:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/\n", "docker 0123456789ab"),
        ("12:cpu:/x\n1:name=systemd:/system.slice/a.service\n", "a.service"),
        ("0::/\n", ""),
        ("0::/jobs/web\n", "web"),
        ("", ""),
    ],
)
def test_units_and_containers(text: str, unit: str) -> None:
    assert holders.parse_unit(text) == unit


def test_smaller_files() -> None:
    assert holders.parse_mount_id("pos:\t0\nflags:\t02\nmnt_id:\t90\nino:\t5\n") == 90
    assert holders.parse_mount_id("pos:\t0\n") == -1
    maps = (
        "7f00-7f01 r--p 00000000 08:01 5 /srv/a file\n7f01-7f02 r-xp 0 08:01 5 /srv/a file\n"
        "7f02-7f03 rw-p 0 00:00 0 \n7f03-7f04 rw-p 0 00:00 0 [heap]\n"
    )
    assert list(holders.parse_mapped(maps)) == ["/srv/a file"]
    assert holders.parse_started("12 (a) b) S 1 12 12 0 -1 4 9 0 0 0 1 2 0 0 20 0 1 0 4242 99 1") == "4242"
    assert holders.parse_started("") == ""


def test_holders_are_told_in_words() -> None:
    found = [
        Holder(how="open", path="/srv/data/base/1", pid=123, command="postgres", unit="postgresql.service"),
        Holder(how="directory", path="/srv/data/base", pid=123, command="postgres", unit="postgresql.service"),
        Holder(how="mount", path="/srv/data/inner"),
        Holder(how="mount", path="/data", pid=7, command="run", unit="docker 0123456789ab"),
    ]
    assert holders.describe_holders(found) == (
        "in use by pid 123 (postgres, postgresql.service): /srv/data/base/1; a mount at /srv/data/inner; "
        "pid 7 (run, docker 0123456789ab): mounted at /data"
    )


def test_only_some_are_told_and_the_rest_is_counted() -> None:
    found = [Holder(how="open", path="/x", pid=n) for n in range(1, 9)]
    text = holders.describe_holders(found, told_max=2)
    assert text == "in use by pid 1: /x; pid 2: /x; and 6 more"


def test_names_from_outside_cannot_break_a_line_or_an_encoding() -> None:
    found = [Holder(how="open", path="/a\nb\udcff", pid=1, command="x\x1b[31m")]
    text = holders.describe_holders(found)
    assert text == "in use by pid 1 (x\\x1b[31m): /a\\nb\\udcff"
    text.encode()
