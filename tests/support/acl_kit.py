"""A kit with access control on: policies and tokens in a line, and requests as somebody."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

from engine_kit import Kit, running_kit

from moorage.api.http import Answer, Request
from moorage.api.params import find_query
from moorage.engine.ports import AclSettings, Clock, ResetIndex


class Reset:
    """An operator's reset file."""

    def __init__(self) -> None:
        self.index: int | None = None

    async def read_index(self) -> int | None:
        """The number in it."""
        return self.index


class AclKit:
    """Asks the app of a kit as the bearer of a secret. ``management``: the bootstrap token's secret."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.management = ""

    async def ask(self, method: str, target: str, body: object = None, *, secret: str = "", **headers: str) -> Answer:
        """The answer to a request; ``secret`` empty: nobody's."""
        path, _, query = target.partition("?")
        sent = {**headers, "x-nomad-token": secret} if secret else headers
        request = Request(
            method=method,
            path=path,
            parts=tuple(unquote(path).split("/")[1:]),
            query=find_query(query.encode()),
            raw_query=query.encode(),
            headers=sent,
            body=b"" if body is None else json.dumps(body).encode(),
        )
        return await self.kit.app.answer(request)

    async def read(self, method: str, target: str, body: object = None, *, secret: str = "") -> Any:
        """The JSON of an answer that must be a 200; asked as management where no secret is given."""
        answer = await self.ask(method, target, body, secret=secret or self.management)
        assert answer.status == 200, f"{method} {target}: {answer.status} {answer.body[:300]!r}"
        return json.loads(answer.body) if answer.body else None

    async def status(self, method: str, target: str, body: object = None, *, secret: str = "") -> int:
        """The status alone."""
        return (await self.ask(method, target, body, secret=secret)).status

    async def apply(self, name: str, rules: str) -> None:
        """Write a policy."""
        await self.read("PUT", f"/v1/acl/policy/{name}", {"Name": name, "Rules": rules})

    async def make_token(self, *policies: str, **members: object) -> Any:
        """Make a client token with these policies; its JSON."""
        sent = {"Name": "t", "Type": "client", "Policies": list(policies), **members}
        return await self.read("PUT", "/v1/acl/token", sent)

    async def grant(self, rules: str) -> str:
        """The secret of a new token with a policy of its own that has these rules."""
        name = f"p{len(self.kit.repo.view.acl_policies)}"
        await self.apply(name, rules)
        return str((await self.make_token(name))["SecretID"])


@asynccontextmanager
async def running_acl(
    *, strict: bool = False, clock: Clock | None = None, reset: ResetIndex | None = None
) -> AsyncIterator[AclKit]:
    """A kit with access control, bootstrapped."""
    async with running_kit(acl=AclSettings(enabled=True, strict=strict), clock=clock, reset=reset) as kit:
        found = AclKit(kit)
        found.management = (await found.read("PUT", "/v1/acl/bootstrap"))["SecretID"]
        yield found
