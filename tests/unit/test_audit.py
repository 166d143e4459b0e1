"""The audit log: every write and every refusal is in it, changes of it are found, and it never holds a request up."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from app_asking import ask
from engine_kit import NODE, Kit, running_kit

from moorage.api.app import App
from moorage.api.http import Request
from moorage.engine.ports import AclSettings
from moorage.model.audit import AuditEntry, Who
from moorage.model.identity import Peer
from moorage.rules.audit import START, Broken, Head, follow, read_head, write_line
from moorage.serve.audit_writer import AuditFileSettings, AuditWriter, list_files, read_lines

pytestmark = pytest.mark.anyio
CANARY = "canary-2b9d"


def make_entry(number: int = 1, **more: Any) -> AuditEntry:
    words: dict[str, Any] = {
        "at_ns": 1_700_000_000_000_000_000 + number,
        "request_id": f"r{number}",
        "who": Who(kind="client", accessor="a1", name="ops"),
        "method": "PUT",
        "path": f"/v1/volume/csi/v{number}/create",
        "route": "/v1/volume/csi/:id/create",
        "namespace": "default",
        "result": "done",
        "status": 200,
    }
    return AuditEntry(**(words | more))


def make_chain(count: int) -> list[bytes]:
    head, lines = Head(), []
    for number in range(1, count + 1):
        line, head = write_line(make_entry(number), head)
        lines.append(line)
    return lines


@contextmanager
def open_writer(path: Path, **settings: Any) -> Iterator[AuditWriter]:
    writer = AuditWriter(path, AuditFileSettings(**settings))
    try:
        yield writer
    finally:
        writer.close()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for _, line in read_lines(list_files(path))]


def check(path: Path) -> Head:
    """The chain's head; fails where it is broken."""
    heads = list(follow(line for _, line in read_lines(list_files(path))))
    assert heads
    assert isinstance(heads[-1], Head), heads[-1]
    return heads[-1]


# -- the chain -------------------------------------------------------------------------------------------------------


def test_a_chain_holds() -> None:
    lines = make_chain(20)
    assert [head.seq for head in follow(lines, Head()) if isinstance(head, Head)] == list(range(1, 21))
    assert json.loads(lines[0])["prev"] == START
    assert isinstance(list(follow(lines[7:]))[-1], Head), "older files may be gone"


@pytest.mark.parametrize(
    ("change", "at"),
    [
        (lambda lines: lines.pop(5), 6),
        (lambda lines: lines.insert(5, lines[2]), 6),
        (lambda lines: lines.insert(5, write_line(make_entry(6), Head(5, "0" * 64))[0]), 6),
        (lambda lines: lines.reverse(), 2),
        (lambda lines: lines.__setitem__(5, lines[5].replace(b'"status":200', b'"status":403')), 6),
        (lambda lines: lines.__setitem__(5, lines[5].replace(b'"ops"', b'"eve"')), 6),
        (lambda lines: lines.__setitem__(5, b"{}\n"), 6),
        (lambda lines: lines.__setitem__(5, b"\xff\n"), 6),
        (lambda lines: lines.__setitem__(9, lines[9][:-9]), 10),
        (lambda lines: lines.__setitem__(5, write_line(make_entry(9), read_head(lines[4])[0])[0]), 7),
    ],
)
def test_a_change_is_found_where_it_is(change: Any, at: int) -> None:
    lines = make_chain(10)
    change(lines)
    found = list(follow(lines))[-1]
    assert isinstance(found, Broken)
    assert found.line == at
    assert found.reason


def test_every_single_byte_counts() -> None:
    lines = make_chain(3)
    for at in range(len(lines[1]) - 1):
        changed = bytearray(lines[1])
        changed[at] ^= 0x01
        found = list(follow([lines[0], bytes(changed), lines[2]], Head()))[-1]
        assert isinstance(found, Broken), at


# -- the writer ------------------------------------------------------------------------------------------------------


async def test_lines_are_written_and_a_restart_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    for run in range(3):
        with open_writer(path) as writer:
            for number in range(50):
                await writer.note(make_entry(run * 50 + number))
    assert check(path).seq == 150
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    rows = read(path)
    assert [row["request_id"] for row in rows] == [f"r{number}" for number in range(150)]
    assert rows[0]["who"] == {"kind": "client", "accessor": "a1", "name": "ops"}
    assert rows[0]["time"] == "2023-11-14T22:13:20Z"


async def test_rotation_continues_the_chain_and_drops_the_oldest(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    with open_writer(path, rotate_bytes=4000, keep=3) as writer:
        for number in range(200):
            await writer.note(make_entry(number))
            if number % 10 == 0:
                await anyio.sleep(0.002)
    files = list_files(path)
    assert 2 <= len(files) <= 4
    assert check(path).seq == 200
    with open_writer(path) as writer:
        await writer.note(make_entry(200))
    assert check(path).seq == 201
    # A start between putting a file aside and making the next one.
    os.rename(path, f"{path}.201")
    with open_writer(path) as writer:
        await writer.note(make_entry(201))
    assert check(path).seq == 202


@pytest.mark.parametrize("cut", [1, 30, 200])
async def test_a_torn_last_line_is_cut_off_and_said(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "audit.log"
    with open_writer(path) as writer:
        for number in range(5):
            await writer.note(make_entry(number))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with open_writer(path) as writer:
        await writer.note(make_entry(9))
    assert check(path).seq == 5
    rows = read(path)
    last_line = len(whole.splitlines(keepends=True)[-1])
    assert rows[-1]["torn_bytes"] == last_line - cut
    assert all("torn_bytes" not in row for row in rows[:-1])


class Slow:
    """Makes the writer's disk wait until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = threading.Event()
        real = os.pwrite

        def wait(*args: Any) -> int:
            self.gate.wait(20)
            return real(*args)

        monkeypatch.setattr("moorage.serve.audit_writer.os.pwrite", wait)


async def test_a_disk_that_hangs_holds_nobody_up_and_what_is_dropped_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.log"
    slow = Slow(monkeypatch)
    with open_writer(path, queue_max=4, wait_s=0.05) as writer:
        await writer.note(make_entry(0))
        await anyio.sleep(0.05)
        longest = 0.0
        for number in range(1, 11):
            begun = time.monotonic()
            await writer.note(make_entry(number))
            longest = max(longest, time.monotonic() - begun)
        assert longest < 1.0
        # One is in the thread's hands, four wait.
        assert writer.dropped == 6
        slow.gate.set()
        while writer.lines < 5:
            await anyio.sleep(0.01)
        await writer.note(make_entry(11))
    assert check(path).seq == 6
    rows = read(path)
    assert sum(row.get("dropped", 0) for row in rows) == 6


async def test_a_full_disk_leaves_a_whole_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.log"
    real = os.pwrite
    is_full = True

    def write(descriptor: int, data: Any, at: int) -> int:
        if is_full:
            real(descriptor, bytes(data)[:7], at)
            raise OSError(28, "No space left on device")
        return real(descriptor, data, at)

    with open_writer(path) as writer:
        await writer.note(make_entry(1))
        while writer.lines < 1:
            await anyio.sleep(0.01)
        monkeypatch.setattr("moorage.serve.audit_writer.os.pwrite", write)
        await writer.note(make_entry(2))
        while writer.dropped < 1:
            await anyio.sleep(0.01)
        is_full = False
        await writer.note(make_entry(3))
    assert check(path).seq == 2
    assert read(path)[-1]["dropped"] == 1


async def test_a_line_costs_the_caller_little(tmp_path: Path) -> None:
    with open_writer(tmp_path / "audit.log", queue_max=10_000) as writer:
        begun = time.perf_counter()
        for number in range(5000):
            await writer.note(make_entry(number))
        each_us = (time.perf_counter() - begun) / 5000 * 1e6
    assert writer.dropped == 0
    assert each_us < 500, f"{each_us:.0f} µs a line"


# -- what is noted ---------------------------------------------------------------------------------------------------


class Kept:
    """A sink that keeps entries."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []

    async def note(self, entry: AuditEntry) -> None:
        """Keep it."""
        self.entries.append(entry)

    def note_now(self, entry: AuditEntry) -> None:
        """Keep it."""
        self.entries.append(entry)


def audit(kit: Kit) -> Kept:
    kept = Kept()
    kit.app = App(kit.service, audit=kept)
    return kept


def make_volume(volume_id: str = "v") -> dict[str, Any]:
    capabilities = [{"AccessMode": "single-node-writer", "AttachmentMode": "file-system"}]
    return {
        "Volumes": [
            {
                "ID": volume_id,
                "Name": volume_id,
                "PluginID": "hostpath",
                "RequestedCapabilities": capabilities,
                "Secrets": {"password": CANARY},
            }
        ]
    }


async def test_writes_are_noted_and_reads_are_not() -> None:
    async with running_kit() as kit:
        kept = audit(kit)
        await ask(kit, "PUT", "/v1/volume/csi/v/create", make_volume())
        await ask(kit, "GET", "/v1/volume/csi/v")
        await ask(kit, "GET", "/v1/volumes?type=csi")
        await ask(kit, "POST", "/v1/search", {"Prefix": "v", "Context": "volumes"})
        await ask(kit, "DELETE", "/v1/volume/csi/none?namespace=prod")
        await ask(kit, "PUT", "/v1/volumes", {"Volumes": []})
        await ask(kit, "GET", "/v1/acl/tokens")
        noted = [(e.method, e.route, e.result, e.status, e.namespace) for e in kept.entries]
        assert [n[1] for n in noted] == [
            "/v1/volume/csi/:id/create",
            "/v1/volume/csi/:id",
            "/v1/volumes",
            "/v1/acl/tokens",
        ]
        assert noted[0][2] == "done"
        assert noted[1][2] == noted[2][2] == "refused"
        assert kept.entries[1].code == "volume_missing"
        assert kept.entries[0].took_us > 0
        assert CANARY not in repr(kept.entries)


async def test_an_agent_s_own_reports_are_not_noted_unless_refused() -> None:
    async with running_kit() as kit:
        kept = audit(kit)
        await ask(kit, "PUT", "/v1/node/not-there/reports", {"reports": []})
        assert [(e.route, e.result) for e in kept.entries] == [("/v1/node/:id/reports", "refused")]
        kept.entries.clear()
        path = f"/v1/node/{NODE}/reports"
        secret = "moorage-node-" + "f" * 64
        await kit.service.identities.join(NODE, secret, name="n1", join_token="", peer=Peer(is_embedded=True))
        answer = await ask(kit, "PUT", path, {"reports": []}, **{"x-nomad-token": secret})
        assert answer.status == 200, answer.body
        assert kept.entries == []


async def test_a_caller_that_leaves_is_noted() -> None:
    async with running_kit() as kit:
        kept = audit(kit)
        kit.is_calling = False
        body = json.dumps(make_volume()).encode()
        path = "/v1/volume/csi/v/create"
        request = Request(method="PUT", path=path, parts=tuple(path.split("/")[1:]), body=body)
        with anyio.move_on_after(0.2):
            await kit.app.answer(request)
        assert [(e.result, e.status) for e in kept.entries] == [("left", 0)]


async def test_who_is_told_apart_and_no_token_is_shown() -> None:
    async with running_kit(acl=AclSettings(enabled=True)) as kit:
        kept = audit(kit)
        made = json.loads((await ask(kit, "PUT", "/v1/acl/bootstrap")).body)
        token = {"x-nomad-token": made["SecretID"]}
        body = {"Name": "narrow", "Type": "client", "Policies": ["none"]}
        narrow = json.loads((await ask(kit, "PUT", "/v1/acl/token", body, **token)).body)
        await ask(kit, "GET", "/v1/volumes?type=csi")
        await ask(kit, "GET", "/v1/volumes?type=csi", **{"x-nomad-token": narrow["SecretID"]})
        await ask(kit, "GET", "/v1/volumes?type=csi", **{"x-nomad-token": CANARY})
        await ask(kit, "GET", "/v1/volumes?type=csi", **token)
        await ask(kit, "GET", "/v1/acl/tokens", **token)
        noted = [(e.route, e.who.kind, e.who.accessor, e.result, e.code) for e in kept.entries]
        ours, theirs = made["AccessorID"], narrow["AccessorID"]
        assert noted == [
            ("/v1/acl/bootstrap", "anonymous", "", "done", ""),
            ("/v1/acl/token", "management", ours, "done", ""),
            ("/v1/volumes", "anonymous", "", "refused", "forbidden"),
            ("/v1/volumes", "client", theirs, "refused", "forbidden"),
            ("/v1/volumes", "unknown", "", "refused", "forbidden"),
            ("/v1/acl/tokens", "management", ours, "done", ""),
        ]
        for secret in (made["SecretID"], narrow["SecretID"], CANARY):
            assert secret not in repr(kept.entries)
