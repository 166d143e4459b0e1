"""What goes wrong in a simulated run, and how often: drawn from the seed.

Each seed switches on some kinds of trouble and leaves others out, so that the rare ones are also seen alone.
Units: seconds of virtual time; rates are chances in [0, 1] per event, ``*_every_s`` the mean time between two.
"""

from __future__ import annotations

import random

import msgspec

from moorage.model.volume import ACCESS_MODES

PLUGIN = "sim"
NEVER_S = 1e9


class NetworkTrouble(msgspec.Struct, frozen=True, kw_only=True):
    """Between agents (and users) and the server. ``late``: the caller gave up, yet the request arrives afterwards."""

    delay_s: float = 0.02
    request_lost: float = 0.0
    answer_lost: float = 0.0
    doubled: float = 0.0
    late: float = 0.0
    late_s: float = 8.0
    partition_every_s: float = NEVER_S
    partition_s: float = 12.0


class DriverTrouble(msgspec.Struct, frozen=True, kw_only=True):
    """At the driver. ``slow``: the call takes longer than its caller waits, and has its effect later. ``deaf``: a probe
    has no answer, while calls go on."""

    delay_s: float = 0.05
    slow: float = 0.0
    slow_s: float = 10.0
    answer_lost: float = 0.0
    unavailable: float = 0.0
    final: float = 0.0
    restart_every_s: float = NEVER_S
    restart_s: float = 3.0
    deaf: float = 0.0


class CrashTrouble(msgspec.Struct, frozen=True, kw_only=True):
    """Kills. ``server_at_commit``: the chance that a commit is the last thing that its server does."""

    server_every_s: float = NEVER_S
    server_at_commit: float = 0.0
    server_pause_s: float = 2.0
    agent_every_s: float = NEVER_S
    agent_at_call: float = 0.0
    agent_pause_s: float = 4.0
    reboot_share: float = 0.3
    long_away: float = 0.2
    long_away_s: float = 25.0


class StoreTrouble(msgspec.Struct, frozen=True, kw_only=True):
    """At the store. ``watch_events_max``: so small that watches fall behind and load everything again."""

    delay_s: float = 0.0
    unavailable: float = 0.0
    watch_events_max: int = 10_000


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """One run. ``faults_s``: how long things go wrong; ``settle_s``: how long everything may take afterwards."""

    nodes: int
    users: int
    volumes: int
    faults_s: float
    settle_s: float = 300.0
    user_pause_s: float = 1.0
    write_pause_s: float = 0.8
    is_staging: bool = True
    is_attaching: bool = True
    has_hook: bool = False
    is_fencing_by_word: bool = True
    has_targets: bool = True
    modes: tuple[str, ...] = ACCESS_MODES
    is_self_fencing: bool = False
    is_freeing_on_reboot: bool = False
    network: NetworkTrouble
    driver: DriverTrouble
    crashes: CrashTrouble
    store: StoreTrouble


def draw_schedule(seed: int) -> Schedule:
    """The schedule of a seed."""
    draw = random.Random(f"schedule/{seed}")

    def some(low: float, high: float, *, share: float = 0.6) -> float:
        return draw.uniform(low, high) if draw.random() < share else 0.0

    def every(low: float, high: float, *, share: float = 0.6) -> float:
        return draw.uniform(low, high) if draw.random() < share else NEVER_S

    schedule = Schedule(
        nodes=draw.choice((2, 2, 3)),
        users=draw.choice((2, 3, 4)),
        volumes=draw.choice((1, 2, 3)),
        faults_s=draw.uniform(40.0, 70.0),
        user_pause_s=draw.uniform(0.2, 1.5),
        is_staging=draw.random() < 0.7,
        is_attaching=draw.random() < 0.85,
        has_hook=draw.random() < 0.3,
        is_fencing_by_word=draw.random() < 0.7,
        has_targets=draw.random() < 0.5,
        is_self_fencing=draw.random() < 0.3,
        network=NetworkTrouble(
            delay_s=draw.choice((0.0, 0.01, 0.2)),
            request_lost=some(0.01, 0.2),
            answer_lost=some(0.01, 0.2),
            doubled=some(0.01, 0.2, share=0.4),
            late=some(0.01, 0.2, share=0.4),
            partition_every_s=every(8.0, 25.0),
            partition_s=draw.choice((4.0, 15.0, 25.0)),
        ),
        driver=DriverTrouble(
            delay_s=draw.choice((0.01, 0.1, 0.8)),
            slow=some(0.02, 0.2),
            answer_lost=some(0.02, 0.25),
            unavailable=some(0.02, 0.2),
            final=some(0.01, 0.1),
            restart_every_s=every(10.0, 30.0, share=0.4),
        ),
        crashes=CrashTrouble(
            server_every_s=every(6.0, 25.0),
            server_at_commit=some(0.005, 0.08, share=0.5),
            agent_every_s=every(8.0, 25.0),
            agent_at_call=some(0.01, 0.08, share=0.4),
        ),
        store=StoreTrouble(
            delay_s=draw.choice((0.0, 0.0, 0.01, 0.2)),
            unavailable=some(0.005, 0.03, share=0.3),
            watch_events_max=draw.choice((10_000, 10_000, 3)),
        ),
        # What came later is drawn last, so that older seeds stay the runs that they were.
        is_freeing_on_reboot=draw.random() < 0.4,
    )
    deaf = some(0.05, 0.4, share=0.4)
    return msgspec.structs.replace(schedule, driver=msgspec.structs.replace(schedule.driver, deaf=deaf))


def calm(schedule: Schedule) -> Schedule:
    """The same world with nothing going wrong any more."""
    return msgspec.structs.replace(
        schedule,
        network=NetworkTrouble(delay_s=0.005),
        driver=DriverTrouble(delay_s=0.02),
        crashes=CrashTrouble(),
        store=StoreTrouble(),
    )
