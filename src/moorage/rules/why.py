"""Why a thing is not ready: the shape of an explanation, and the parts that all kinds share. Pure.

``why_claims`` tells of one claim; ``why_volumes``, ``why_uses`` and ``why_hosts`` explain a volume, an allocation, a
plugin, a node. Every state but ``ready`` has a summary and at least one block or command: promise 5.
Never: I/O, clock; a secret in a text (faults are scrubbed where they arise, and once more here).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from moorage.model.ids import NodeId
from moorage.model.node import Node
from moorage.model.plugin import Plugin
from moorage.model.secret_refs import is_reference
from moorage.model.times import format_time
from moorage.model.volume import Fault, Progress, Secrets
from moorage.rules.plugins import find_controller_info, measure_health

READY = "ready"
TEXTS_MAX = 50
_SECRET_CHARACTERS_MIN = 4
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A command line that helps, and what it does for whom."""

    command: str
    why: str


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a volume: an allocation on a node. ``state``: how far its claim is. Units: ns since the epoch."""

    allocation_id: str
    name: str
    volume_id: str
    node_id: str
    node_name: str
    mode: str
    state: str
    since_ns: int
    path: str = ""


class LastCall(msgspec.Struct, frozen=True, kw_only=True):
    """The last call that failed. ``final``: nothing of it is in progress any more."""

    method: str
    status: str
    message: str
    final: bool
    at_ns: int
    attempts: int


class Ahead(msgspec.Struct, frozen=True, kw_only=True):
    """A step that goes first: the method, and whose it is (``volume "web"``)."""

    method: str
    subject: str


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """Where a controller step stands that was handed to an agent: from there on it is in flight.

    ``position`` counts from 1 among the ``length`` steps for this plugin at that node; ``ahead`` are those that must
    end first, because they are about the same disk. ``since_ns`` 0: not known.
    """

    position: int
    length: int
    method: str
    node_id: str
    node_name: str = ""
    ahead: tuple[Ahead, ...] = ()
    since_ns: int = 0


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to "why". ``state`` is one word, ``summary`` one sentence. Units: ns since the epoch, 0 for never."""

    kind: str
    id: str
    state: str
    summary: str
    namespace: str = ""
    since_ns: int = 0
    holders: tuple[Holder, ...] = ()
    last_call: LastCall | None = None
    next_try_ns: int = 0
    queue: Queue | None = None
    blocks: tuple[str, ...] = ()
    commands: tuple[Command, ...] = ()


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the way of one step, and what helps."""

    blocks: tuple[str, ...] = ()
    commands: tuple[Command, ...] = ()
    next_try_ns: int = 0

    def __add__(self, other: Findings) -> Findings:
        """Both; the earlier of two next tries."""
        tries = [t for t in (self.next_try_ns, other.next_try_ns) if t]
        return Findings(
            blocks=self.blocks + other.blocks,
            commands=self.commands + other.commands,
            next_try_ns=min(tries, default=0),
        )


NOTHING = Findings()


# -- texts -----------------------------------------------------------------------------------------------------------


def quote_word(text: str) -> str:
    """``text`` as one word of a POSIX shell."""
    return text if _PLAIN.fullmatch(text) else "'" + text.replace("'", "'\\''") + "'"


def command(why: str, *words: str) -> Command:
    """``moorage`` with ``words``, each quoted where a shell needs it."""
    return Command(command=" ".join(["moorage", *map(quote_word, words)]), why=why)


def name_node(node: Node | None, node_id: str) -> str:
    """A node's name for people, else its ID."""
    return node.name if node is not None and node.name else node_id


def since(at_ns: int) -> str:
    """`` since 2026-01-01T00:00:00Z``, or nothing where the time is not known."""
    text = format_time(at_ns // 1_000_000_000 * 1_000_000_000)
    return f" since {text}" if text else ""


def make_last_call(progress: Progress, secrets: Iterable[Secrets]) -> LastCall | None:
    """The last failed call of a step in hand, or None."""
    fault = progress.last_fault
    if fault is None:
        return None
    return LastCall(
        method=fault.method,
        status=fault.status,
        message=scrub(fault.message, secrets),
        final=fault.final,
        at_ns=fault.at_ns,
        attempts=progress.attempts,
    )


def describe_fault(fault: Fault, attempts: int, secrets: Iterable[Secrets]) -> str:
    """A failed call as a sentence."""
    status = f" ({fault.status})" if fault.status else ""
    end = "it was refused for good" if fault.final else "it may still be running"
    tries = f", tried {attempts} times" if attempts > 1 else ""
    return f"{fault.method or 'the last step'} failed{status}{tries}: {scrub(fault.message, secrets)} ({end})"


def scrub(text: str, secrets: Iterable[Secrets]) -> str:
    """The text without the values of these secrets. Values of less than four characters are left: they hide nothing;
    and references, which say where a secret is."""
    for value in sorted((v for s in secrets for v in s.values.values()), key=len, reverse=True):
        if len(value) >= _SECRET_CHARACTERS_MIN and not is_reference(value):
            text = text.replace(value, "[REDACTED]")
    return text


def cut(texts: Iterable[str]) -> tuple[str, ...]:
    """Each text once, in order, and no more than people can read."""
    kept = list(dict.fromkeys(texts))
    return (*kept[:TEXTS_MAX], f"and {len(kept) - TEXTS_MAX} more") if len(kept) > TEXTS_MAX else tuple(kept)


def cut_commands(commands: Iterable[Command]) -> tuple[Command, ...]:
    """Each command once, in order."""
    found: dict[str, Command] = {}
    for each in commands:
        found.setdefault(each.command, each)
    return tuple(found.values())[:TEXTS_MAX]


# -- controller steps ------------------------------------------------------------------------------------------------


def is_attaching(plugin: Plugin | None) -> bool | None:
    """Whether the plugin's driver attaches; None while nobody who must know has told."""
    info = find_controller_info(plugin)
    if info is not None:
        return info.supports_attach_detach
    if plugin is None or any(i.requires_controller for i in plugin.instances.values()):
        return None
    return False


class ControllerCase(msgspec.Struct, frozen=True, kw_only=True):
    """A step that a plugin's controller has to make: with what stands around it. ``silent``: names of nodes that have
    not told this run of the server what they are calling, so that nobody is given a call yet; ``busy``: name of the
    node that is at a call for this disk while its driver is sick."""

    plugin_id: str
    plugin: Plugin | None
    progress: Progress
    queue: Queue | None = None
    silent: tuple[str, ...] = ()
    busy: str = ""
    secrets: tuple[Secrets, ...] = ()


def find_controller_blocks(case: ControllerCase, *, now_ns: int) -> Findings:
    """What a controller step waits for; never empty."""
    found = describe_progress(case.progress, case.secrets, now_ns=now_ns)
    health = measure_health(case.plugin)
    if not health.controllers_healthy:
        return found + find_plugin_blocks(case.plugin_id, case.plugin, needs="controller")
    queue = case.queue
    if queue is not None:
        return found + Findings(blocks=_describe_queue(queue), commands=(_plugin_status(case.plugin_id),))
    if case.silent:
        found = found + _describe_silent(case)
    elif case.busy:
        found = found + _describe_busy(case)
    elif not found.next_try_ns:
        text = f'the step is about to be handed to a controller of plugin "{case.plugin_id}"'
        found = found + Findings(blocks=(text,), commands=(_plugin_status(case.plugin_id),))
    return found


def describe_progress(progress: Progress, secrets: tuple[Secrets, ...], *, now_ns: int) -> Findings:
    """The last fault of a step and when it is tried again; empty where nothing has failed."""
    blocks: list[str] = []
    if progress.last_fault is not None:
        blocks.append(describe_fault(progress.last_fault, progress.attempts, secrets))
    is_pausing = progress.next_try_at_ns > now_ns
    if is_pausing:
        blocks.append(f"the next try is due at {format_time(progress.next_try_at_ns)}")
    return Findings(blocks=tuple(blocks), next_try_ns=progress.next_try_at_ns if is_pausing else 0)


def _describe_queue(queue: Queue) -> tuple[str, ...]:
    where = queue.node_name or queue.node_id
    text = f"{queue.method} is in flight at the agent on node {where}{since(queue.since_ns)}"
    waits = f", after {queue.ahead[0].method} of {queue.ahead[0].subject}" if queue.ahead else ""
    more = f" and {len(queue.ahead) - 1} more steps of the same disk" if len(queue.ahead) > 1 else ""
    return (text + waits + more,)


def _describe_silent(case: ControllerCase) -> Findings:
    where = ", ".join(case.silent[:3]) + (f" and {len(case.silent) - 3} more" if len(case.silent) > 3 else "")
    text = (
        f'the server was started anew, and several controllers of plugin "{case.plugin_id}" may be at a call: it waits '
        f"until {where} has told its calls, or is lost"
    )
    return Findings(blocks=(text,), commands=(command("shows which nodes are silent", "node", "status"),))


def _describe_busy(case: ControllerCase) -> Findings:
    text = (
        f'node {case.busy} is at a call for this disk, and its driver of plugin "{case.plugin_id}" does not answer: '
        "no other controller is given the disk until that call has ended, or the node is lost"
    )
    return Findings(blocks=(text,), commands=(_plugin_status(case.plugin_id),))


def _plugin_status(plugin_id: str) -> Command:
    return command("shows the plugin's instances and their health", "plugin", "status", plugin_id)


def find_plugin_blocks(plugin_id: str, plugin: Plugin | None, *, needs: str) -> Findings:
    """Why a plugin cannot serve. ``needs``: ``controller`` or ``node``; never empty."""
    if plugin is None:
        start = Command(
            command=f"moorage agent -server … -plugin {quote_word(plugin_id + '=unix:///…')}",
            why="an agent with the driver's socket makes the plugin known",
        )
        listing = command("lists the plugins that are known", "plugin", "status")
        return Findings(
            blocks=(f'plugin "{plugin_id}" is not known: no agent reports a driver of that ID',),
            commands=(listing, start),
        )
    sides = [i for i in plugin.instances.values() if (i.controller if needs == "controller" else i.node) is not None]
    healthy = sum(i.healthy for i in sides)
    blocks = [f'plugin "{plugin_id}" has no healthy {needs} ({healthy} of {len(sides)})']
    sick = [i for i in (sides or plugin.instances.values()) if not i.healthy]
    blocks += [describe_instance(plugin_id, i.node_id, i.health_description, i.updated_at_ns) for i in sick]
    if not sides:
        blocks.append(f'no driver instance of plugin "{plugin_id}" has ever offered a {needs} service')
    why = command("tells which instance is sick and why", "why", plugin_id, "-kind", "plugin")
    return Findings(blocks=tuple(blocks), commands=(_plugin_status(plugin_id), why))


def describe_instance(plugin_id: str, node_id: NodeId | str, description: str, at_ns: int) -> str:
    """A sick driver instance as a sentence."""
    return f'plugin "{plugin_id}" on node {node_id} is not healthy{since(at_ns)}: {description or "it said nothing"}'


def name_holders(holders: Iterable[Holder]) -> str:
    """Who holds it, as a part of a sentence: the first, and how many more."""
    listed = list(holders)
    first = listed[0]
    name = f' ("{first.name}")' if first.name else ""
    more = f" and {len(listed) - 1} more" if len(listed) > 1 else ""
    where = first.node_name or first.node_id
    return f"allocation {first.allocation_id}{name} on node {where}{since(first.since_ns)}{more}"


def count(number: int, what: str) -> str:
    """``1 volume``, ``2 volumes``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def join_states(volumes: Mapping[str, str]) -> str:
    """``a (creating), b (attaching) and 3 more`` of volumes and their states."""
    listed = [f"{name} ({state})" for name, state in sorted(volumes.items())]
    more = f" and {len(listed) - 20} more" if len(listed) > 20 else ""
    return ", ".join(listed[:20]) + more
