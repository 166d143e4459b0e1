"""An engine without a node, whose identities are asked by the API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from app_asking import ask, read
from engine_kit import NODE, Kit, RunningClock

from moorage.api.app import App
from moorage.api.http import Answer
from moorage.engine.ports import AclSettings, EngineSettings, IdentitySettings
from moorage.engine.service import Service
from moorage.state.feed import Feed
from moorage.state.memory import MemoryStore
from moorage.state.repo import Repo
from moorage.testing.clock import SeededChance

OTHER = "22222222-2222-3333-4444-555555555555"
PAGES = (("PUT", "register"), ("PUT", "plugins"), ("GET", "steps"), ("GET", "claims"), ("PUT", "reports"))


def secret_of(name: str) -> str:
    return f"moorage-node-{name * 40}"[:60]


class LateClock(RunningClock):
    """The real time, some seconds ahead."""

    ahead_s = 0.0

    def now_ns(self) -> int:
        return super().now_ns() + int(self.ahead_s * 1e9)


class Bare(Kit):
    """A kit without a node; ``clock`` can be put ahead."""

    def __init__(self, identity: IdentitySettings, *, has_acl: bool = False) -> None:
        settings = EngineSettings(identity=identity, acl=AclSettings(enabled=has_acl))
        super().__init__(MemoryStore(), settings)
        self.clock = LateClock()
        self.repo = Repo(self.store, Feed(self.store))
        self.service = Service(self.repo, self.clock, SeededChance(), self.service.settings)
        self.app = App(self.service)

    async def join(self, node_id: str = NODE, secret: str = "", *, name: str = "n1", token: str = "") -> Answer:
        body = {"name": name, "join_token": token}
        return await ask(self, "PUT", f"/v1/node/{node_id}/join", body, **own(secret or secret_of("a")))

    async def make_token(self, **members: object) -> str:
        return str((await read(self, "PUT", "/v1/nodes/join-tokens", members))["Token"])


def own(secret: str) -> dict[str, str]:
    return {"x-nomad-token": secret}


@asynccontextmanager
async def bare(
    *, is_join_needed: bool = False, is_certificate_needed: bool = False, has_acl: bool = False
) -> AsyncIterator[Bare]:
    """A kit that runs."""
    settings = IdentitySettings(is_join_needed=is_join_needed, is_certificate_needed=is_certificate_needed)
    kit = Bare(settings, has_acl=has_acl)
    async with anyio.create_task_group() as group:
        await group.start(kit.service.run)
        yield kit
        group.cancel_scope.cancel()


def body_of(page: str, node_id: str = NODE) -> object:
    node = {"id": node_id, "name": "n1", "boot_id": "b1"}
    return {"register": {"node": node}, "plugins": {"instances": {}}, "reports": {"reports": []}}.get(page)
