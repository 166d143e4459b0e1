"""Identities by the API: each page by its own agent, another's, a stranger and nobody; join tokens; reset."""

from __future__ import annotations

import json

import anyio
import pytest
from app_asking import ask, read, text_of
from engine_kit import NODE
from identity_kit import OTHER, PAGES, bare, body_of, own, secret_of

from moorage.api.http import Answer, Request
from moorage.model.identity import Peer

pytestmark = pytest.mark.anyio


async def test_an_agents_pages_are_its_own() -> None:
    async with bare() as kit:
        assert (await kit.join()).status == 200
        assert (await kit.join(OTHER, secret_of("b"), name="n2")).status == 200
        for method, page in PAGES:
            target = f"/v1/node/{NODE}/{page}"
            body = body_of(page)
            strangers = [{}, own(""), own("x"), own(secret_of("b")), own(secret_of("c")), own(NODE)]
            for headers in strangers:
                answer = await ask(kit, method, target, body, **headers)
                assert answer.status == 403, f"{page} with {headers}: {answer.status}"
                assert secret_of("a") not in text_of(answer)
            assert (await ask(kit, method, target, body, **own(secret_of("a")))).status == 200, page
        bearer = {"authorization": f"Bearer {secret_of('a')}"}
        assert (await ask(kit, "GET", f"/v1/node/{NODE}/claims", **bearer)).status == 200


async def test_a_page_of_a_node_that_never_joined_is_nobodys() -> None:
    async with bare() as kit:
        for method, page in PAGES:
            answer = await ask(kit, method, f"/v1/node/{NODE}/{page}", body_of(page), **own(secret_of("a")))
            assert answer.status == 403
        assert kit.service.reads.find_node(NODE) is None


async def test_without_a_requirement_the_first_one_has_the_node() -> None:
    async with bare() as kit:
        joined = json.loads((await kit.join()).body)
        assert joined == {"joined_by": "first_use"}
        revision = kit.repo.view.revision
        assert (await kit.join()).status == 200
        assert kit.repo.view.revision == revision, "a repeated join wrote something"
        refused = await kit.join(secret=secret_of("b"))
        assert refused.status == 403
        assert f"moorage node reset-identity {NODE}" in text_of(refused)
        taken = await kit.join(OTHER)
        assert (taken.status, "each node has its own" in text_of(taken)) == (403, True)


async def test_a_join_token_is_used_once_and_repeats_for_the_same_secret() -> None:
    async with bare(is_join_needed=True) as kit:
        refused = await kit.join()
        assert refused.status == 403
        assert "moorage node join-token create" in text_of(refused)
        assert "not known" in text_of(await kit.join(token="moorage-join-guess"))
        token = await kit.make_token()
        assert (await kit.join(token=token)).status == 200
        assert (await kit.join(token=token)).status == 200
        assert (await kit.join()).status == 200, "it has joined: it needs no token any more"
        late = await kit.join(OTHER, secret_of("b"), token=token)
        assert (late.status, "used up" in text_of(late)) == (403, True)
        [shown] = await read(kit, "GET", "/v1/nodes/join-tokens")
        assert (shown["UsesLeft"], shown["Nodes"]) == (0, [NODE])
        assert token not in json.dumps(shown)


async def test_two_nodes_at_once_cannot_share_a_use() -> None:
    async with bare(is_join_needed=True) as kit:
        token = await kit.make_token(Uses=3)
        statuses: list[int] = []

        async def come(number: int) -> None:
            node_id = f"{number:08d}-2222-3333-4444-555555555555"
            answer = await kit.join(node_id, f"moorage-node-{number:040d}", token=token)
            statuses.append(answer.status)

        async with anyio.create_task_group() as group:
            for number in range(12):
                group.start_soon(come, number)
        assert sorted(statuses) == [200] * 3 + [403] * 9
        assert len(kit.repo.view.identities) == 3


async def test_an_expired_or_deleted_join_token_lets_nobody_in() -> None:
    async with bare(is_join_needed=True) as kit:
        token = await kit.make_token(TTL="30s")
        kit.clock.ahead_s = 31
        answer = await kit.join(token=token)
        assert (answer.status, "expired at 20" in text_of(answer)) == (403, True)
        made = await read(kit, "PUT", "/v1/nodes/join-tokens", {})
        assert (await ask(kit, "DELETE", f"/v1/nodes/join-token/{made['ID']}")).status == 200
        assert "not known" in text_of(await kit.join(token=made["Token"]))
        kit.clock.ahead_s = 40 + 86400
        await kit.make_token()
        assert len(await read(kit, "GET", "/v1/nodes/join-tokens")) == 1, "stale tokens are kept"
        answer = await ask(kit, "PUT", "/v1/nodes/join-tokens", {"TTL": "soon"})
        assert (answer.status, "TTL" in text_of(answer)) == (400, True)


async def test_a_reset_takes_the_secret_away_for_ever() -> None:
    async with bare(is_join_needed=True) as kit:
        await kit.join(token=await kit.make_token())
        page = f"/v1/node/{NODE}/claims"
        await ask(kit, "PUT", f"/v1/node/{NODE}/register", body_of("register"), **own(secret_of("a")))
        no_reason = await ask(kit, "PUT", f"/v1/node/{NODE}/reset-identity", {"Reason": " "})
        assert no_reason.status == 400
        assert (await ask(kit, "GET", page, **own(secret_of("a")))).status == 200
        await read(kit, "PUT", f"/v1/node/{NODE}/reset-identity", {"Reason": "stolen", "By": "me"})
        assert (await ask(kit, "GET", page, **own(secret_of("a")))).status == 403
        again = await kit.join(token=await kit.make_token())
        assert (again.status, "withdrawn" in text_of(again)) == (403, True)
        assert (await kit.join(secret=secret_of("b"))).status == 403
        assert (await kit.join(secret=secret_of("b"), token=await kit.make_token())).status == 200
        assert (await ask(kit, "GET", page, **own(secret_of("b")))).status == 200
        assert (await ask(kit, "GET", page, **own(secret_of("a")))).status == 403
        missing = await ask(kit, "PUT", f"/v1/node/{OTHER}/reset-identity", {"Reason": "r"})
        assert missing.status == 404


async def test_agents_show_a_certificate_of_their_node_where_one_is_needed() -> None:
    async with bare(is_join_needed=True, is_certificate_needed=True) as kit:

        async def ask_as(peer: Peer, method: str, page: str, body: object) -> Answer:
            path = f"/v1/node/{NODE}/{page}"
            request = Request(
                method=method,
                path=path,
                parts=tuple(path.split("/")[1:]),
                headers=own(secret_of("a")),
                body=json.dumps(body).encode(),
                peer=peer,
            )
            return await kit.app.answer(request)

        wrong = (Peer(), Peer(has_certificate=True), Peer(has_certificate=True, agents=("n2",)))
        right = Peer(has_certificate=True, agents=("n1",))
        for peer in wrong:
            assert (await ask_as(peer, "PUT", "join", {"name": "n1"})).status == 403
        assert json.loads((await ask_as(right, "PUT", "join", {"name": "n1"})).body) == {"joined_by": "certificate"}
        for method, page in PAGES:
            assert (await ask_as(right, method, page, body_of(page))).status == 200
            for peer in wrong:
                assert (await ask_as(peer, method, page, body_of(page))).status == 403


async def test_no_secret_is_on_any_record() -> None:
    async with bare(is_join_needed=True) as kit:
        token = await kit.make_token()
        await kit.join(token=token)
        listing = await kit.store.list("")
        stored = b"".join(entry.value for entry in listing.entries)
        assert len(listing.entries) == 2
        assert token.encode() not in stored
        assert secret_of("a").encode() not in stored


@pytest.mark.parametrize("body", [None, [], {"join_token": "x"}, {"name": 1}])
async def test_a_bad_join_says_what_is_needed(body: object) -> None:
    async with bare() as kit:
        answer = await ask(kit, "PUT", f"/v1/node/{NODE}/join", body, **own(secret_of("a")))
        assert (answer.status, "a name" in text_of(answer)) == (400, True)
        assert (await kit.join("short")).status == 400


async def test_with_access_control_a_node_joins_by_token_and_may_use_its_own_pages_alone() -> None:
    async with bare(has_acl=True) as kit:
        boss = own((await read(kit, "PUT", "/v1/acl/bootstrap"))["SecretID"])
        assert (await kit.join()).status == 403, "a node was taken for nothing"
        for method, target in (("GET", "/v1/nodes/join-tokens"), ("PUT", "/v1/nodes/join-tokens")):
            assert (await ask(kit, method, target, {})).status == 403
        token = str((await read(kit, "PUT", "/v1/nodes/join-tokens", {"Uses": 2}, **boss))["Token"])
        assert (await kit.join(token=token)).status == 200
        assert (await kit.join(OTHER, secret_of("b"), name="n2", token=token)).status == 200
        for method, page in PAGES:
            target, body = f"/v1/node/{NODE}/{page}", body_of(page)
            for headers in ({}, boss, own(secret_of("b")), own(secret_of("c"))):
                assert (await ask(kit, method, target, body, **headers)).status == 403
            assert (await ask(kit, method, target, body, **own(secret_of("a")))).status == 200
        for method, target in (
            ("GET", "/v1/nodes"),
            ("GET", "/v1/nodes/join-tokens"),
            ("PUT", "/v1/nodes/join-tokens"),
            ("PUT", f"/v1/node/{OTHER}/drain"),
            ("PUT", f"/v1/node/{OTHER}/reset-identity"),
            ("GET", "/v1/volumes?type=csi"),
            ("GET", f"/v1/node/{OTHER}"),
        ):
            answer = await ask(kit, method, target, {"Reason": "r"}, **own(secret_of("a")))
            assert answer.status == 403, (method, target, answer.status)
        await read(kit, "PUT", f"/v1/node/{OTHER}/reset-identity", {"Reason": "stolen"}, **boss)
        assert (await ask(kit, "GET", f"/v1/node/{OTHER}/claims", **own(secret_of("b")))).status == 403


async def test_a_certified_node_registers_under_no_other_name() -> None:
    async with bare(is_certificate_needed=True) as kit:

        async def ask_as(name: str, page: str, body: object) -> Answer:
            path = f"/v1/node/{NODE}/{page}"
            request = Request(
                method="PUT",
                path=path,
                parts=tuple(path.split("/")[1:]),
                headers=own(secret_of("a")),
                body=json.dumps(body).encode(),
                peer=Peer(has_certificate=True, agents=(name,)),
            )
            return await kit.app.answer(request)

        assert (await ask_as("n1", "join", {"name": "n1"})).status == 200
        other = {"node": {"id": NODE, "name": "n2", "boot_id": "b"}}
        assert (await ask_as("n1", "register", other)).status == 403
        # A host that got another name comes with another certificate: its join says so.
        assert (await ask_as("n2", "reports", body_of("reports"))).status == 403
        assert (await ask_as("n2", "join", {"name": "n2"})).status == 200
        assert (await ask_as("n2", "register", other)).status == 200
        assert (await ask_as("n2", "reports", body_of("reports"))).status == 200
        assert (await ask_as("n1", "reports", body_of("reports"))).status == 403
