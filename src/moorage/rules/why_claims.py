"""Why one claim is not mounted, or not gone: the story of a claim in its surroundings. Pure."""

from __future__ import annotations

import msgspec

from moorage.model.claim import Allocation, Attached, Claim, ControllerDetached, Mounted, NodeDetached, Taken
from moorage.model.node import HookTries, Node
from moorage.model.plugin import Plugin
from moorage.model.times import format_time
from moorage.model.volume import Secrets, Volume
from moorage.rules.nodes import FencingSettings
from moorage.rules.why import (
    NOTHING,
    Command,
    ControllerCase,
    Findings,
    Holder,
    LastCall,
    Queue,
    command,
    describe_instance,
    describe_progress,
    find_controller_blocks,
    find_plugin_blocks,
    is_attaching,
    make_last_call,
    name_node,
    quote_word,
    since,
)

MOUNTED = "mounted"
_SECOND = 1_000_000_000


class ClaimCase(msgspec.Struct, frozen=True, kw_only=True):
    """A claim with its surroundings.

    ``queue``: where its controller step stands, if it was handed out. ``lost_s``: for how long its node is lost by a
    clock that nobody sets. ``volume`` None: deregistered by force. ``silent``, ``busy``: as in
    ControllerCase.
    """

    claim: Claim
    allocation: Allocation | None = None
    volume: Volume | None = None
    node: Node | None = None
    plugin: Plugin | None = None
    queue: Queue | None = None
    silent: tuple[str, ...] = ()
    busy: str = ""
    fencing: FencingSettings = FencingSettings()
    lost_s: float = 0.0
    hook: HookTries | None = None

    @property
    def secrets(self) -> tuple[Secrets, ...]:
        """What must not stand in any text."""
        return (self.volume.secrets, self.volume.delete_secrets) if self.volume is not None else ()


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """How a claim fares: one word, what it does as a part of a sentence, and what stands in its way."""

    state: str
    doing: str
    findings: Findings = NOTHING
    last_call: LastCall | None = None
    queue: Queue | None = None
    since_ns: int = 0

    @property
    def is_settled(self) -> bool:
        """Mounted, and nothing is to be done."""
        return self.state == MOUNTED


def make_holder(case: ClaimCase) -> Holder:
    """The claim as a holder of its volume."""
    claim = case.claim
    return Holder(
        allocation_id=claim.allocation_id,
        name=case.allocation.name if case.allocation else "",
        volume_id=claim.volume_id,
        node_id=claim.node_id,
        node_name=case.node.name if case.node else "",
        mode=f"{claim.access_mode}, read-only" if claim.read_only else claim.access_mode,
        state=tell(case, now_ns=0).state,
        since_ns=claim.created_at_ns,
        path=claim.state.path if isinstance(claim.state, Mounted) else "",
    )


def tell(case: ClaimCase, *, now_ns: int) -> Story:
    """The story of a claim."""
    claim, node = case.claim, case.node
    is_on_node = isinstance(claim.state, (Taken, Attached, Mounted))
    if is_on_node and node is not None and node.status == "down":
        return _tell_lost(case, node, now_ns=now_ns)
    story = _tell_held(case, now_ns=now_ns) if claim.wanted == "held" else _tell_released(case, now_ns=now_ns)
    began = claim.created_at_ns
    if claim.wanted == "released" and case.allocation is not None:
        began = case.allocation.modified_at_ns
    return msgspec.structs.replace(
        story,
        since_ns=claim.progress.since_ns or began or claim.created_at_ns,
        last_call=make_last_call(claim.progress, case.secrets),
        queue=case.queue,
    )


# -- held ------------------------------------------------------------------------------------------------------------


def _tell_held(case: ClaimCase, *, now_ns: int) -> Story:
    claim = case.claim
    where = name_node(case.node, claim.node_id)
    match claim.state:
        case Taken():
            return _tell_controller(case, "attaching", f"is being attached to node {where}", now_ns=now_ns)
        case Attached():
            found = _find_node_blocks(case, now_ns=now_ns)
            return Story(state="mounting", doing=f"is being mounted on node {where}", findings=found)
        case Mounted() as state:
            return _tell_mounted(case, state, now_ns=now_ns)
    return _tell_released(case, now_ns=now_ns)


def _tell_mounted(case: ClaimCase, state: Mounted, *, now_ns: int) -> Story:
    where = name_node(case.node, case.claim.node_id)
    owed = case.volume.node_expansion_bytes if case.volume else 0
    if case.claim.progress.last_fault is not None and state.grown_bytes >= owed:
        found = _find_node_blocks(case, now_ns=now_ns)
        return Story(state="mounting", doing=f"is being mounted again on node {where}", findings=found)
    if state.grown_bytes < owed:
        text = f"the filesystem on node {where} has not grown to {owed} bytes yet"
        found = Findings(blocks=(text,)) + _find_node_blocks(case, now_ns=now_ns)
        return Story(state="expanding", doing=f"is growing on node {where}", findings=found)
    return Story(state=MOUNTED, doing=f"is mounted on node {where} at {state.path}")


def _tell_controller(case: ClaimCase, state: str, doing: str, *, now_ns: int) -> Story:
    """A claim whose next step is the controller's."""
    claim = case.claim
    attaches = is_attaching(case.plugin)
    if attaches is None:
        text = f'plugin "{claim.plugin_id}" has not said yet whether it attaches: the claim waits for a controller'
        found = Findings(blocks=(text,)) + find_plugin_blocks(claim.plugin_id, case.plugin, needs="controller")
        return Story(state="waiting", doing=doing, findings=found)
    if state == "attaching" and case.volume is None:
        text = "the volume's record is gone: it was deregistered by force; the claim cannot be attached"
        return Story(state="waiting", doing=doing, findings=Findings(blocks=(text,), commands=(_umount(case),)))
    if not attaches:
        text = "no call is needed for it: the record is about to move on"
        return Story(state=state, doing=doing, findings=Findings(blocks=(text,)))
    found = find_controller_blocks(
        ControllerCase(
            plugin_id=claim.plugin_id,
            plugin=case.plugin,
            progress=claim.progress,
            queue=case.queue,
            silent=case.silent,
            busy=case.busy,
            secrets=case.secrets,
        ),
        now_ns=now_ns,
    )
    helps = (_umount(case),) if claim.wanted == "held" else ()
    return Story(state=state, doing=doing, findings=found + Findings(commands=helps))


# -- released --------------------------------------------------------------------------------------------------------


def _tell_released(case: ClaimCase, *, now_ns: int) -> Story:
    claim = case.claim
    where = name_node(case.node, claim.node_id)
    match claim.state:
        case Taken() | NodeDetached():
            return _tell_controller(case, "detaching", f"is being detached from node {where}", now_ns=now_ns)
        case ControllerDetached():
            found = Findings(blocks=("nothing of it is left anywhere: the record goes next",))
            return Story(state="releasing", doing="is released", findings=found)
    found = _find_node_blocks(case, now_ns=now_ns)
    return Story(state="releasing", doing=f"is being unmounted on node {where}", findings=found)


def _umount(case: ClaimCase) -> Command:
    return command("ends this use", "umount", case.claim.allocation_id)


# -- the node's part -------------------------------------------------------------------------------------------------


def _find_node_blocks(case: ClaimCase, *, now_ns: int) -> Findings:
    """What the agent's work on a claim waits for; never empty."""
    claim, node = case.claim, case.node
    where = name_node(node, claim.node_id)
    status = command("shows the node and its drivers", "node", "status", claim.node_id)
    found = describe_progress(claim.progress, case.secrets, now_ns=now_ns)
    found = found + _find_users(claim)
    if node is None:
        text = f"node {where} is not on record: no agent of that ID has registered here"
        return found + Findings(blocks=(text,), commands=(status,))
    if node.status != "ready":
        return found + Findings(blocks=(f"node {where} is {node.status}: its agent is not ready",), commands=(status,))
    instance = case.plugin.instances.get(claim.node_id) if case.plugin is not None else None
    if instance is None or instance.node is None:
        text = f'plugin "{claim.plugin_id}" has no driver on node {where}'
        return found + Findings(blocks=(text,), commands=(status,))
    if not instance.healthy:
        text = describe_instance(claim.plugin_id, where, instance.health_description, instance.updated_at_ns)
        why = command("tells which instance is sick and why", "why", claim.plugin_id, "-kind", "plugin")
        return found + Findings(blocks=(text,), commands=(status, why))
    helps = [command("shows how far the use is", "alloc", "status", claim.allocation_id)]
    if claim.wanted == "held":
        helps.append(_umount(case))
    return found + Findings(blocks=(f"the agent on node {where} has it in hand",), commands=tuple(helps))


def _find_users(claim: Claim) -> Findings:
    """A path that is busy: how to see who uses it."""
    fault = claim.progress.last_fault
    if fault is None or fault.status != "EBUSY" or not isinstance(claim.state, Mounted):
        return NOTHING
    show = Command(command=f"fuser -vm {quote_word(claim.state.path)}", why="on that node: shows what uses the path")
    return Findings(blocks=(f"something still uses {claim.state.path}: stop it",), commands=(show,))


# -- lost nodes ------------------------------------------------------------------------------------------------------


def find_free_ns(case: ClaimCase, node: Node, *, now_ns: int) -> int:
    """When time alone frees the claim of a lost node; 0: never, it takes evidence."""
    if node.fence is not None:
        return now_ns
    is_timed = case.claim.read_only or node.is_self_fencing or case.fencing.is_takeover_timed
    return now_ns + int(max(0.0, case.fencing.grace_s - case.lost_s) * _SECOND) if is_timed else 0


def find_evidence_texts(node: Node, hook: HookTries | None, *, now_ns: int) -> tuple[str, ...]:
    """What would free the writers' claims of a lost node that time alone does not free, and how the hook fares."""
    where = name_node(node, node.id)
    text = (
        f"a claim that writes is freed only on evidence: node {where} registers again after a boot, a fence hook "
        "cuts it off, or an operator says that it holds nothing"
    )
    return (text, describe_hook(hook, now_ns=now_ns)) if hook is not None else (text,)


def describe_hook(hook: HookTries, *, now_ns: int) -> str:
    """How a lost node fares with the fence hook, as a sentence."""
    if hook.is_running:
        before = f"; before that it ended with {_tell_exit(hook)}" if hook.attempts > 1 else ""
        return f"the fence hook runs for it{since(hook.began_at_ns)} (try {hook.attempts}){before}"
    if hook.exit_code == 0:
        return f"the fence hook has cut it off: {hook.text}"
    tries = f", tried {hook.attempts} times" if hook.attempts > 1 else ""
    due = (
        f"; the next try is due at {format_time(hook.next_try_ns // _SECOND * _SECOND)}"
        if hook.next_try_ns > now_ns
        else ""
    )
    began = format_time(hook.began_at_ns // _SECOND * _SECOND)
    return f"the fence hook, started at {began}{tries}, failed with {_tell_exit(hook)}{due}"


def _tell_exit(hook: HookTries) -> str:
    code = "no exit code" if hook.exit_code is None else f"exit code {hook.exit_code}"
    return f"{code}: {hook.text}" if hook.text else code


def make_fence_command(node: Node) -> Command:
    """The operator's word, as a command."""
    return Command(
        command=f"moorage node fence {quote_word(node.id)} --reason …",
        why="frees its claims; only when the node is really off or cut off from the storage",
    )


def _tell_lost(case: ClaimCase, node: Node, *, now_ns: int) -> Story:
    claim, where = case.claim, name_node(node, node.id)
    blocks = [f"node {where} is lost{since(node.lost_at_ns)}: it may still use the volume"]
    free_ns = find_free_ns(case, node, now_ns=now_ns)
    commands: tuple[Command, ...] = (command("tells what the node holds", "why", node.id, "-kind", "node"),)
    if node.fence is not None:
        blocks = [f"node {where} was lost and is fenced ({node.fence.kind}): the claim is being freed"]
    elif free_ns:
        kind = "a reader is freed after the grace" if claim.read_only else "the setting or the agent's promise frees it"
        blocks.append(f"{kind}, at {format_time(free_ns)}" if now_ns else kind)
    else:
        blocks += find_evidence_texts(node, case.hook, now_ns=now_ns)
        commands = (make_fence_command(node), *commands)
    return Story(
        state="lost",
        doing=f"is held by node {where}, which is lost{since(node.lost_at_ns)}",
        findings=Findings(blocks=tuple(blocks), commands=commands, next_try_ns=free_ns),
        last_call=make_last_call(claim.progress, case.secrets),
        since_ns=node.lost_at_ns or claim.created_at_ns,
    )
