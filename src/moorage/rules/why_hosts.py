"""Why a plugin or a node is not ready: which driver is sick, what a lost node holds and what frees it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from moorage.model.node import HookTries, Node
from moorage.model.plugin import Instance, Plugin
from moorage.model.times import format_time
from moorage.rules.plugins import measure_health
from moorage.rules.why import (
    READY,
    Command,
    Explanation,
    Holder,
    command,
    count,
    cut,
    cut_commands,
    describe_instance,
    find_plugin_blocks,
    join_states,
    name_holders,
    name_node,
    since,
)
from moorage.rules.why_claims import ClaimCase, find_evidence_texts, find_free_ns, make_fence_command, make_holder


class PluginCase(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin with its surroundings. ``plugin`` None: no agent reports it, but volumes name it.

    ``nodes``: those of its instances, by ID. ``waiting``: volumes that are at something that takes it, each with its
    state.
    """

    plugin_id: str
    plugin: Plugin | None = None
    nodes: Mapping[str, Node] = {}
    waiting: Mapping[str, str] = {}


def explain_plugin(case: PluginCase, *, now_ns: int) -> Explanation:
    """Why the plugin is in the state it is in."""
    plugin = case.plugin
    sick = sorted((i for i in plugin.instances.values() if not i.healthy), key=_age) if plugin is not None else []
    blocks = [_describe(case, i) for i in sick]
    commands: list[Command] = [command("shows the node and its drivers", "node", "status", i.node_id) for i in sick]
    health = measure_health(plugin)
    state = READY if health.is_schedulable and not sick else "degraded" if health.is_schedulable else "unhealthy"
    if state == "unhealthy":
        for side in ("node", "controller"):
            is_needed = side == "node" or health.is_controller_required or plugin is None
            if is_needed and not (health.nodes_healthy if side == "node" else health.controllers_healthy):
                found = find_plugin_blocks(case.plugin_id, plugin, needs=side)
                blocks += [text for text in found.blocks[:1] if text not in blocks]
                commands += found.commands
    own = ("why", case.plugin_id, "-kind", "plugin")
    commands = [c for c in commands if c != command(c.why, *own)]
    if case.waiting:
        blocks.append(f"volumes at work that takes it: {join_states(case.waiting)}")
    began = min((i.updated_at_ns for i in sick), default=plugin.modified_at_ns if plugin else 0)
    return Explanation(
        kind="plugin",
        id=case.plugin_id,
        state=state,
        summary=_summarize(case, state, sick),
        since_ns=began,
        blocks=cut(blocks),
        commands=cut_commands(commands),
    )


def _age(instance: Instance) -> tuple[int, str]:
    return (instance.updated_at_ns, instance.node_id)


def _describe(case: PluginCase, instance: Instance) -> str:
    where = name_node(case.nodes.get(instance.node_id), instance.node_id)
    return describe_instance(case.plugin_id, where, instance.health_description, instance.updated_at_ns)


def _summarize(case: PluginCase, state: str, sick: list[Instance]) -> str:
    name = f'plugin "{case.plugin_id}"'
    if case.plugin is None:
        named = count(len(case.waiting), "volume")
        return f"{name} is not known: no agent reports a driver of that ID, and {named} of it are registered"
    total = len(case.plugin.instances)
    if state == READY:
        return f"{name} is ready: {count(total, 'healthy instance')}"
    first = f"; {_describe(case, sick[0])}" if sick else ""
    if state == "degraded":
        return f"{name} serves, but {len(sick)} of {count(total, 'instance')} not healthy{first}"
    health = measure_health(case.plugin)
    nodes = f"{health.nodes_healthy} of {health.nodes_expected} nodes"
    controllers = f"{health.controllers_healthy} of {health.controllers_expected} controllers"
    return f"{name} cannot serve: {nodes} and {controllers} are healthy{first}"


# -- nodes -----------------------------------------------------------------------------------------------------------


class NodeCase(msgspec.Struct, frozen=True, kw_only=True):
    """A node with the claims on it and the driver instances that it reported, by plugin ID.

    ``hook``: what the fence hook did for it, if it is lost.
    """

    node: Node
    claims: tuple[ClaimCase, ...] = ()
    instances: Mapping[str, Instance] = {}
    hook: HookTries | None = None


def explain_node(case: NodeCase, *, now_ns: int) -> Explanation:
    """Why the node is in the state it is in."""
    node = case.node
    holders = tuple(make_holder(c) for c in case.claims)
    where = f'node "{name_node(node, node.id)}"'
    if node.status == "down":
        return _explain_lost(case, holders, where, now_ns=now_ns)
    sick = {p: i for p, i in sorted(case.instances.items()) if not i.healthy}
    blocks = [
        describe_instance(p, node.name or node.id, i.health_description, i.updated_at_ns) for p, i in sick.items()
    ]
    commands = [command("shows the plugin's instances and their health", "plugin", "status", p) for p in sick]
    if node.status != "ready":
        state, text = "initializing", "has not finished to register: its agent has not said yet that it is there"
        blocks.insert(0, "the agent's registration is awaited")
    elif node.wanted != "active":
        left = f"still in use by {name_holders(holders)}" if holders else "nothing is left on it"
        going = "; running ones are released one by one" if node.wanted == "draining" else "; running ones stay"
        state, text = node.wanted, f"is {node.wanted}, it takes no new uses: {left}"
        blocks.insert(0, f"no use starts on it{going}")
        commands.insert(0, command("takes uses again", "node", "drain", "-disable", node.id))
    elif sick:
        state, text = "unhealthy", f"is there, but {len(sick)} of {count(len(case.instances), 'driver')} not healthy"
    else:
        state, text = READY, f"is ready and holds {count(len(holders), 'volume')}"
    return Explanation(
        kind="node",
        id=node.id,
        state=state,
        summary=f"{where} {text}",
        since_ns=node.status_updated_at_ns or node.created_at_ns,
        holders=holders,
        blocks=cut(blocks),
        commands=cut_commands(commands),
    )


def _explain_lost(case: NodeCase, holders: tuple[Holder, ...], where: str, *, now_ns: int) -> Explanation:
    node = case.node
    lost = f"is lost{since(node.lost_at_ns)}"
    blocks = ["its agent has not been heard of for longer than its lease: it may be off, or only cut off"]
    commands = [command("shows the node and what it holds", "node", "status", node.id)]
    times = [find_free_ns(c, node, now_ns=now_ns) for c in case.claims]
    hook_ns = case.hook.next_try_ns if case.hook is not None and node.fence is None else 0
    if node.fence is not None:
        by = f" by {node.fence.by}" if node.fence.by else ""
        said = f": {node.fence.reason}" if node.fence.reason else ""
        blocks.append(f"it is fenced ({node.fence.kind}{by}){since(node.fence.at_ns)}{said}; its claims are freed")
        state = "fenced"
    else:
        state = "lost"
        stuck = sum(t == 0 for t in times)
        if stuck:
            blocks += find_evidence_texts(node, case.hook, now_ns=now_ns)
        if len(times) > stuck:
            first = format_time(min(t for t in times if t))
            blocks.append(f"time alone frees {count(len(times) - stuck, 'claim')}, the first at {first}")
        commands.insert(0, make_fence_command(node))
    held = f"; it holds {count(len(holders), 'volume')}" if holders else "; it holds nothing"
    blocks += [f'volume "{h.volume_id}" is held by {name_holders([h])} as {h.mode}' for h in holders]
    return Explanation(
        kind="node",
        id=node.id,
        state=state,
        summary=f"{where} {lost}{held}",
        since_ns=node.lost_at_ns or node.status_updated_at_ns,
        holders=holders,
        next_try_ns=min((t for t in (*times, hook_ns) if t), default=0),
        blocks=cut(blocks),
        commands=cut_commands(commands),
    )
