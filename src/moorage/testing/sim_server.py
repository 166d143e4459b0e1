"""The simulated server: the real engine over a store that outlives it, killed at any await and started again."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from moorage.engine.ports import EngineSettings, HookAnswer
from moorage.engine.service import Service
from moorage.errors import MoorageError, StateConflict, StoreUnavailable, Unavailable
from moorage.model.ids import Revision
from moorage.model.node import Node
from moorage.rules.nodes import FencingSettings
from moorage.state.feed import Feed
from moorage.state.memory import MemoryStore
from moorage.state.repo import Repo
from moorage.state.store import Compare, Op, TxnResult

if TYPE_CHECKING:
    from moorage.testing.sim_world import World

Result = TypeVar("Result")
LEASE_S = 6.0
GRACE_S = 8.0


def make_settings(*, is_takeover_timed: bool = False, is_freeing_on_reboot: bool = False) -> EngineSettings:
    """Short deadlines, so that a run of a minute sees them all."""
    fencing = FencingSettings(
        lease_s=LEASE_S, grace_s=GRACE_S, is_takeover_timed=is_takeover_timed, hook_retry_first_s=1.0,
        hook_retry_cap_s=5.0,
        is_freeing_on_reboot=is_freeing_on_reboot,
    )  # fmt: skip
    return EngineSettings(
        request_s=8.0, controller_call_s=4.0, snapshot_call_s=4.0, list_call_s=4.0, node_call_s=4.0,
        operation_kept_s=20.0, allocation_kept_s=30.0, fencing=fencing,
    )  # fmt: skip


class SimStore(MemoryStore):
    """The store in memory, with pauses, and with a witness of every commit."""

    def __init__(self, world: World) -> None:
        super().__init__(watch_events_max=world.schedule.store.watch_events_max)
        self._world = world
        self._random = random.Random(f"store/{world.seed}")

    async def transact(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        """See ``Store.transact``."""
        trouble = self._world.schedule.store
        await self._pause(trouble.delay_s)
        if self._world.roll(self._random, trouble.unavailable):
            raise StoreUnavailable("the disk is full")
        result = await super().transact(compares, then, otherwise)
        await self._pause(trouble.delay_s)
        return result

    def _apply(self, ops: Sequence[Op]) -> Revision:
        """The moment of the commit: the validators see it first, and it may be the last thing its server does."""
        before = self._world.validators.revision
        revision = super()._apply(ops)
        if revision != before:
            self._world.validators.on_commit(revision, ops)
            if self._world.roll(self._random, self._world.schedule.crashes.server_at_commit):
                self._world.server.kill("at a commit", pause_s=self._random.uniform(0.0, 3.0))
        return revision

    async def _pause(self, most_s: float) -> None:
        if most_s:
            await anyio.sleep(self._random.uniform(0.0, most_s))


class PowerSwitch:
    """A fence hook that turns a lost host off and on again, if it works."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = random.Random(f"hook/{world.seed}")

    async def fence(self, node: Node) -> HookAnswer:
        """See ``FenceHook``."""
        await anyio.sleep(self._random.uniform(0.0, 2.0))
        if self._random.random() < 0.3:
            return HookAnswer(is_fenced=False, text="the switch does not answer", exit_code=1)
        host = self._world.find_host(node.id)
        host.power_off("by the hook", pause_s=self._random.uniform(0.5, 15.0))
        await anyio.sleep(self._random.uniform(0.0, 2.0))
        return HookAnswer(is_fenced=True, text="the power was cut", exit_code=0)


class _Reply(Generic[Result]):
    def __init__(self) -> None:
        self.event = anyio.Event()
        self.result: Result | None = None
        self.error: MoorageError | None = None

    def fail(self, error: MoorageError) -> None:
        if not self.event.is_set():
            self.error = error
            self.event.set()


class Server:
    """One server process after another over one store. ``make``: builds the engine (planted defects come in here)."""

    def __init__(self, world: World, make: Callable[[Repo, World], Service]) -> None:
        self._world = world
        self._make = make
        self._service: Service | None = None
        self._group: TaskGroup | None = None
        self._scope: anyio.CancelScope | None = None
        self._pause_s = 0.0
        self.started_s = 0.0
        # In order of asking: what is asked of a server that dies is answered in that order.
        self._replies: dict[_Reply[Any], None] = {}

    @property
    def service(self) -> Service | None:
        """The engine, while it runs."""
        return self._service

    async def run(self) -> None:
        """Keep a server running; a killed one comes back after its pause."""
        while True:
            self._pause_s = 0.1
            with anyio.CancelScope() as scope:
                self._scope = scope
                try:
                    await self._run_once()
                except Exception as error:  # noqa: BLE001 - whatever ends a server is a finding
                    if not scope.cancel_called:
                        self._world.violate_crash("server", error)
                finally:
                    self._scope = self._service = self._group = None
            self._reset_connections()
            await anyio.sleep(self._pause_s)

    async def _run_once(self) -> None:
        service = self._make(Repo(self._world.store, Feed(self._world.store)), self._world)
        async with anyio.create_task_group() as group:
            await group.start(service.run)
            self._world.history.note("server", "is ready")
            self.started_s = anyio.current_time()
            self._service, self._group = service, group

    def _reset_connections(self) -> None:
        for reply in list(self._replies):
            reply.fail(Unavailable("connection reset"))
        self._replies.clear()

    def kill(self, why: str, *, pause_s: float) -> None:
        """Kill the server; it comes back after the pause."""
        if self._scope is not None and not self._scope.cancel_called:
            self._world.history.note("server", f"killed {why}, back in {pause_s:.1f} s")
            self._pause_s = pause_s
            self._service = None
            self._scope.cancel()

    async def ask(self, act: Callable[[Service], Awaitable[Result]]) -> Result:
        """Have something done by the server. Raises Unavailable when it is not there or dies over it."""
        if self._service is None or self._group is None:
            await anyio.lowlevel.checkpoint()
            raise Unavailable("connection refused")
        reply: _Reply[Result] = _Reply()
        self._replies[reply] = None
        self._group.start_soon(self._serve, self._service, act, reply)
        try:
            await reply.event.wait()
        finally:
            self._replies.pop(reply, None)
        if reply.error is not None:
            raise reply.error
        return reply.result  # type: ignore[return-value]

    async def _serve(
        self, service: Service, act: Callable[[Service], Awaitable[Result]], reply: _Reply[Result]
    ) -> None:
        try:
            reply.result = await act(service)
            reply.event.set()
        except StateConflict as error:
            self._world.history.violate("conflict_never_shown", repr(error))
            reply.fail(Unavailable(str(error)))
        except MoorageError as error:
            reply.fail(error)
        except Exception as error:  # noqa: BLE001 - a request that ends a server is a finding
            self._world.violate_crash("request", error)
            reply.fail(Unavailable(f"internal error: {error!r}"))
