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
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
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
# The longest pause between two looks.
PAUSE_MAX_S = 0.05
_LINKS: tuple[tuple[str, How], ...] = (("cwd", "directory"), ("root", "root"))
_PIECE_BYTES = 1 << 16
# So many roots are looked for in a text before it is taken apart.
_MARKS_MAX = 16


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


class _Table:
    """Our own namespace's mounts, by their IDs and by where they are, and those below some places."""

    def __init__(self, table: Sequence[MountLine], places: Container[str]) -> None:
        self.by_id = {line.mount_id: line for line in table}
        self.at: dict[str, list[MountLine]] = {}
        self.below: dict[str, list[MountLine]] = {}
        for line in table:
            self.at.setdefault(line.point, []).append(line)
            for above in _list_upwards(line.point):
                if above in places and above != line.point:
                    self.below.setdefault(above, []).append(line)


def _look_here(question: Question, places: Mapping[str, str], table: _Table) -> tuple[_Area, _Origins, list[Holder]]:
    area, origins, nested = _Area(), _Origins(), list[Holder]()
    for path in question.paths:
        place = places[path]
        at = table.at.get(place, ())
        for line in at:
            origins.shown.add((line.device, line.root))
            origins.peers |= line.peers
            parent = table.by_id.get(line.parent_id)
            if parent is not None:
                origins.parents.add((parent.device, parent.root))
        if at:
            below = table.below.get(place, [])
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


def _read_bytes(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        found = []
        while piece := os.read(descriptor, _PIECE_BYTES):
            found.append(piece)
        return b"".join(found)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _read(path: str) -> str:
    return _read_bytes(path).decode(errors="surrogateescape")


def _read_link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


# What of a process may be on a mount: how it uses it, the path, and of an open file its number.
_Use = tuple[How, str, str]


class _Process(msgspec.Struct, frozen=True):
    """One that has a program: where it is in /proc, the program's path, its mount namespace and that one's areas."""

    path: str
    program: str
    namespace: str
    index: _Index


_Look = Callable[[_Process], Iterator[_Use]]


def _list_held(process: _Process) -> Iterator[_Use]:
    if process.program.startswith("/"):
        yield "program", process.program, ""
    for name, how in _LINKS:
        link = _read_link(f"{process.path}/{name}")
        if link.startswith("/"):
            yield how, link, ""
    for number in _list(f"{process.path}/fd"):
        link = _read_link(f"{process.path}/fd/{number}")
        if link.startswith("/"):
            yield "open", link, number


def _list_mapped(process: _Process) -> Iterator[_Use]:
    text = _read_bytes(f"{process.path}/maps")
    # Reading the text is cheap beside taking it apart, which takes a path of ours in it.
    if any(mark in text for mark in process.index.marks):
        for path in rules.parse_mapped(text.decode(errors="surrogateescape")):
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
        self.marks = _list_marks(self._by_root)

    def find(self, process: str, use: _Use) -> Iterator[int]:
        """The areas that a process uses so. A file is told by its mount, and anything else by its path; that everything
        is below ``/`` says something of files alone."""
        how, path, number = use
        roots = [root for root in _list_upwards(path) if root in self._by_root and (how == "open" or root != "/")]
        if not roots:
            return
        mount_id = rules.parse_mount_id(_read(f"{process}/fdinfo/{number}")) if how == "open" else None
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


def _list_marks(roots: Collection[str]) -> list[bytes]:
    """One of these is in every text of maps that has a path at or below one of the roots. The kernel writes a newline
    in a path in another way, and other namespaces have few roots."""
    marks = [os.fsencode(root) for root in roots]
    return [b""] if len(marks) > _MARKS_MAX or any(b"\n" in mark for mark in marks) else marks


def _name(process: str, how: How, path: str) -> Holder:
    return Holder(
        how=how,
        path=path,
        pid=int(process.rpartition("/")[2]),
        command=_read(f"{process}/comm").strip(),
        unit=rules.parse_unit(_read(f"{process}/cgroup")),
        started=rules.parse_started(_read(f"{process}/stat")),
    )


# -- the scan --------------------------------------------------------------------------------------------------------


class _Scan:
    """One look at all processes for many questions."""

    def __init__(self, questions: Sequence[Question], proc: Path) -> None:
        self._questions = questions
        self._proc = str(proc)
        own = _read_link(f"{proc}/self/ns/mnt")
        places = {path: resolve(path) for question in questions for path in question.paths}
        table = _Table(rules.parse_mount_table(_read(f"{proc}/self/mountinfo")), frozenset(places.values()))
        here = [_look_here(question, places, table) for question in questions]
        self._origins = [origins for _, origins, _ in here]
        self._areas: dict[str, _Index] = {own: _Index([area for area, _, _ in here])}
        self._own = own
        # As seen at the first look. Whoever has got the number of one that has ended since began later than the look.
        self._processes: dict[str, _Process | None] = {str(os.getpid()): None}
        self.found: list[list[Holder]] = [list(nested) for _, _, nested in here]

    def run(self, look: _Look, *, is_first: bool) -> None:
        """Look at each process once. Blocks. ``is_first``: mounts made on purpose are told too."""
        if self._areas[self._own].is_empty:
            return
        told = set[str]()
        for name in _list(self._proc):
            if not name.isdigit():
                continue
            if name not in self._processes:
                self._processes[name] = self._find_process(f"{self._proc}/{name}")
            process = self._processes[name]
            if process is None:
                continue
            index = process.index
            if not index.is_empty:
                for use in look(process):
                    for position in index.find(process.path, use):
                        self.found[position].append(_name(process.path, use[0], use[1]))
            if is_first and process.namespace not in told:
                for area, found in zip(index.areas, self.found, strict=True):
                    found += [_name(process.path, "mount", point) for point in area.on_purpose]
            told.add(process.namespace)

    def _find_process(self, path: str) -> _Process | None:
        """None for the kernel's own, of which a host has hundreds, one that has ended, and one that we may not look
        into: there is nothing to be seen."""
        program = _read_link(f"{path}/exe")
        if not program:
            return None
        namespace = _read_link(f"{path}/ns/mnt") or self._own
        index = self._areas.get(namespace)
        if index is None:
            table = rules.parse_mount_table(_read(f"{path}/mountinfo"))
            pairs = zip(self._questions, self._origins, strict=True)
            index = self._areas[namespace] = _Index([_look_there(q, o, table) for q, o in pairs])
        return _Process(path, program, namespace, index)


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
        self._next_s = 0.0

    async def find(self, question: Question) -> tuple[Holder, ...]:
        """Who uses the paths now. Raises DeadlineExceeded when /proc does not answer."""
        self._last += 1
        number = self._last
        self._waiting[number] = question
        try:
            async with self._turn:
                if number not in self._answers:
                    # Looks take at most half of a processor; meanwhile questions come together.
                    await anyio.sleep_until(self._next_s)
                    began_s = anyio.current_time()
                    asked = dict(self._waiting)
                    answers = await self._ask(list(asked.values()))
                    now_s = anyio.current_time()
                    self._next_s = now_s + min(PAUSE_MAX_S, now_s - began_s)
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
        if rules.parse_started(_read(f"{PROC}/{holder.pid}/stat")) != holder.started:
            return False
        signal.pidfd_send_signal(descriptor, number)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
