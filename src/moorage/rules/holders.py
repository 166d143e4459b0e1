"""Who holds a path: read what /proc tells about processes and mounts, and say it in words. Pure.

Shapes: the texts of ``/proc/PID/mountinfo``, ``cgroup``, ``maps`` and ``fdinfo/N``, as the kernel wrote them.
Never:  reads a file; decides whether a release waits (``agent.acts`` does).
Source: proc_pid_mountinfo(5), cgroups(7), proc_pid_maps(5), proc_pid_fdinfo(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

HOLDERS_TOLD_MAX = 5

# open: a file or directory; directory: it works there; root: its root; program, mapped: runs or maps a file of it;
# mount: something is mounted on it, or it is mounted elsewhere too.
How = Literal["open", "directory", "root", "program", "mapped", "mount"]

_OCTAL = re.compile(r"\\([0-7]{3})")
_CONTAINER = re.compile(
    r"(docker|libpod|crio|cri-containerd|containerd|nerdctl|lxc)[-/:.]+([0-9a-f]{12,64})(?![0-9a-f])"
)
_UNIT = re.compile(r"[^/]+\.(?:service|scope|socket|mount|slice)")
_RUNTIMES = {"libpod": "podman", "cri-containerd": "containerd"}
_ID_CHARS = 12


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Something that uses a path. ``pid`` 0: no process, a mount. ``unit``: its unit or container. ``started``: when
    the process began, in clock ticks since the boot; with the pid it names one process for ever."""

    how: How
    path: str
    pid: int = 0
    command: str = ""
    unit: str = ""
    started: str = ""


class MountLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a mount table. ``peers``: the propagation groups that it is in or receives from."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    point: str
    peers: frozenset[str] = frozenset()

    def shows(self, device: str, root: str) -> bool:
        """Whether it is a mount of this directory of this filesystem, or of something below it."""
        return self.device == device and is_at_or_below(self.root, root)


def is_at_or_below(path: str, place: str) -> bool:
    """Whether ``path`` is ``place`` or lies below it."""
    return path == place or path.startswith(place if place.endswith("/") else f"{place}/")


def parse_mount_table(text: str) -> tuple[MountLine, ...]:
    """The lines of a mountinfo file; one that is cut short is left out."""
    lines = []
    for line in text.splitlines():
        before, separator, _ = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 6:
            continue
        tags = (tag.partition(":") for tag in fields[6:])
        lines.append(
            MountLine(
                mount_id=int(fields[0]),
                parent_id=int(fields[1]),
                device=fields[2],
                root=_unescape(fields[3]),
                point=_unescape(fields[4]),
                peers=frozenset(number for name, _, number in tags if name in ("shared", "master")),
            )
        )
    return tuple(lines)


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def parse_unit(text: str) -> str:
    """The unit or container that a ``cgroup`` file names: ``postgresql.service``, ``docker 0123456789ab``; or empty."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path not in ("", "/"):
            paths.setdefault("0" if number == "0" else controllers, path)
    path = paths.get("0") or paths.get("name=systemd") or next(iter(paths.values()), "")
    container = _CONTAINER.search(path)
    if container:
        return f"{_RUNTIMES.get(container[1], container[1])} {container[2][:_ID_CHARS]}"
    units = [part for part in path.split("/") if _UNIT.fullmatch(part) and not part.endswith(".slice")]
    if units:
        return units[-1]
    return path.rstrip("/").rpartition("/")[2]


def parse_mount_id(text: str) -> int:
    """The mount that an open file is on, from its ``fdinfo``; -1 where it does not say."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "mnt_id" and value.strip().isdigit():
            return int(value)
    return -1


def parse_mapped(text: str) -> Iterator[str]:
    """Paths of the files that a process maps, each once."""
    seen = set()
    for line in text.splitlines():
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[5].startswith("/") and fields[5] not in seen:
            seen.add(fields[5])
            yield _unescape(fields[5])


def parse_started(text: str) -> str:
    """When a process began, in ticks since the boot, from its ``stat``; empty where that is cut short."""
    fields = text.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def describe_holders(holders: Iterable[Holder], *, told_max: int = HOLDERS_TOLD_MAX) -> str:
    """``in use by pid 123 (postgres, postgresql.service): /srv/data/base; …``: a process once, at most ``told_max``."""
    chosen: dict[tuple[int, str], Holder] = {}
    for holder in holders:
        key = (holder.pid, "" if holder.pid else holder.path)
        chosen.setdefault(key, holder)
    told = [_describe(holder) for holder in list(chosen.values())[:told_max]]
    more = len(chosen) - len(told)
    return f"in use by {'; '.join(told)}" + (f"; and {more} more" if more else "")


def _describe(holder: Holder) -> str:
    path = make_printable(holder.path)
    if not holder.pid:
        return f"a mount at {path}"
    names = ", ".join(make_printable(name) for name in (holder.command, holder.unit) if name)
    where = f"mounted at {path}" if holder.how == "mount" else path
    return f"pid {holder.pid} ({names}): {where}" if names else f"pid {holder.pid}: {where}"


def make_printable(text: str) -> str:
    """A name from the outside as text that any log and any JSON can carry."""
    safe = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in safe)
