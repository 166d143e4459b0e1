"""The search of a fleet finds a leak in each class of places, and every place that takes a secret has its canary."""

from __future__ import annotations

import base64
import gzip
import importlib
import io
import json
import os
import pkgutil
import re
import sqlite3
import struct
import subprocess
import sys
import tarfile
import zlib
from contextlib import closing
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import zstandard
from canary_marks import (
    FIELDS,
    IN_ENVIRONMENTS,
    LEARNT,
    MARKED,
    MARKS,
    NO_SECRETS,
    PUBLISH_CONTEXT,
    REFERRED_VARIABLE,
    SHOWN,
    VOLUME_SECRET,
)
from canary_watch import PLACES, Totals, Watch
from guarding import copy_certificates
from recording import Answer, Recorded, read_answers

import moorage.model
from moorage.model.volume import MountOptions, Secrets
from moorage.state.keyring import make_key, write_key

SECRET = MARKED[VOLUME_SECRET]
_SOUNDS = re.compile("secret|token|passw|context|credential|key|environment|flags|private", re.IGNORECASE)


# -- every place that takes one --------------------------------------------------------------------------------------


def list_modules() -> list[ModuleType]:
    names = [f"moorage.model.{found.name}" for found in pkgutil.iter_modules(moorage.model.__path__)]
    names += ["moorage.config_sections", "moorage.config_security", "moorage.api.bodies"]
    return [importlib.import_module(name) for name in names]


def list_sensitive_fields(modules: list[ModuleType]) -> set[str]:
    """module.Class.field of what has a secret type, or a name that sounds like one."""
    return {
        f"{module.__name__.rpartition('.')[2]}.{cls.__name__}.{field.name}"
        for module in modules
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, msgspec.Struct) and cls.__module__ == module.__name__
        for field in msgspec.structs.fields(cls)
        if field.type is Secrets or _SOUNDS.search(field.name)
    }


def find_unmarked(fields: set[str]) -> list[str]:
    return sorted(f for f in fields if not any(fnmatch(f, pattern) for pattern in (*FIELDS, *NO_SECRETS)))


def test_every_field_that_takes_a_secret_has_a_canary() -> None:
    fields = list_sensitive_fields(list_modules())
    assert find_unmarked(fields) == []
    assert [p for p in (*FIELDS, *NO_SECRETS) if not any(fnmatch(f, p) for f in fields)] == [], "no such field"
    assert {*FIELDS.values()} <= {*MARKS.names, *LEARNT}


def test_a_new_field_without_a_canary_is_found() -> None:
    module = ModuleType("moorage.model.fresh")
    fresh = msgspec.defstruct(
        "Fresh", [("chap", Secrets), ("api_password", str), ("name", str)], module=module.__name__
    )
    module.Fresh = fresh  # type: ignore[attr-defined]
    assert find_unmarked(list_sensitive_fields([module])) == ["fresh.Fresh.api_password", "fresh.Fresh.chap"]
    assert MountOptions.__struct_fields__ == ("fs_type", "mount_flags")


# -- answers ---------------------------------------------------------------------------------------------------------


def leaks(*answers: Answer) -> list[str]:
    watch = Watch(Path("/nowhere"), Totals())
    for answer in answers:
        watch.search_answer(answer)
    return watch.list_leaks()


def answer(method: str, path: str, body: bytes, headers: bytes = b"") -> Answer:
    return Answer(method=method, path=path, status=200, headers=headers, body=body)


def respond(body: bytes, coding: str = "", *, is_chunked: bool = False) -> bytes:
    head = b"HTTP/1.1 200 OK\r\n" + (b"content-encoding: %s\r\n" % coding.encode() if coding else b"")
    if not is_chunked:
        return head + b"content-length: %d\r\n\r\n%s" % (len(body), body)
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[n : n + 7]), body[n : n + 7]) for n in range(0, len(body), 7))
    return head + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("coding", ["", "gzip", "deflate", "zstd"])
def test_a_leak_in_an_answer_is_found_whatever_its_coding(coding: str, is_chunked: bool) -> None:
    body = json.dumps([{"ID": "web", "Note": f"x{SECRET}y"}] * 3).encode()
    packers = {"": bytes, "gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstandard.ZstdCompressor().compress}
    sent = respond(b"{}") + respond(packers[coding](body), coding, is_chunked=is_chunked) + respond(b"[]")
    connection = Recorded(asked=[("GET", f"/v1/{n}") for n in "abc"], sent=[sent[:40], sent[40:]])
    answers = list(read_answers(connection))
    assert [(a.path, a.body) for a in answers] == [("/v1/a", b"{}"), ("/v1/b", body), ("/v1/c", b"[]")]
    assert leaks(*answers) == [f"answer to GET /v1/b: {VOLUME_SECRET} (JSON)"]


def test_answers_are_put_together_with_their_requests() -> None:
    sent = b"HTTP/1.1 100 Continue\r\n\r\n" + respond(b"one") + b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"
    sent += b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nthree\r\n9\r\ncut"
    connection = Recorded(asked=[("PUT", "/1"), ("HEAD", "/2"), ("GET", "/3")], sent=[sent])
    assert [(a.path, a.body) for a in read_answers(connection)] == [("/1", b"one"), ("/2", b""), ("/3", b"threecut")]
    rubbish = Recorded(sent=[f"{SECRET} is no answer".encode()])
    assert leaks(*read_answers(rubbish)) == [f"answer to  : {VOLUME_SECRET} (plain)"]


def test_what_is_shown_on_purpose_is_shown_there_only() -> None:
    own = json.dumps({"claims": [{"secrets": {"values": {"p": SECRET}}, "claim": {"id": "a"}}]}).encode()
    assert leaks(answer("GET", "/v1/node/n/claims?index=7", own)) == []
    for other in ("/v1/node/n/why", "/v1/node/n/claims/x", "/v1/volume/csi/web", "/v1/nodes"):
        assert leaks(answer("GET", other, own)), other
    assert leaks(answer("PUT", "/v1/node/n/claims", own))
    elsewhere = json.dumps({"claims": [{"secrets": {}, "claim": {"fault": f"failed with {SECRET}"}}]}).encode()
    assert leaks(answer("GET", "/v1/node/n/claims", elsewhere))
    assert leaks(answer("GET", "/v1/node/n/claims", b"{}", b"X-Request-Id: " + SECRET.encode()))
    assert all(shown.why for shown in SHOWN)


# -- files, rows, processes ------------------------------------------------------------------------------------------


def write_archive(path: Path, content: bytes) -> None:
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo("moorage-debug/server/log.json")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))


def write_database(path: Path, value: bytes, *, is_deleted: bool = False) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA secure_delete = OFF")
        database.execute("CREATE TABLE records (key TEXT, value BLOB)")
        database.execute("INSERT INTO records VALUES ('a', ?)", (value,))
        database.commit()
        if is_deleted:
            database.execute("DELETE FROM records")
            database.commit()


FILES = {
    "server.log": lambda path: path.write_text(f"event=x secret={SECRET}"),
    "server/audit.log": lambda path: path.write_text(json.dumps({"path": SECRET})),
    "server/audit.log.17": lambda path: path.write_text(json.dumps({"path": SECRET})),
    "server/state.db-wal": lambda path: path.write_bytes(os.urandom(500) + SECRET.encode()),
    "server/state.db": lambda path: write_database(path, b"x" * 200 + SECRET.encode()),
    "server/deleted.db": lambda path: write_database(path, SECRET.encode(), is_deleted=True),
    # Cut by the ends of pages in the file: only its row has it whole.
    "server/long.db": lambda path: write_database(path, base64.b64encode(b"x" * 4020 + SECRET.encode()) * 3),
    "agent/node/u/one.json": lambda path: path.write_text(json.dumps({"flags": [SECRET]})),
    "volumes/id/meta.json": lambda path: path.write_text(json.dumps({"parameters": SECRET})),
    "parting.tar.gz": lambda path: write_archive(path, json.dumps(SECRET).encode()),
    "one.calls": lambda path: path.write_text(json.dumps({"request": SECRET})),
    "agent/core": lambda path: path.write_bytes(SECRET.encode().hex().encode()),
    "agent/tmp.7": lambda path: path.write_bytes(gzip.compress(SECRET.encode())),
}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_leak_in_a_file_is_found(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    FILES[name](path)
    watch = Watch(tmp_path, Totals())
    watch.search()
    assert any(str(path) in leak and VOLUME_SECRET in leak for leak in watch.list_leaks())
    path.unlink()
    clean = Watch(tmp_path, Totals())
    clean.search()
    assert clean.list_leaks() == []


def test_a_leak_in_a_recording_is_found(tmp_path: Path) -> None:
    frames = [
        (1, b"GET /v1/volumes"),
        (2, b"GET /v1/volumes HTTP/1.1\r\n\r\n"),
        (1, respond(SECRET.encode())),
        (3, b""),
    ]
    kinds = (0, 2, 1, 3)
    content = b"".join(struct.pack(">QBI", 5, k, len(d)) + d for k, (_, d) in zip(kinds, frames, strict=True))
    (tmp_path / "server.answers").write_bytes(content + b"\0\0")
    watch = Watch(tmp_path, Totals())
    watch.search()
    assert watch.list_leaks() == [f"answer to GET /v1/volumes: {VOLUME_SECRET} (plain)"]
    assert watch.counts["answers"] == 1


def test_a_leak_in_arguments_or_environments_is_found(tmp_path: Path) -> None:
    plain = MARKS.make_plain(PUBLISH_CONTEXT)
    allowed = {"A": MARKS.make_plain(REFERRED_VARIABLE)}
    assert REFERRED_VARIABLE in IN_ENVIRONMENTS
    cases = (([f"--x={plain}"], {"A": "b"}, "arguments"), ([], {"X": plain}, "environment"), ([], allowed, ""))
    for words, environment, found in cases:
        command = [sys.executable, "-c", "import time; time.sleep(60)", *words]
        with subprocess.Popen(command, env=environment) as process:
            while not Path(f"/proc/{process.pid}/environ").read_bytes():
                pass
            watch = Watch(tmp_path, Totals())
            watch.search_running([process.pid])
            process.kill()
        shown = watch.list_leaks()
        assert (len(shown) == 1 and shown[0].startswith(found)) if found else shown == []


def test_secrets_that_programs_made_are_searched_for(tmp_path: Path) -> None:
    key = make_key(b"7" * 32)
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "secret.key").write_text(f"{write_key(key)}\n")
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "node-secret").write_text("moorage-node-abcdefghijklmnop\n")
    tls = copy_certificates(tmp_path / "tls")
    pem = (tls / "server-key.pem").read_text()
    token = "0b1e5f68-21bb-4c0f-9f3e-8a6f1dd2b9aa"
    made = Recorded(asked=[("PUT", "/v1/acl/token")], sent=[respond(json.dumps({"SecretID": token}).encode())])
    frame = struct.Struct(">QBI")
    content = b"".join(frame.pack(1, 1, len(part)) + part for part in made.sent)
    content = frame.pack(1, 0, len(b"PUT /v1/acl/token")) + b"PUT /v1/acl/token" + content
    (tmp_path / "server.answers").write_bytes(content)
    cases = {
        "sealing key": base64.b64encode(key.secret).decode(),
        "node's secret": "x moorage-node-abcdefghijklmnop",
        "TLS private key": pem,
        "SecretID": f"token {token}",
    }
    for name, text in cases.items():
        (tmp_path / "agent.log").write_text(text)
        watch = Watch(tmp_path, Totals())
        watch.search()
        assert [leak for leak in watch.list_leaks() if name in leak and "agent.log" in leak], name
    (tmp_path / "agent.log").unlink()
    watch = Watch(tmp_path, Totals())
    watch.search()
    assert watch.list_leaks() == []


def test_a_blind_search_says_so() -> None:
    totals, other = Totals(), Totals()
    assert len(totals.find_blind_spots([*MARKED, *LEARNT], PLACES)) == len(MARKED) + len(LEARNT) + len(PLACES)
    other.counts.update(PLACES)
    other.went_in.update([*MARKED, *LEARNT])
    totals.take(other.give())
    assert totals.find_blind_spots([*MARKED, *LEARNT], PLACES) == []
    del totals.counts["event streams"]
    assert totals.find_blind_spots([], PLACES) == ["no event streams searched"]
