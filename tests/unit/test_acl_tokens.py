"""Tokens and policies by API: bootstrap, secrets, expiry, revocation, who sees what of them."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from acl_kit import AclKit, Reset, running_acl
from engine_kit import running_kit

from moorage.state.memory import MemoryStore
from moorage.testing.clock import ManualClock

pytestmark = pytest.mark.anyio

READ = 'namespace "default" { policy = "read" }'
UUID = "11111111-2222-4333-8444-555555555555"


# -- bootstrap -------------------------------------------------------------------------------------------------------


async def test_bootstrap_works_once_and_once_more_after_a_reset() -> None:
    reset = Reset()
    async with running_acl(reset=reset) as acl:
        again = await acl.ask("POST", "/v1/acl/bootstrap")
        assert again.status == 400
        text = again.body.decode()
        index = int(text.removeprefix("ACL bootstrap already done (reset index: ").removesuffix(")"))
        reset.index = index - 1
        assert await acl.status("PUT", "/v1/acl/bootstrap") == 400
        reset.index = index
        made = json.loads((await acl.ask("PUT", "/v1/acl/bootstrap")).body)
        assert (made["Name"], made["Type"], made["Global"]) == ("Bootstrap Token", "management", True)
        assert made["SecretID"] != acl.management
        # The same file allows no third one.
        assert await acl.status("PUT", "/v1/acl/bootstrap") == 400
        assert len(await acl.read("GET", "/v1/acl/tokens")) == 2


async def test_bootstrap_with_a_secret_of_ones_own() -> None:
    reset = Reset()
    async with running_acl(reset=reset) as acl:
        reset.index = next(iter(acl.kit.repo.view.acl_bootstrap)).modified
        for bad, text in (({"BootstrapSecret": "short"}, "invalid acl token"), ([], "failed to decode request body: ")):
            answer = await acl.ask("PUT", "/v1/acl/bootstrap", bad)
            assert answer.status == 400
            assert answer.body.decode().startswith(text)
        assert (await acl.read("PUT", "/v1/acl/bootstrap", {"BootstrapSecret": UUID}))["SecretID"] == UUID
        assert (await acl.read("GET", "/v1/acl/token/self", secret=UUID))["Type"] == "management"


async def test_two_bootstraps_at_once_make_one_token() -> None:
    async with running_kit() as plain:
        assert (await AclKit(plain).ask("PUT", "/v1/acl/bootstrap")).body == b"ACL support disabled"
    reset = Reset()
    async with running_acl(reset=reset) as acl:
        statuses: list[int] = []
        reset.index = next(iter(acl.kit.repo.view.acl_bootstrap)).modified

        async def bootstrap() -> None:
            statuses.append(await acl.status("PUT", "/v1/acl/bootstrap"))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(bootstrap)
        assert sorted(statuses) == [200, 400, 400, 400, 400]


# -- secrets ---------------------------------------------------------------------------------------------------------


async def test_secrets_are_not_on_record_and_shown_to_their_bearer_alone() -> None:
    async with running_acl() as acl:
        await acl.apply("r", READ)
        made = await acl.make_token("r")
        secret, accessor = made["SecretID"], made["AccessorID"]
        store = acl.kit.store
        assert isinstance(store, MemoryStore)
        entries = (await store.list("")).entries
        assert not [e.key for e in entries if secret.encode() in e.value or acl.management.encode() in e.value]
        assert (await acl.read("GET", f"/v1/acl/token/{accessor}"))["SecretID"] == ""
        assert (await acl.read("GET", f"/v1/acl/token/{accessor}", secret=secret))["SecretID"] == secret
        assert (await acl.read("GET", "/v1/acl/token/self", secret=secret))["SecretID"] == secret
        listed = (await acl.ask("GET", "/v1/acl/tokens", secret=acl.management)).body
        assert b"SecretID" not in listed
        changed = {"AccessorID": accessor, "Name": "n", "Type": "client", "Policies": ["r"]}
        updated = await acl.read("PUT", f"/v1/acl/token/{accessor}", changed)
        assert (updated["SecretID"], updated["Name"]) == ("", "n")
        assert await acl.status("GET", "/v1/volumes?type=csi", secret=secret) == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-nomad-token": "{s}"}, 200),
        ({"x-nomad-token": "  {s} "}, 200),
        ({"authorization": "Bearer {s}"}, 200),
        ({"authorization": "bEARER   {s} more"}, 200),
        ({"authorization": "Basic {s}"}, 403),
        ({"authorization": "Bearer"}, 403),
        ({"authorization": "Bearer {s}", "x-nomad-token": "bad"}, 403),
        ({"authorization": "Bearer bad", "x-nomad-token": "{s}"}, 200),
        ({"x-nomad-token": "{S}"}, 403),
        ({}, 403),
    ],
)
async def test_headers(headers: dict[str, str], status: int) -> None:
    async with running_acl() as acl:
        s = acl.management
        upper = s.upper() if s.upper() != s else "0" * 36
        sent: dict[str, Any] = {k: v.replace("{s}", s).replace("{S}", upper) for k, v in headers.items()}
        assert (await acl.ask("GET", "/v1/nodes", **sent)).status == status
        assert (await acl.ask("GET", f"/v1/nodes?token={s}")).status == 403


async def test_unknown_and_malformed_secrets_look_alike() -> None:
    async with running_acl() as acl:
        for secret in (UUID, "nonsense", "ä" * 40, "x" * 5000, acl.management[:-1], acl.management + "0"):
            answer = await acl.ask("GET", "/v1/acl/token/self", secret=secret)
            assert (answer.status, answer.body) == (403, b"Permission denied")


# -- expiry and revocation -------------------------------------------------------------------------------------------


async def test_expired_tokens_are_refused_at_once_and_then_removed() -> None:
    clock = ManualClock()
    async with running_acl(clock=clock) as acl:
        await acl.apply("r", READ)
        made = await acl.make_token("r", ExpirationTTL="1h")
        assert made["ExpirationTTL"] == "1h0m0s"
        assert made["ExpirationTime"] == "2023-11-14T23:13:20Z"
        later = await acl.make_token("r", ExpirationTime="2023-11-15T12:00:00.5+01:00")
        assert (later["ExpirationTTL"], later["ExpirationTime"]) == ("", "2023-11-15T11:00:00.5Z")
        secret, accessor = made["SecretID"], made["AccessorID"]
        clock.advance(3599.5)
        assert await acl.status("GET", "/v1/volumes?type=csi", secret=secret) == 200
        clock.advance(0.5)
        # The loop that removes has not run: nothing waits in between.
        assert await acl.status("GET", "/v1/volumes?type=csi", secret=secret) == 403
        assert await acl.status("GET", f"/v1/acl/token/{accessor}", secret=acl.management) == 404
        assert accessor not in [t["AccessorID"] for t in await acl.read("GET", "/v1/acl/tokens")]
        await acl.make_token("r")  # a change of the table wakes the loop
        with anyio.fail_after(5):
            while any(r.value.accessor_id == accessor for r in acl.kit.repo.view.acl_tokens):
                await anyio.sleep(0.01)
        assert await acl.status("GET", "/v1/volumes?type=csi", secret=later["SecretID"]) == 200


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        ({"ExpirationTTL": "1s"}, "expiration time cannot be less than 1m0s in the future (was 1s)"),
        ({"ExpirationTTL": "1h", "ExpirationTime": "2030-01-01T00:00:00Z"}, "exclude each other"),
        ({"ExpirationTTL": "soon"}, "ExpirationTTL 'soon' is not a duration"),
        ({"ExpirationTTL": "-1h"}, "is not a duration"),
        ({"ExpirationTTL": 1000}, "(was 1µs)"),
        ({"ExpirationTime": "tomorrow"}, "ExpirationTime 'tomorrow' is not a time"),
        ({"ExpirationTime": "2030-13-01T00:00:00Z"}, "is not a time"),
        ({"ExpirationTime": "2001-01-01T00:00:00Z"}, "cannot be less than 1m0s"),
        ({"Name": "x" * 257}, "token name too long"),
        ({"Type": "nope"}, "token type must be client or management"),
        ({"Policies": []}, "client token missing policies or roles"),
        ({"Type": "management"}, "management token cannot be associated with policies or roles"),
        ({"Roles": [{"ID": "x"}]}, "there are no roles here"),
        ({"Policies": [None]}, "null is not allowed in a list"),
        ({"AccessorID": UUID}, f"cannot find token {UUID}"),
    ],
)
async def test_bad_tokens_are_refused(sent: dict[str, object], text: str) -> None:
    async with running_acl() as acl:
        body = {"Name": "t", "Type": "client", "Policies": ["r"], **sent}
        answer = await acl.ask("PUT", "/v1/acl/token", body, secret=acl.management)
        assert answer.status == 400
        assert text in answer.body.decode()
        assert len(await acl.read("GET", "/v1/acl/tokens")) == 1


async def test_a_token_s_scope_and_expiration_stay() -> None:
    async with running_acl() as acl:
        made = await acl.make_token("r", ExpirationTTL="1h")
        path = f"/v1/acl/token/{made['AccessorID']}"
        # What a client has read it may write back.
        assert (await acl.read("PUT", path, made))["ExpirationTime"] == made["ExpirationTime"]
        for change, text in (({"Global": True}, "global mode"), ({"ExpirationTTL": "2h"}, "expiration")):
            answer = await acl.ask("PUT", path, {**made, **change}, secret=acl.management)
            assert answer.status == 400
            assert text in answer.body.decode()
        answer = await acl.ask("PUT", f"/v1/acl/token/{UUID}", made, secret=acl.management)
        assert answer.body == b"ACL token accessor does not match request path"


async def test_revocation_counts_from_the_next_request_on() -> None:
    async with running_acl() as acl:
        await acl.apply("r", READ)
        made = await acl.make_token("r")
        secret = made["SecretID"]
        assert await acl.status("GET", "/v1/volumes?type=csi", secret=secret) == 200
        await acl.apply("r", 'namespace "default" { policy = "deny" }')
        assert await acl.status("GET", "/v1/volumes?type=csi", secret=secret) == 403
        await acl.apply("r", READ)
        assert await acl.status("GET", "/v1/volumes?type=csi", secret=secret) == 200
        await acl.read("DELETE", "/v1/acl/policy/r")
        assert await acl.status("GET", "/v1/volumes?type=csi", secret=secret) == 403
        await acl.read("DELETE", "/v1/acl/policy/r")
        await acl.read("DELETE", f"/v1/acl/token/{made['AccessorID']}")
        assert await acl.status("GET", "/v1/acl/token/self", secret=secret) == 403
        answer = await acl.ask("DELETE", f"/v1/acl/token/{made['AccessorID']}", secret=acl.management)
        assert answer.body.decode() == f"Cannot delete nonexistent tokens: {made['AccessorID']}"


async def test_a_policy_that_cannot_be_read_any_more_opens_nothing() -> None:
    async with running_acl() as acl:
        secret = await acl.grant(READ)
        policy = next(iter(acl.kit.repo.view.acl_policies))
        from moorage.model.acl import Policy
        from moorage.state.repo import Write

        broken = Policy(name=policy.value.name, rules="from a later version {")
        key = f"acl-policies/{policy.value.name}"
        await acl.kit.repo.commit(Write().put(key, broken, revision=policy.modified))
        assert await acl.status("GET", "/v1/volumes?type=csi", secret=secret) == 403
        shown = await acl.read("GET", f"/v1/acl/policy/{policy.value.name}")
        assert (shown["Rules"], shown["RulesJSON"]) == (broken.rules, None)


# -- who sees what of them -------------------------------------------------------------------------------------------


async def test_policies_and_tokens_are_shown_to_those_that_have_them() -> None:
    async with running_acl() as acl:
        await acl.apply("mine", READ)
        await acl.apply("other", READ)
        made, stranger = await acl.make_token("mine", "gone"), await acl.make_token("other")
        secret = made["SecretID"]
        for page in ("/v1/acl/policies", "/v1/acl/policy/self"):
            assert [p["Name"] for p in await acl.read("GET", page, secret=secret)] == ["mine"]
        assert [p["Name"] for p in await acl.read("GET", "/v1/acl/policies?prefix=o")] == ["other"]
        assert await acl.status("GET", "/v1/acl/policy/mine", secret=secret) == 200
        assert await acl.status("GET", "/v1/acl/policy/other", secret=secret) == 403
        assert await acl.status("GET", "/v1/acl/policy/nowhere", secret=secret) == 403
        assert await acl.status("GET", "/v1/acl/policy/gone", secret=secret) == 404
        for page in ("/v1/acl/tokens", f"/v1/acl/token/{stranger['AccessorID']}", f"/v1/acl/token/{UUID}"):
            assert await acl.status("GET", page, secret=secret) == 403
        for method, page in (("PUT", "policy/mine"), ("DELETE", "policy/mine"), ("PUT", "token")):
            assert await acl.status(method, f"/v1/acl/{page}", {}, secret=secret) == 403
        assert await acl.status("DELETE", f"/v1/acl/token/{made['AccessorID']}", secret=secret) == 403
        for page in ("policies", "policy/mine", "tokens", f"token/{made['AccessorID']}"):
            assert await acl.status("GET", f"/v1/acl/{page}") == 403


async def test_pages_of_a_list_of_tokens() -> None:
    async with running_acl() as acl:
        made = [await acl.make_token("r", Name=f"t{n}") for n in range(5)]
        names: list[str] = []
        token = ""
        while True:
            target = f"/v1/acl/tokens?per_page=2&next_token={token}"
            answer = await acl.ask("GET", target, secret=acl.management)
            names += [row["Name"] for row in json.loads(answer.body)]
            token = answer.headers.get("X-Nomad-NextToken", "")
            if not token:
                break
        assert names == ["Bootstrap Token", "t0", "t1", "t2", "t3", "t4"]
        one = await acl.read("GET", f"/v1/acl/tokens?prefix={made[2]['AccessorID']}")
        assert [row["Name"] for row in one] == ["t2"]


async def test_the_anonymous_policy() -> None:
    async with running_acl() as acl:
        me = json.loads((await acl.ask("GET", "/v1/acl/token/self")).body)
        assert (me["AccessorID"], me["Policies"], me["SecretID"]) == ("anonymous", ["anonymous"], "")
        assert await acl.status("GET", "/v1/volumes?type=csi") == 403
        await acl.apply("anonymous", 'namespace "default" { capabilities = ["csi-list-volume"] }')
        assert await acl.status("GET", "/v1/volumes?type=csi") == 200
        assert [p["Name"] for p in json.loads((await acl.ask("GET", "/v1/acl/policies")).body)] == ["anonymous"]
        assert await acl.status("GET", "/v1/acl/policy/anonymous") == 200
        assert await acl.status("GET", "/v1/volume/csi/x") == 403
        # A bad token is not nobody.
        assert await acl.status("GET", "/v1/volumes?type=csi", secret="bad") == 403
        await acl.read("DELETE", "/v1/acl/policy/anonymous")
        assert await acl.status("GET", "/v1/volumes?type=csi") == 403


async def test_pages_say_that_access_control_is_off() -> None:
    async with running_kit() as kit:
        acl = AclKit(kit)
        pages = ("GET policies", "GET policy/x", "PUT policy/x", "DELETE policy/x", "GET tokens", "PUT token")
        for page in (*pages, f"GET token/{UUID}", f"DELETE token/{UUID}", f"PUT token/{UUID}", "GET policy/self"):
            method, path = page.split()
            answer = await acl.ask(method, f"/v1/acl/{path}", secret="anything")
            assert (answer.status, answer.body) == (400, b"ACL support disabled")
        assert (await acl.read("GET", "/v1/acl/token/self", secret="x"))["AccessorID"] == "acls-disabled"
        assert await acl.status("GET", "/v1/nodes", secret="anything") == 200
