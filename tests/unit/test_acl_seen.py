"""What a token shows of the rest: nothing. Lists, searches, events, waits, disks of other namespaces."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from acl_kit import AclKit, running_acl
from app_asking import a_body
from engine_kit import NODE, PLUGIN

from moorage.model.identity import Peer
from moorage.model.ids import PluginId

pytestmark = pytest.mark.anyio

ALL = "namespace=*"
DEV = 'namespace "dev" { policy = "write" }'
PLUGINS = 'plugin { policy = "read" }'
ALLOCATION = "00000000-0000-4000-8000-00000000000a"


async def make_two(acl: AclKit) -> None:
    """A volume in each of two namespaces, and one of the same ID in both."""
    await acl.read("PUT", "/v1/namespace/dev", {"Name": "dev"})
    for namespace, names in (("default", ("secret-plan", "both")), ("dev", ("tools", "both"))):
        for name in names:
            body = a_body(name, Namespace=namespace, Name=f"{name}-{namespace}")
            await acl.read("PUT", f"/v1/volume/csi/{name}/create", body)


def names_of(rows: Any) -> list[tuple[str, str]]:
    return [(row["Namespace"], row["ID"]) for row in rows]


async def external_id(acl: AclKit, name: str, namespace: str) -> str:
    return str((await acl.read("GET", f"/v1/volume/csi/{name}?namespace={namespace}"))["ExternalID"])


async def test_lists_over_all_namespaces_show_those_that_the_token_may_list() -> None:
    async with running_acl() as acl:
        await make_two(acl)
        secret = await acl.grant(DEV)
        listed = f"/v1/volumes?type=csi&{ALL}"
        assert names_of(await acl.read("GET", listed, secret=secret)) == [("dev", "both"), ("dev", "tools")]
        assert len(await acl.read("GET", listed)) == 4
        # Neither pages nor filters lead further.
        page = await acl.ask("GET", f"{listed}&per_page=1&reverse=true", secret=secret)
        assert names_of(json.loads(page.body)) == [("dev", "tools")]
        assert page.headers["X-Nomad-NextToken"] == "dev.both"
        rest = await acl.ask("GET", f"{listed}&per_page=5&next_token=default.a", secret=secret)
        assert names_of(json.loads(rest.body)) == [("dev", "both"), ("dev", "tools")]
        found = await acl.read("GET", f"{listed}&filter=Name%20matches%20%22secret%22", secret=secret)
        assert found == []
        # A read in all namespaces finds what is one to this caller.
        assert (await acl.read("GET", f"/v1/volume/csi/both?{ALL}", secret=secret))["Namespace"] == "dev"
        assert await acl.status("GET", f"/v1/volume/csi/both?{ALL}", secret=acl.management) == 404
        assert await acl.status("GET", f"/v1/volume/csi/secret-plan?{ALL}", secret=secret) == 404
        assert (await acl.read("GET", f"/v1/volume/csi/both/why?{ALL}", secret=secret))["Namespace"] == "dev"
        assert await acl.status("GET", f"/v1/volume/csi/secret-plan/why?{ALL}", secret=secret) == 404
        assert [n["Name"] for n in await acl.read("GET", "/v1/namespaces", secret=secret)] == ["dev"]
        assert await acl.status("GET", "/v1/namespace/default", secret=secret) == 403
        assert await acl.status("GET", "/v1/namespace/none", secret=secret) == 403


async def test_a_list_without_a_type_tells_nothing() -> None:
    async with running_acl() as acl:
        await make_two(acl)
        secret = await acl.grant(PLUGINS)
        for who in ("", "bad", secret):
            answer = await acl.ask("GET", "/v1/volumes", secret=who)
            assert (answer.status, answer.body, answer.headers["X-Nomad-Index"]) == (200, b"[]", "0")
        for who in ("", "bad", await acl.grant(DEV)):
            answer = await acl.ask("GET", "/v1/plugins", secret=who)
            assert (answer.status, answer.body, answer.headers["X-Nomad-Index"]) == (200, b"[]", "0")
        assert (await acl.ask("GET", "/v1/plugins", secret=secret)).headers["X-Nomad-Index"] != "0"


async def test_searches_show_what_the_token_may_list() -> None:
    async with running_acl() as acl:
        await make_two(acl)
        dev, plugins = await acl.grant(DEV), await acl.grant(PLUGINS)
        everything = {"Prefix": "", "Context": "all"}
        found = (await acl.read("PUT", f"/v1/search?{ALL}", everything, secret=dev))["Matches"]
        assert found["volumes"] == ["both", "tools"]
        assert found["namespaces"] == ["dev"]
        assert "nodes" not in found
        assert "plugins" not in found
        fuzzy = {"Text": "oo", "Context": "volumes"}
        found = (await acl.read("PUT", f"/v1/search/fuzzy?{ALL}", fuzzy, secret=dev))["Matches"]
        assert [m["ID"] for m in found["volumes"]] == ["tools"]
        fuzzy = {"Text": "secret", "Context": "all"}
        found = (await acl.read("PUT", f"/v1/search/fuzzy?{ALL}", fuzzy, secret=dev))["Matches"]
        assert not any(found.values())
        assert (await acl.read("PUT", "/v1/search", everything, secret=plugins))["Matches"] == {"plugins": [PLUGIN]}
        for context in ("volumes", "allocs", "nodes", "jobs", "vars", "namespaces"):
            assert await acl.status("PUT", "/v1/search", {"Context": context}, secret=plugins) == 403
        assert await acl.status("PUT", "/v1/search", {"Context": "volumes"}, secret=dev) == 403
        assert await acl.status("PUT", "/v1/search?namespace=dev", {"Context": "volumes"}, secret=dev) == 200
        assert await acl.status("PUT", "/v1/search", everything) == 403


# -- disks -----------------------------------------------------------------------------------------------------------


async def test_drivers_volumes_of_other_namespaces_are_left_out() -> None:
    async with running_acl() as acl:
        await make_two(acl)
        dev = await acl.grant(DEV)
        hidden, mine = await external_id(acl, "secret-plan", "default"), await external_id(acl, "tools", "dev")
        target = f"/v1/volumes/external?plugin_id={PLUGIN}&namespace=dev"
        everything = {v["ExternalID"] for v in (await acl.read("GET", target))["Volumes"]}
        assert {hidden, mine} <= everything
        seen = {v["ExternalID"] for v in (await acl.read("GET", target, secret=dev))["Volumes"]}
        assert mine in seen
        assert hidden not in seen
        assert await acl.status("GET", target.replace("dev", "default"), secret=dev) == 403
        for name, namespace in (("secret-plan", "default"), ("tools", "dev")):
            body = {"Snapshots": [{"SourceVolumeID": name, "Name": name}]}
            await acl.read("PUT", f"/v1/volumes/snapshot?namespace={namespace}", body)
        target = f"/v1/volumes/snapshot?plugin_id={PLUGIN}&namespace=dev"
        assert len((await acl.read("GET", target))["Snapshots"]) == 2
        assert len((await acl.read("GET", target, secret=dev))["Snapshots"]) == 1


async def test_a_token_reaches_no_disk_of_another_namespace() -> None:
    async with running_acl() as acl:
        await make_two(acl)
        dev = await acl.grant(DEV)
        hidden = await external_id(acl, "secret-plan", "default")
        stolen = a_body("stolen", Namespace="dev", ExternalID=hidden)
        assert await acl.status("PUT", "/v1/volumes", stolen, secret=dev) == 403
        copied = a_body("copied", Namespace="dev", CloneID=hidden)
        assert await acl.status("PUT", "/v1/volume/csi/copied/create", copied, secret=dev) == 403
        listed = names_of(await acl.read("GET", f"/v1/volumes?type=csi&{ALL}", secret=dev))
        assert listed == [("dev", "both"), ("dev", "tools")]
        # Its own disk it may register again, and another one that nobody has.
        mine = await external_id(acl, "tools", "dev")
        for name, disk in (("tools", mine), ("tools2", mine), ("found", "unknown-disk")):
            body = a_body(name, Namespace="dev", ExternalID=disk, Name=f"{name}-dev")
            assert await acl.status("PUT", "/v1/volumes", body, secret=dev) == 200


async def test_a_snapshot_by_another_plugin_reaches_no_disk_either() -> None:
    async with running_acl() as acl:
        await make_two(acl)
        dev = await acl.grant(DEV)
        other = PluginId("elsewhere")
        instance = acl.kit.driver.instance(NODE)
        await acl.kit.service.nodes.report_plugins(NODE, {PLUGIN: instance, other: instance})
        hidden = a_body("theirs", PluginID=other, ExternalID="disk-7")
        await acl.read("PUT", "/v1/volumes", hidden)
        mine = a_body("mine", Namespace="dev", ExternalID="disk-7")
        assert await acl.status("PUT", "/v1/volumes", mine, secret=dev) == 200
        body = {"Snapshots": [{"SourceVolumeID": "mine", "PluginID": other, "Name": "s"}]}
        assert await acl.status("PUT", "/v1/volumes/snapshot?namespace=dev", body, secret=dev) == 403


async def test_a_name_that_another_namespace_has_is_refused_without_its_owner() -> None:
    """Drivers know volumes by name: to ask for one that is taken gives the disk that has it."""
    async with running_acl() as acl:
        await make_two(acl)
        dev = await acl.grant(DEV)
        hidden = await external_id(acl, "secret-plan", "default")
        asked = a_body("new", Namespace="dev", Name="secret-plan-default")
        answer = await acl.ask("PUT", "/v1/volume/csi/new/create", asked, secret=dev)
        assert answer.status == 500
        assert b"registered already in another namespace" in answer.body
        assert hidden.encode() not in answer.body
        assert b'"secret-plan"' not in answer.body


async def test_namespaces_of_others_are_not_there_for_a_writer() -> None:
    """A token cannot find out which namespaces exist by writing to them."""
    async with running_acl() as acl:
        await make_two(acl)
        dev = await acl.grant(DEV)
        texts = []
        for namespace in ("default", "nowhere"):
            answer = await acl.ask("PUT", "/v1/volumes", a_body("x", Namespace=namespace), secret=dev)
            texts.append((answer.status, answer.body.decode().replace(namespace, "N")))
        assert texts == [(500, "volume x is in nonexistent namespace N")] * 2
        reader = await acl.grant('namespace "default" { policy = "read" }')
        assert await acl.status("PUT", "/v1/volumes", a_body("x"), secret=reader) == 403
    async with running_acl(strict=True) as acl:
        await make_two(acl)
        dev = await acl.grant(f"{DEV}\n{PLUGINS}")
        for namespace in ("default", "nowhere"):
            assert await acl.status("PUT", "/v1/volumes", a_body("x", Namespace=namespace), secret=dev) == 403


@pytest.mark.parametrize("verb", ["DELETE ", "DELETE /delete", "DELETE /detach?node=x", "PUT /snapshot"])
async def test_writes_name_one_namespace(verb: str) -> None:
    """``*`` in a write could mean anybody's volume."""
    async with running_acl() as acl:
        await make_two(acl)
        dev = await acl.grant(f"{DEV}\n{PLUGINS}")
        method, rest = verb.split(" ")
        target = f"/v1/volume/csi/secret-plan{rest}{'&' if '?' in rest else '?'}{ALL}"
        body = {"Snapshots": [{"Name": "s"}]} if method == "PUT" else None
        assert await acl.status(method, target, body, secret=dev) == 403
        assert await acl.status("GET", "/v1/volume/csi/secret-plan", secret=acl.management) == 200


# -- allocations and nodes -------------------------------------------------------------------------------------------


async def test_allocations_of_other_namespaces_are_not_there() -> None:
    async with running_acl() as acl:
        await make_two(acl)
        dev, node = await acl.grant(DEV), await acl.grant(f'{DEV}\nnode {{ policy = "read" }}')
        use: dict[str, Any] = {"ID": ALLOCATION, "Name": "x", "Volumes": [{"Name": "d", "Source": "secret-plan"}]}
        await acl.read("PUT", "/v1/allocations", {"Allocation": use})
        mine = {"Name": "y", "Namespace": "dev", "Volumes": [{"Name": "d", "Source": "tools"}]}
        own = await acl.read("PUT", "/v1/allocations", {"Allocation": mine}, secret=dev)
        for page in ("", "/why"):
            assert await acl.status("GET", f"/v1/allocation/{ALLOCATION}{page}", secret=dev) == 404
            assert await acl.status("GET", f"/v1/allocation/{own['ID']}{page}", secret=dev) == 200
        assert await acl.status("PUT", f"/v1/allocation/{ALLOCATION}/stop", secret=dev) == 403
        assert await acl.status("PUT", "/v1/allocations", {"Allocation": use}, secret=dev) == 403
        # Nor is another's allocation given to who names its ID.
        taken = {"Allocation": {**mine, "ID": ALLOCATION}}
        assert await acl.status("PUT", "/v1/allocations", taken, secret=dev) == 403
        listed = await acl.read("GET", f"/v1/allocations?{ALL}", secret=dev)
        assert [row["ID"] for row in listed] == [own["ID"]]
        assert len(await acl.read("GET", f"/v1/allocations?{ALL}")) == 2
        there = f"/v1/node/{NODE}/allocations"
        assert [row["ID"] for row in await acl.read("GET", there, secret=node)] == [own["ID"]]
        assert await acl.status("GET", there, secret=dev) == 403
        assert await acl.status("GET", f"/v1/node/{NODE}/why", secret=node) == 403
        assert await acl.status("PUT", f"/v1/allocation/{own['ID']}/stop", secret=dev) == 200


async def test_holders_of_another_namespace_are_not_named() -> None:
    """A disk that was registered in two namespaces: who reads one record does not learn who uses the other."""
    async with running_acl() as acl:
        await make_two(acl)
        disk = await external_id(acl, "secret-plan", "default")
        shared = a_body("shared", Namespace="dev", ExternalID=disk)
        await acl.read("PUT", "/v1/volumes", shared)
        use = {"ID": ALLOCATION, "Name": "payroll", "Volumes": [{"Name": "d", "Source": "secret-plan"}]}
        await acl.read("PUT", "/v1/allocations", {"Allocation": use})
        dev = await acl.grant(DEV)
        target = "/v1/volume/csi/shared/why?namespace=dev"
        told = json.dumps(await acl.read("GET", target, secret=dev))
        assert not [word for word in (ALLOCATION, "payroll", "secret-plan") if word in told]
        assert ALLOCATION in json.dumps(await acl.read("GET", target))


async def test_pages_of_nodes_are_for_nodes() -> None:
    async with running_acl() as acl:
        for method, page in (("PUT", "register"), ("PUT", "plugins"), ("GET", "steps"), ("GET", "claims")):
            for secret in ("", "bad", acl.management):
                assert await acl.status(method, f"/v1/node/{NODE}/{page}", {}, secret=secret) == 403
        own = f"moorage-node-{NODE}"
        await acl.kit.service.identities.join(NODE, own, name="n1", join_token="", peer=Peer(is_embedded=True))
        assert await acl.status("GET", f"/v1/node/{NODE}/steps", secret=own) == 200
        other = NODE.replace("1", "3")
        assert await acl.status("GET", f"/v1/node/{other}/steps", secret=own) == 403
        for page in ("/v1/nodes", "/v1/volumes?type=csi", "/v1/acl/tokens", "/v1/agent/self"):
            assert await acl.status("GET", page, secret=own) == 403


# -- what waits ------------------------------------------------------------------------------------------------------


async def test_a_read_that_waited_is_refused_when_its_token_has_gone() -> None:
    async with running_acl() as acl:
        await make_two(acl)
        await acl.apply("dev", DEV)
        made = await acl.make_token("dev")
        answers: list[tuple[int, bytes]] = []

        async def wait(index: str, target: str) -> None:
            answer = await acl.ask("GET", f"{target}&index={index}&wait=20s", secret=made["SecretID"])
            answers.append((answer.status, answer.body))

        target = "/v1/volumes?type=csi&namespace=dev"
        first = await acl.ask("GET", target, secret=made["SecretID"])
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(wait, first.headers["X-Nomad-Index"], target)
                await anyio.wait_all_tasks_blocked()
                await acl.read("DELETE", f"/v1/acl/token/{made['AccessorID']}")
                await acl.read("PUT", "/v1/volume/csi/new/create", a_body("new", Namespace="dev"))
        assert answers == [(403, b"Permission denied")]


async def test_a_read_that_waited_shows_what_the_policy_says_now() -> None:
    async with running_acl() as acl:
        await make_two(acl)
        await acl.apply("dev", 'namespace "*" { policy = "read" }')
        made = await acl.make_token("dev")
        answers: list[list[tuple[str, str]]] = []

        async def wait(index: str) -> None:
            found = await acl.read("GET", f"/v1/volumes?type=csi&{ALL}&index={index}&wait=20s", secret=made["SecretID"])
            answers.append(names_of(found))

        first = await acl.ask("GET", f"/v1/volumes?type=csi&{ALL}", secret=made["SecretID"])
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(wait, first.headers["X-Nomad-Index"])
                await anyio.wait_all_tasks_blocked()
                await acl.apply("dev", DEV)
                await acl.read("PUT", "/v1/volume/csi/new/create", a_body("new"))
        assert answers == [[("dev", "both"), ("dev", "tools")]]


async def read_stream(acl: AclKit, target: str, secret: str, lines: list[Any], *, until: int) -> None:
    answer = await acl.ask("GET", target, secret=secret)
    assert answer.status == 200, answer.body
    assert answer.stream is not None
    done = anyio.Event()

    async def write(piece: bytes) -> None:
        lines.extend(json.loads(line) for line in piece.splitlines() if line != b"{}")
        if len(lines) >= until:
            done.set()

    async with anyio.create_task_group() as group:
        group.start_soon(answer.stream, write)
        await done.wait()
        group.cancel_scope.cancel()


async def test_events_show_what_the_token_may_read() -> None:
    async with running_acl() as acl:
        await make_two(acl)
        dev, plugins = await acl.grant(DEV), await acl.grant(PLUGINS)
        lines: list[Any] = []
        with anyio.fail_after(10):
            await read_stream(acl, f"/v1/event/stream?{ALL}", dev, lines, until=2)
        keys = {(e["Topic"], e["Namespace"], e["Key"]) for line in lines for e in line["Events"]}
        assert keys == {("CSIVolume", "dev", "tools"), ("CSIVolume", "dev", "both")}
        lines = []
        with anyio.fail_after(10):
            await read_stream(acl, "/v1/event/stream", plugins, lines, until=1)
        assert {e["Topic"] for line in lines for e in line["Events"]} == {"CSIPlugin"}
        for secret, query in ((plugins, "topic=CSIVolume"), (dev, "topic=Node"), (dev, "namespace=default"), ("", "")):
            assert await acl.status("GET", f"/v1/event/stream?{query}", secret=secret) == 403


async def test_a_stream_ends_with_its_token() -> None:
    async with running_acl() as acl:
        await make_two(acl)
        await acl.apply("dev", DEV)
        made = await acl.make_token("dev")
        lines: list[Any] = []
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                target = "/v1/event/stream?namespace=dev&topic=CSIVolume"
                answer = await acl.ask("GET", target, secret=made["SecretID"])
                assert answer.stream is not None

                async def write(piece: bytes) -> None:
                    lines.extend(json.loads(line) for line in piece.splitlines())

                group.start_soon(answer.stream, write)
                await anyio.wait_all_tasks_blocked()
                await acl.read("DELETE", f"/v1/acl/token/{made['AccessorID']}")
                await acl.read("PUT", "/v1/volume/csi/new/create", a_body("new", Namespace="dev"))
        assert lines[-1]["Error"] == "Permission denied"
        assert "new" not in json.dumps(lines)


async def test_an_anonymous_caller_learns_nothing_but_health() -> None:
    async with running_acl() as acl:
        await make_two(acl)
        from moorage.api.grants import ANONYMOUS, SELF
        from moorage.api.routes import ROUTES

        free = {"/v1/volumes", "/v1/plugins"}
        for route in ROUTES:
            path = route.pattern.replace(":id", "both").replace(":name", "dev").replace(":part", "x")
            for method, served in route.handlers.items():
                if served.grant in (ANONYMOUS, SELF) or (method == "GET" and path in free):
                    continue
                for secret in ("", "bad"):
                    answer = await acl.ask(method, f"{path}?type=csi", {}, secret=secret)
                    expected = (403, b"Permission denied")
                    assert (answer.status, answer.body) == expected, f"{method} {path} as {secret!r}"
                    assert not answer.headers
