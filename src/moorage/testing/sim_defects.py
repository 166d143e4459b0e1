"""Defects to plant, each in one place, to show that the simulation finds them.

report_unchecked      a report is folded in whatever revision it was about
freed_by_timer        writers of a lost node are freed by a timer
detach_unasked        a released claim is detached before its node said that it let go
fresh_names           each try to create a volume uses a name of its own
renewed_unclean       an agent that comes back calls itself clean without having cleaned
clean_by_stale_list   an agent that comes back is believed to be clean by a newer list than it has read (was a real one)
mounted_untaken       an agent mounts before the server has taken its node, and says that it holds nothing (was real)
controller_changed    a volume's calls go to whichever controller is first now (was a real one)
controllers_unheard   a new server gives out calls before it has heard who is at one (was a real one)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from moorage.engine.callers import Callers
from moorage.engine.outcomes import Outcomes
from moorage.engine.planning import Plan as Planning
from moorage.engine.planning import Planner
from moorage.engine.plugin_facts import Facts
from moorage.engine.ports import EngineSettings
from moorage.engine.reconciler import Parts
from moorage.engine.service import Service
from moorage.model.assignment import Report
from moorage.model.claim import Claim, Mounted, NodeDetached
from moorage.model.ids import NodeId
from moorage.model.steps import CreateVolume
from moorage.state.repo import Repo
from moorage.state.view import Record, View
from moorage.testing import sim_world
from moorage.testing.sim_schedule import NEVER_S, Schedule
from moorage.testing.sim_server import make_settings
from moorage.testing.sim_world import Plan, Result, World, make_service

replace = msgspec.structs.replace


class UncheckedOutcomes(Outcomes):
    """Folds every report."""

    def is_current(self, found: Record[Any], report: Report) -> bool:
        """See ``Outcomes``."""
        return True


class HastyPlanner(Planner):
    """Takes a mounted claim that is to be released for one that the node has let go of."""

    def plan_claim(self, key: str, record: Record[Claim], claim: Claim, now_ns: int) -> Planning:
        """See ``Planner``."""
        if claim.wanted == "released" and isinstance(claim.state, Mounted):
            claim = replace(claim, state=NodeDetached())
        return super().plan_claim(key, record, claim, now_ns)


class ForgetfulPlanner(Planner):
    """Does not know the name under which a volume was asked for before."""

    def plan(self, key: str, *, now_ns: int) -> Planning:
        """See ``Planner``."""
        plan = super().plan(key, now_ns=now_ns)
        if plan.planned is None:
            return plan
        assignment, step = plan.planned.assignment, plan.planned.assignment.step
        if not isinstance(step, CreateVolume):
            return plan
        step = replace(step, name=f"{step.name}-{assignment.revision}")
        return replace(plan, planned=replace(plan.planned, assignment=replace(assignment, step=step)))


class _Trusting(Callers):
    def is_known(self, facts: Facts) -> bool:
        """See ``Callers``."""
        return True


class TrustingPlanner(Planner):
    """Does not wait for anybody to tell what he is calling, nor believe it."""

    def __init__(self, view: View, settings: EngineSettings) -> None:
        super().__init__(view, settings)
        self.callers = _Trusting(self._is_lost)

    def hear(self, node_id: NodeId, calling: Iterable[str]) -> bool:
        """See ``Planner``."""
        return False


class _Fickle(Callers):
    def choose(self, facts: Facts, serial: str) -> NodeId | None:
        """See ``Callers``."""
        self._last.clear()
        return super().choose(facts, serial)


class FicklePlanner(Planner):
    """Forgets which controller had a volume's last call."""

    def __init__(self, view: View, settings: EngineSettings) -> None:
        super().__init__(view, settings)
        self.callers = _Fickle(self._is_lost)


class HurriedPlanner(Planner):
    """Takes all volumes from a controller whose driver is sick."""

    def tell(self, node_id: NodeId, calling: Iterable[str]) -> bool:
        """See ``Planner``."""
        return False


def _make_with(
    parts: Parts, *, is_takeover_timed: bool = False, adjust: Callable[[Schedule], Schedule] = lambda schedule: schedule
) -> Plan:
    def make(repo: Repo, world: World) -> Service:
        return make_service(repo, world, parts=parts, settings=make_settings(is_takeover_timed=is_takeover_timed))

    return Plan(make=make, adjust=adjust)


def _with_late_requests(schedule: Schedule) -> Schedule:
    """One volume that comes and goes, and reports that arrive when it is another one."""
    network = replace(schedule.network, late=0.4, late_s=12.0, doubled=0.3)
    return replace(schedule, volumes=1, users=4, user_pause_s=0.2, network=network)


def _with_slow_calls(schedule: Schedule) -> Schedule:
    """Calls that take long, and nodes that come and go."""
    driver = replace(schedule.driver, delay_s=1.5)
    crashes = replace(schedule.crashes, agent_every_s=6.0, server_every_s=NEVER_S, server_at_commit=0.0)
    return replace(schedule, nodes=3, users=4, user_pause_s=0.3, driver=driver, crashes=crashes)


def _with_long_partitions(schedule: Schedule) -> Schedule:
    """Nodes that are out of reach for longer than the lease and the grace."""
    network = replace(schedule.network, partition_every_s=6.0, partition_s=25.0)
    return replace(schedule, users=4, user_pause_s=0.3, is_self_fencing=False, network=network)


def _with_restarts(schedule: Schedule) -> Schedule:
    """Calls that take long, a server that is killed often, drivers that come and go."""
    schedule = _with_slow_calls(schedule)
    crashes = replace(schedule.crashes, agent_every_s=NEVER_S, server_every_s=5.0)
    return replace(schedule, crashes=crashes, driver=replace(schedule.driver, restart_every_s=4.0))


def _with_deaf_drivers(schedule: Schedule) -> Schedule:
    """Calls that take long, at drivers that are sick by their probes now and then."""
    schedule = _with_slow_calls(schedule)
    driver = replace(schedule.driver, deaf=0.5, slow=0.0)
    network = replace(schedule.network, partition_every_s=NEVER_S)
    return replace(schedule, driver=driver, network=network, crashes=replace(schedule.crashes, agent_every_s=NEVER_S))


def _with_late_reports(schedule: Schedule) -> Schedule:
    """The same, and requests that come late."""
    schedule = _with_deaf_drivers(schedule)
    return replace(schedule, network=replace(schedule.network, late=0.4, late_s=4.0))


def _with_hooks(schedule: Schedule) -> Schedule:
    """Nodes that are lost often, and a fence hook that turns them off and on."""
    schedule = _with_long_partitions(schedule)
    crashes = replace(schedule.crashes, agent_every_s=8.0, reboot_share=0.6, long_away=0.4)
    return replace(schedule, has_hook=True, is_freeing_on_reboot=True, crashes=crashes)


def _with_late_returns(schedule: Schedule) -> Schedule:
    """Nodes that come back just when more is taken from them."""
    schedule = _with_long_partitions(schedule)
    network = replace(schedule.network, partition_every_s=10.0, partition_s=15.0)
    crashes = replace(schedule.crashes, server_every_s=NEVER_S, server_at_commit=0.0, agent_every_s=NEVER_S)
    return replace(schedule, network=network, crashes=crashes, has_hook=False, is_fencing_by_word=True)


PLANS: dict[str, Plan] = {
    "report_unchecked": _make_with(Parts(outcomes=UncheckedOutcomes), adjust=_with_late_requests),
    "freed_by_timer": _make_with(Parts(), is_takeover_timed=True, adjust=_with_long_partitions),
    "detach_unasked": _make_with(Parts(planner=HastyPlanner)),
    "fresh_names": _make_with(Parts(planner=ForgetfulPlanner)),
    "controller_changed": _make_with(Parts(planner=FicklePlanner), adjust=_with_slow_calls),
    "controllers_unheard": _make_with(Parts(planner=TrustingPlanner), adjust=_with_restarts),
    "sick_hurried": _make_with(Parts(planner=HurriedPlanner), adjust=_with_deaf_drivers),
    "reports_overtaken": Plan(lie="overtaken", adjust=_with_late_reports),
    "renewed_unclean": Plan(lie="unclean", adjust=_with_long_partitions),
    "clean_by_stale_list": Plan(lie="stale", adjust=_with_late_returns),
    "mounted_untaken": Plan(lie="untaken", adjust=_with_hooks),
}


def run_planted(seed: int, defect: str | None) -> Result:
    """Run a seed, with a defect if one is named."""
    return sim_world.run(seed, plan=PLANS[defect] if defect else None)
