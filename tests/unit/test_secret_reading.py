"""References: read only where this host allows it, at the call, within bounds; content in no text."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from app_asking import ask
from engine_kit import running_kit

from moorage.agent.ports import AgentSettings
from moorage.agent.secret_reading import VALUE_BYTES_MAX, ReadingDriver, SecretReader
from moorage.errors import BadRequest, Rejected
from moorage.model import steps
from moorage.model.secret_refs import Reference, check_references, is_reference, parse_reference, read_literal
from moorage.model.volume import Secrets
from moorage.rules.why import scrub

pytestmark = pytest.mark.anyio
CANARY = "canary-51c2"


def make_reader(tmp_path: Path, environ: dict[str, str] | None = None, **more: Any) -> SecretReader:
    (tmp_path / "allowed").mkdir(exist_ok=True)
    settings = AgentSettings(
        secret_dirs=(str(tmp_path / "allowed"),), secret_env=("S_OK",), secret_credentials=("db",), **more
    )
    return SecretReader(settings, environ or {})


async def refuse(reader: SecretReader, value: str) -> str:
    with pytest.raises(Rejected) as caught:
        await reader.resolve(Secrets({"password": value}))
    assert CANARY not in caught.value.message
    assert "password" in caught.value.message
    return caught.value.message


def test_references() -> None:
    assert parse_reference("file:/run/x y") == Reference("file", "/run/x y")
    assert parse_reference("env:A_1") == Reference("env", "A_1")
    assert parse_reference("credential:db.pw") == Reference("credential", "db.pw")
    assert str(parse_reference("env:A")) == "env:A"
    for plain in ("hunter2", "files:/x", "File:/x", "", "literal:file:/x", "s3cret:env:A"):
        assert parse_reference(plain) is None
    for bad in ("file:relative", "env:", "env:A-B", "credential:../x", "credential:a/b", f"file:{CANARY}"):
        with pytest.raises(BadRequest, match="literal:") as caught:
            parse_reference(bad)
        assert CANARY not in caught.value.message
        assert not is_reference(bad)
    assert read_literal("literal:file:/x") == "file:/x"
    assert read_literal("literal:literal:x") == "literal:x"
    with pytest.raises(BadRequest, match='secret "k"'):
        check_references({"ok": "v", "k": "env:?"})


async def test_all_kinds_are_read_and_the_rest_is_left(tmp_path: Path) -> None:
    credentials = tmp_path / "cred"
    credentials.mkdir()
    (credentials / "db").write_text(f"{CANARY}-c")
    reader = make_reader(tmp_path, {"S_OK": f"{CANARY}-e", "CREDENTIALS_DIRECTORY": str(credentials)})
    (tmp_path / "allowed" / "pw").write_text(f"{CANARY}-f\n\n")
    asked = {
        "f": f"file:{tmp_path}/allowed/pw",
        "e": "env:S_OK",
        "c": "credential:db",
        "plain": "hunter2",
        "escaped": "literal:file:/x",
        "empty": "",
    }
    found = await reader.resolve(Secrets(asked))
    # One final newline is the file's, the others are the secret's.
    assert found.values == {
        "f": f"{CANARY}-f\n",
        "e": f"{CANARY}-e",
        "c": f"{CANARY}-c",
        "plain": "hunter2",
        "escaped": "file:/x",
        "empty": "",
    }


async def test_what_the_host_does_not_allow_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text(CANARY)
    reader = make_reader(tmp_path, {"OTHER": CANARY, "S_OK2": CANARY, "CREDENTIALS_DIRECTORY": str(tmp_path)})
    allowed = tmp_path / "allowed"
    (allowed / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "allowed-not").mkdir()
    (tmp_path / "allowed-not" / "pw").write_text(CANARY)
    os.mkfifo(allowed / "pipe")
    for path in ("outside", "allowed/../outside", "allowed-not/pw"):
        assert "none of this host's agent.secret_dirs" in await refuse(reader, f"file:{tmp_path}/{path}")
    assert "leads out of" in await refuse(reader, f"file:{allowed}/link")
    assert "not a plain file" in await refuse(reader, f"file:{allowed}/pipe")
    assert "Is a directory" in await refuse(reader, f"file:{allowed}")
    assert "agent.secret_env" in await refuse(reader, "env:OTHER")
    assert "agent.secret_env" in await refuse(reader, "env:S_OK2")
    assert "agent.secret_credentials" in await refuse(reader, "credential:outside")
    closed = SecretReader(AgentSettings(), {"A": CANARY})
    assert "agent.secret_dirs" in await refuse(closed, "file:/etc/hostname")
    # Whether a file is there is not told either.
    assert "agent.secret_dirs" in await refuse(closed, "file:/etc/none-of-that-name")


async def test_a_link_to_the_allowed_directory_is_allowed(tmp_path: Path) -> None:
    reader = make_reader(tmp_path)
    (tmp_path / "current").symlink_to(tmp_path / "allowed")
    (tmp_path / "allowed" / "pw").write_text(CANARY)
    linked = SecretReader(AgentSettings(secret_dirs=(str(tmp_path / "current"),)), {})
    for each in (reader, linked):
        found = await each.resolve(Secrets({"p": f"file:{tmp_path}/allowed/pw"}))
        assert found.values == {"p": CANARY}
    assert (await linked.resolve(Secrets({"p": f"file:{tmp_path}/current/pw"}))).values == {"p": CANARY}


async def test_missing_large_and_binary(tmp_path: Path) -> None:
    reader = make_reader(tmp_path)
    allowed = tmp_path / "allowed"
    (allowed / "large").write_text(CANARY * VALUE_BYTES_MAX)
    (allowed / "binary").write_bytes(CANARY.encode() + b"\xff")
    for name, reason in (("none", "No such file"), ("large", "larger than 65536"), ("binary", "not UTF-8")):
        text = await refuse(reader, f"file:{allowed}/{name}")
        assert reason in text
        assert f"file:{allowed}/{name}" in text
    assert "not set" in await refuse(reader, "env:S_OK")
    assert "LoadCredential" in await refuse(reader, "credential:db")


class Recording:
    """A driver that says what it got, and fails with it."""

    def __init__(self) -> None:
        self.got: list[steps.Step] = []

    async def open(self) -> None:
        """Nothing."""

    async def close(self) -> None:
        """Nothing."""

    async def probe(self, *, timeout_s: float) -> Any:
        """Not asked here."""

    async def run(self, step: steps.Step, *, timeout_s: float) -> steps.Outcome:
        """Remember the step."""
        self.got.append(step)
        return steps.Done()


async def test_the_driver_is_called_with_what_was_read_or_not_at_all(tmp_path: Path) -> None:
    inner = Recording()
    driver = ReadingDriver(inner, make_reader(tmp_path))
    path = tmp_path / "allowed" / "pw"
    step = steps.DeleteVolume(external_id="e", secrets=Secrets({"p": f"file:{path}"}))
    failed = await driver.run(step, timeout_s=5)
    assert isinstance(failed, steps.Failed)
    assert (failed.fault.status, failed.fault.final) == ("secret_unavailable", False)
    assert str(path) in failed.fault.message
    listing = await driver.run(steps.ListSnapshots(secrets=step.secrets), timeout_s=5)
    assert isinstance(listing, steps.Failed)
    assert listing.fault.final
    assert inner.got == []
    path.write_text(CANARY)
    assert await driver.run(step, timeout_s=5) == steps.Done()
    bare = steps.UnstageVolume(external_id="e", staging_path="/s")
    assert await driver.run(bare, timeout_s=5) == steps.Done()
    assert inner.got == [steps.DeleteVolume(external_id="e", secrets=Secrets({"p": CANARY})), bare]


async def test_a_file_that_hangs_ends_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = make_reader(tmp_path, secret_read_s=0.2)
    (tmp_path / "allowed" / "pw").write_text(CANARY)
    gate = threading.Event()
    real = os.fstat

    def hang(descriptor: int) -> os.stat_result:
        gate.wait(10)
        return real(descriptor)

    monkeypatch.setattr("moorage.agent.secret_reading.os.fstat", hang)
    try:
        with anyio.fail_after(5), pytest.raises(Rejected, match=r"longer than 0\.2 s"):
            await reader.resolve(Secrets({"p": f"file:{tmp_path}/allowed/pw"}))
    finally:
        gate.set()


def test_a_text_keeps_the_name_of_a_reference() -> None:
    text = "secret (file:/run/pw) cannot be read; hunter22"
    assert scrub(text, (Secrets({"a": "file:/run/pw", "b": "hunter22"}),)) == text.replace("hunter22", "[REDACTED]")


async def test_a_malformed_reference_is_refused_by_the_api_without_showing_it() -> None:
    async with running_kit() as kit:
        volume: dict[str, Any] = {
            "ID": "v",
            "Name": "v",
            "PluginID": "hostpath",
            "Secrets": {"password": f"file:{CANARY}"},
        }
        volume["RequestedCapabilities"] = [{"AccessMode": "single-node-writer", "AttachmentMode": "file-system"}]
        answer = await ask(kit, "PUT", "/v1/volume/csi/v/create", {"Volumes": [volume]})
        assert answer.status >= 400
        assert b'secret "password"' in answer.body
        assert CANARY.encode() not in answer.body
        header = {"x-nomad-csi-secrets": f"token=env:{CANARY}"}
        answer = await ask(kit, "GET", "/v1/volumes/snapshot?plugin_id=hostpath", **header)
        assert answer.status >= 400
        assert b'secret "token"' in answer.body
        assert CANARY.encode() not in answer.body
