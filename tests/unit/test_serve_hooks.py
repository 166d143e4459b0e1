"""The fence hook as a program: real processes that exit, print, hang with their children, or are not there."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import anyio
import pytest

from moorage import config
from moorage.engine.ports import HookAnswer
from moorage.errors import BadRequest
from moorage.model.ids import NodeId
from moorage.model.node import Node
from moorage.serve.hooks import REASON_MAX, ProgramHook, make_environment
from moorage.serve.server import choose_engine, choose_hook

pytestmark = pytest.mark.anyio
NODE = Node(
    id=NodeId("11111111-2222-3333-4444-555555555555"), name="n\0one", boot_id="b1", address="10.0.0.1:4646",
    status="down", lost_at_ns=1_700_000_000_000_000_000,
)  # fmt: skip


async def run_shell(script: str, *, timeout_s: float = 20.0) -> HookAnswer:
    with anyio.fail_after(30):
        return await ProgramHook(("sh", "-c", script), timeout_s=timeout_s).fence(NODE)


async def test_exit_0_is_evidence_and_its_first_line_the_reason() -> None:
    answer = await run_shell("echo; echo 'outlet 7 is off'; echo more; echo noise >&2")
    assert answer == HookAnswer(is_fenced=True, text="outlet 7 is off", exit_code=0)


async def test_a_reason_is_cut_and_one_is_given_where_the_hook_is_silent() -> None:
    assert len((await run_shell("head -c 10000000 /dev/zero | tr '\\0' x")).text) == REASON_MAX
    assert (await run_shell("exit 0")).text == "the fence hook exited with 0"


async def test_any_other_exit_code_is_no_evidence() -> None:
    answer = await run_shell("echo 'no such outlet' >&2; exit 3")
    assert answer == HookAnswer(is_fenced=False, text="no such outlet", exit_code=3)
    assert not (await run_shell("kill -9 $$")).is_fenced


async def test_it_gets_the_node_and_none_of_our_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOORAGE_SERVER_DATA_DIR", "secret")
    monkeypatch.setenv("NOMAD_TOKEN", "secret")
    monkeypatch.setenv("OTHER", "kept")
    assert (await run_shell(f"env > {tmp_path}/env")).is_fenced
    found = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert "secret" not in found.values()
    assert found["OTHER"] == "kept"
    assert {k: v for k, v in found.items() if k.startswith("MOORAGE_")} == {
        "MOORAGE_NODE_ID": NODE.id,
        "MOORAGE_NODE_NAME": "none",
        "MOORAGE_NODE_ADDRESS": "10.0.0.1:4646",
        "MOORAGE_NODE_BOOT_ID": "b1",
        "MOORAGE_NODE_DATACENTER": "dc1",
        "MOORAGE_NODE_POOL": "default",
        "MOORAGE_NODE_CLASS": "",
        "MOORAGE_NODE_LOST_AT": "2023-11-14T22:13:20Z",
    }
    assert make_environment(NODE, {}) == {k: v for k, v in found.items() if k.startswith("MOORAGE_")}


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_one_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    script = f"trap '' TERM; sleep 600 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/own; echo asking; wait"
    answer = await run_shell(script, timeout_s=0.5)
    assert answer == HookAnswer(is_fenced=False, text="it was killed after 0.5 s; asking")
    pids = [int((tmp_path / name).read_text()) for name in ("child", "own")]
    with anyio.fail_after(5):
        while any(is_running(pid) for pid in pids):
            await anyio.sleep(0.01)


async def test_one_that_is_cancelled_is_killed_too(tmp_path: Path) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(run_shell, f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/own; sleep 600")
        with anyio.fail_after(10):
            while not (tmp_path / "own").exists():
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()
    with anyio.fail_after(5):
        while is_running(int((tmp_path / "own").read_text())):
            await anyio.sleep(0.01)


async def test_what_it_leaves_behind_with_its_output_open_holds_nothing_up(tmp_path: Path) -> None:
    answer = await run_shell(f"sleep 600 & echo $! > {tmp_path}/child; echo off")
    assert (answer.is_fenced, answer.text) == (True, "off")
    os.kill(int((tmp_path / "child").read_text()), 9)


async def test_one_that_is_not_there_is_no_evidence() -> None:
    answer = await ProgramHook(("/nowhere/hook",), timeout_s=1).fence(NODE)
    assert answer == HookAnswer(is_fenced=False, text="/nowhere/hook cannot be started: No such file or directory")


def load(*words: str, environ: dict[str, str] | None = None) -> config.Settings:
    parser = argparse.ArgumentParser()
    config.add_flags(parser, "server")
    return config.load("server", parser.parse_args(words), environ or {})


async def test_settings_name_it(tmp_path: Path) -> None:
    file = tmp_path / "moorage.toml"
    file.write_text(f'[fencing]\nhook = ["{sys.executable}", "-c", "print(1 + 1)"]\nhook_timeout_s = 5\n')
    hook = choose_hook(load("--config", str(file)))
    assert hook is not None
    assert (await hook.fence(NODE)).text == "2"
    environ = {"MOORAGE_FENCING_HOOK": "sh -c 'echo from the environment'"}
    hook = choose_hook(load("--config", str(file), environ=environ))
    assert hook is not None
    assert (await hook.fence(NODE)).text == "from the environment"
    assert load("--hook", "a 'b c'").fencing.hook == ("a", "b c")
    assert choose_engine(load("--hook-runs-max", "2")).fencing.hook_runs_max == 2
    assert choose_hook(load()) is None


def test_one_that_cannot_be_started_stops_the_server_at_once() -> None:
    with pytest.raises(BadRequest, match=r"fencing\.hook: '/nowhere/hook' is not a program"):
        choose_hook(load("--hook", "/nowhere/hook --now"))
    with pytest.raises(BadRequest, match=r"--hook \(fencing.hook\): no closing quotation"):
        load("--hook", "a 'b")
    with pytest.raises(BadRequest, match="hook-runs-max"):
        load("--hook-runs-max", "0")
