"""Find who uses a volume's paths, by a look at /proc, so that nothing is unmounted under a consumer.

What counts, in the agent's own mount namespace: an open file, a working directory, a root, a running program or a
mapped file on the mount at the path, and what is mounted below it. In other namespaces (containers, units with a
mount table of their own): the same on any mount of the volume that is tied to ours by propagation and, when this is
the disk's last use here, on any mount of it at all; and such a mount itself, where somebody made it on purpose.
Files are told by the mount they are on, not by name alone, so that another use of the same disk is not mistaken.
A path that is a link has no mount of its own: there, everything below what it leads to counts, at the last use only.

Limits: processes that this user may not look into are not seen; ``mapped`` is left out where the kernel does not
answer in time (a process stuck with its memory map locked must not keep all volumes of the node).
Never:  touches the volume itself: a link is read, never followed, so that a dead mount does not hang this.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import anyio
import msgspec
import structlog

from moorage.agent.lane import Hops, Lane
from moorage.csi.mounting import resolve
from moorage.errors import DeadlineExceeded
from moorage.rules import holders as rules
from moorage.rules.holders import Holder, How, MountLine, is_at_or_below

log = structlog.get_logger()
PROC = Path("/proc")
INIT = 1
_LINKS: tuple[tuple[str, How], ...] = (("cwd", "directory"), ("root", "root"), ("exe", "program"))


class Question(msgspec.Struct, frozen=True):
    """Who uses these paths? ``is_last``: nothing else on this node uses the disk behind them."""

    paths: tuple[str, ...]
    is_last: bool = False


Scan = Callable[[Sequence[Question]], list[tuple[Holder, ...]]]


class _Area(msgspec.Struct, kw_only=True):
    """A question as one mount namespace sees it: mounts by ID, where they are, and trees without a mount."""

    ids: set[int] = msgspec.field(default_factory=set)
    places: list[str] = msgspec.field(default_factory=list)
    trees: list[str] = msgspec.field(default_factory=list)
    on_purpose: list[str] = msgspec.field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not self.ids and not self.trees


class _Origins(msgspec.Struct, kw_only=True):
    """What our paths show: (device, root), the propagation groups, and what our mounts stand on."""

    shown: set[tuple[str, str]] = msgspec.field(default_factory=set)
    peers: set[str] = msgspec.field(default_factory=set)
    points: set[str] = msgspec.field(default_factory=set)
    parents: set[tuple[str, str]] = msgspec.field(default_factory=set)


# -- the areas -------------------------------------------------------------------------------------------------------


def _look_here(question: Question, table: Sequence[MountLine]) -> tuple[_Area, _Origins, list[Holder]]:
    area, origins, nested = _Area(), _Origins(), list[Holder]()
    by_id = {line.mount_id: line for line in table}
    for path in question.paths:
        place = resolve(path)
        at = [line for line in table if line.point == place]
        for line in at:
            origins.shown.add((line.device, line.root))
            origins.peers |= line.peers
            parent = by_id.get(line.parent_id)
            if parent is not None:
                origins.parents.add((parent.device, parent.root))
        if at:
            below = [line for line in table if line.point != place and is_at_or_below(line.point, place)]
            area.ids |= {line.mount_id for line in [*at, *below]}
            area.places.append(place)
            origins.points.add(place)
            nested += [Holder(how="mount", path=line.point) for line in below]
        elif question.is_last and os.path.islink(path):
            tree = os.path.join(os.path.dirname(place), os.readlink(path))
            area.trees.append(os.path.normpath(tree))
    return area, origins, nested


def _look_there(question: Question, origins: _Origins, table: Sequence[MountLine]) -> _Area:
    """The area in another namespace. A mount that came with a copy of what ours stands on was not made on purpose."""
    area = _Area()
    by_id = {line.mount_id: line for line in table}
    for line in table:
        is_tied = bool(line.peers & origins.peers)
        if not any(line.shows(*shown) for shown in origins.shown) or not (is_tied or question.is_last):
            continue
        area.ids.add(line.mount_id)
        area.places.append(line.point)
        parent = by_id.get(line.parent_id)
        is_copied = parent is not None and (parent.device, parent.root) in origins.parents
        if question.is_last and not is_tied and not is_copied and line.point not in origins.points:
            area.on_purpose.append(line.point)
    return area


# -- the look at one process -----------------------------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="surrogateescape")
    except OSError:
        return ""


def _read_link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _list(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


# What of a process may be on a mount: how it uses it, the path, and of an open file its number.
_Use = tuple[How, str, str]
_Look = Callable[[Path], Iterator[_Use]]


def _list_held(process: Path) -> Iterator[_Use]:
    for name, how in _LINKS:
        link = _read_link(process / name)
        if link.startswith("/"):
            yield how, link, ""
    for number in _list(process / "fd"):
        link = _read_link(process / "fd" / number)
        if link.startswith("/"):
            yield "open", link, number


def _list_mapped(process: Path) -> Iterator[_Use]:
    for path in rules.parse_mapped(_read(process / "maps")):
        yield "mapped", path, ""


class _Index:
    """Where the questions' areas are in one namespace, so that a path is looked up once for all of them."""

    def __init__(self, areas: Sequence[_Area]) -> None:
        self.areas = areas
        self._by_root: dict[str, list[int]] = {}
        for position, area in enumerate(areas):
            for root in (*area.places, *area.trees):
                self._by_root.setdefault(root, []).append(position)
        self.is_empty = all(area.is_empty for area in areas)

    def find(self, process: Path, use: _Use) -> Iterator[int]:
        """The areas that a process uses so. A file is told by its mount, and anything else by its path; that everything
        is below ``/`` says something of files alone."""
        how, path, number = use
        roots = [root for root in _list_upwards(path) if root in self._by_root and (how == "open" or root != "/")]
        if not roots:
            return
        mount_id = rules.parse_mount_id(_read(process / "fdinfo" / number)) if how == "open" else None
        for position in dict.fromkeys(position for root in roots for position in self._by_root[root]):
            area = self.areas[position]
            if area.is_empty:
                continue
            if how != "open" or mount_id in area.ids or any(is_at_or_below(path, tree) for tree in area.trees):
                yield position


def _list_upwards(path: str) -> Iterator[str]:
    """A path, and all that is above it, up to ``/``."""
    yield path
    end = len(path)
    while (end := path.rfind("/", 0, end)) > 0:
        yield path[:end]
    if path != "/":
        yield "/"


def _name(process: Path, how: How, path: str) -> Holder:
    return Holder(
        how=how,
        path=path,
        pid=int(process.name),
        command=_read(process / "comm").strip(),
        unit=rules.parse_unit(_read(process / "cgroup")),
        started=rules.parse_started(_read(process / "stat")),
    )


# -- the scan --------------------------------------------------------------------------------------------------------


class _Scan:
    """One look at all processes for many questions."""

    def __init__(self, questions: Sequence[Question], proc: Path) -> None:
        self._questions = questions
        self._proc = proc
        own = _read_link(proc / "self" / "ns" / "mnt")
        table = rules.parse_mount_table(_read(proc / "self" / "mountinfo"))
        here = [_look_here(question, table) for question in questions]
        self._origins = [origins for _, origins, _ in here]
        self._areas: dict[str, _Index] = {own: _Index([area for area, _, _ in here])}
        self._own = own
        self.found: list[list[Holder]] = [list(nested) for _, _, nested in here]

    def run(self, look: _Look, *, is_first: bool) -> None:
        """Look at each process once. Blocks. ``is_first``: mounts made on purpose are told too."""
        if self._areas[self._own].is_empty:
            return
        own_pid, told = str(os.getpid()), set[str]()
        for name in _list(self._proc):
            if not name.isdigit() or name == own_pid:
                continue
            process = self._proc / name
            namespace = _read_link(process / "ns" / "mnt") or self._own
            index = self._areas.get(namespace)
            if index is None:
                table = rules.parse_mount_table(_read(process / "mountinfo"))
                pairs = zip(self._questions, self._origins, strict=True)
                index = self._areas[namespace] = _Index([_look_there(q, o, table) for q, o in pairs])
            if not index.is_empty:
                for use in look(process):
                    for position in index.find(process, use):
                        self.found[position].append(_name(process, use[0], use[1]))
            if is_first and namespace not in told:
                for area, found in zip(index.areas, self.found, strict=True):
                    found += [_name(process, "mount", point) for point in area.on_purpose]
            told.add(namespace)


class HolderSearch:
    """Answers who uses paths. Questions that come while a look is under way are answered together by the next one."""

    def __init__(self, *, timeout_s: float, proc: Path = PROC, hops: Hops | None = None) -> None:
        self._proc = proc
        self._lane = Lane(timeout_s=timeout_s, hops=hops)
        self._mapped_lane = Lane(timeout_s=timeout_s, hops=hops)
        self._turn = anyio.Lock()
        self._waiting: dict[int, Question] = {}
        self._answers: dict[int, tuple[Holder, ...]] = {}
        self._last = 0

    async def find(self, question: Question) -> tuple[Holder, ...]:
        """Who uses the paths now. Raises DeadlineExceeded when /proc does not answer."""
        self._last += 1
        number = self._last
        self._waiting[number] = question
        try:
            async with self._turn:
                if number not in self._answers:
                    asked = dict(self._waiting)
                    answers = await self._ask(list(asked.values()))
                    self._answers |= {n: a for n, a in zip(asked, answers, strict=True) if n in self._waiting}
                return self._answers[number]
        finally:
            self._waiting.pop(number, None)
            self._answers.pop(number, None)

    async def _ask(self, questions: list[Question]) -> list[tuple[Holder, ...]]:
        def look() -> _Scan:
            scan = _Scan(questions, self._proc)
            scan.run(_list_held, is_first=True)
            return scan

        scan = await self._lane.run(look)
        answers = [tuple(found) for found in scan.found]
        try:
            await self._mapped_lane.run(lambda: scan.run(_list_mapped, is_first=False))
        except DeadlineExceeded:
            log.warning("holders.mapped_not_seen", questions=len(questions))
            return answers
        return [tuple(found) for found in scan.found]


def end_holder(holder: Holder, number: signal.Signals) -> bool:
    """Send a signal to the very process that was seen; False where it is gone, or is one that nobody may end here.

    Never: the first process, this one, or another that got the number since.
    """
    if holder.pid in (0, INIT, os.getpid()):
        return False
    try:
        descriptor = os.pidfd_open(holder.pid)
    except OSError:
        return False
    try:
        if rules.parse_started(_read(PROC / str(holder.pid) / "stat")) != holder.started:
            return False
        signal.pidfd_send_signal(descriptor, number)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
