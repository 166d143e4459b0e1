"""The judge of orchestrators: each planted mistake is found, a clean run has no finding, no secret is kept."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import grpc.aio
import msgspec
import pytest
from google.protobuf import text_format
from scripted_csi import ANSWERS, Driver

from moorage.csi import calls
from moorage.errors import DriverFault
from moorage.rpc import Channel, call, unix_channel
from moorage.testing.driver_judge import judge_log, judge_logs, main, note_gone, running_judge
from moorage.testing.judge_records import Opened, Redactor, Scope, Started, read_log

pytestmark = pytest.mark.anyio

RPCS = {rpc.name: rpc for rpc in calls.RPCS.values()}
CAP = "volume_capability { mount { } access_mode { mode: SINGLE_NODE_WRITER } }"
CAPS = CAP.replace("volume_capability", "volume_capabilities")
MANY = CAP.replace("SINGLE_NODE_WRITER", "MULTI_NODE_MULTI_WRITER")
ALPHA = CAP.replace("SINGLE_NODE_WRITER", "SINGLE_NODE_MULTI_WRITER")

ALL = {
    **ANSWERS,
    "ControllerGetCapabilities": """capabilities { rpc { type: CREATE_DELETE_VOLUME } }
      capabilities { rpc { type: PUBLISH_UNPUBLISH_VOLUME } } capabilities { rpc { type: CREATE_DELETE_SNAPSHOT } }
      capabilities { rpc { type: EXPAND_VOLUME } }""",
    "NodeGetCapabilities": "capabilities { rpc { type: STAGE_UNSTAGE_VOLUME } }",
    "NodeGetInfo": 'node_id: "n1"',
    "CreateVolume": 'volume { volume_id: "v" capacity_bytes: 1 volume_context { key: "a" value: "b" } }',
    "DeleteVolume": "",
    "ControllerPublishVolume": 'publish_context { key: "lun" value: "7" }',
    "ControllerUnpublishVolume": "",
    "ControllerExpandVolume": "capacity_bytes: 9",
    "NodeStageVolume": "",
    "NodeUnstageVolume": "",
    "NodePublishVolume": "",
    "NodeUnpublishVolume": "",
}

VOLUME = 'volume_id: "v" volume_context { key: "a" value: "b" }'
CONTEXT = 'publish_context { key: "lun" value: "7" }'
PROBE = [("GetPluginCapabilities", ""), ("ControllerGetCapabilities", ""), ("NodeGetCapabilities", ""), ("NodeGetInfo", "")]  # fmt: skip # noqa: E501
CREATE = ("CreateVolume", f'name: "x" {CAPS} secrets {{ key: "k" value: "hunter22" }}')
ATTACH = ("ControllerPublishVolume", f'{VOLUME} node_id: "n1" {CAP}')
STAGE = ("NodeStageVolume", f'{VOLUME} {CONTEXT} staging_target_path: "/s" {CAP}')
PUBLISH = ("NodePublishVolume", f'{VOLUME} {CONTEXT} staging_target_path: "/s" target_path: "/no/t" {CAP}')
UNPUBLISH = ("NodeUnpublishVolume", 'volume_id: "v" target_path: "/no/t"')
UNSTAGE = ("NodeUnstageVolume", 'volume_id: "v" staging_target_path: "/s"')
DETACH = ("ControllerUnpublishVolume", 'volume_id: "v" node_id: "n1"')
DELETE = ("DeleteVolume", 'volume_id: "v"')
UP = [*PROBE, CREATE, ATTACH, STAGE, PUBLISH]
DOWN = [UNPUBLISH, UNSTAGE, DETACH, DELETE]

Steps = list[tuple[str, str]]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="judge-", dir="/tmp") as directory:
        yield Path(directory)


@asynccontextmanager
async def bench(
    place: Path, name: str = "one", *, scope: Scope = "whole", **answers: Any
) -> AsyncIterator[tuple[Driver, Channel]]:
    """A scripted driver, a judge before it, and a channel to the judge; the log is ``NAME.log``."""
    driver = Driver(**(ALL | answers))
    front, back = place / f"{name}.sock", place / f"{name}.driver.sock"
    async with driver.serve(back), running_judge(listen=front, driver=back, log=place / f"{name}.log", scope=scope):
        channel = unix_channel(str(front))
        try:
            yield driver, channel
        finally:
            await channel.close()


async def send(channel: Channel, method: str, text: str, *, timeout_s: float = 5.0) -> Any:
    rpc = RPCS[method]
    return await call(channel, rpc, text_format.Parse(text, rpc.request_type()), timeout_s=timeout_s)


async def play(channel: Channel, steps: Steps) -> None:
    for method, text in steps:
        await send(channel, method, text)


def rules(log: Path) -> list[str]:
    return [finding.rule for finding in judge_log(log)]


async def test_a_clean_run_has_no_finding_and_passes_everything_on(place: Path) -> None:
    async with bench(place) as (driver, channel):
        await play(channel, [*UP, PUBLISH, STAGE, ATTACH, CREATE, *DOWN, *UP[4:], *DOWN])
        answer = await send(channel, "ControllerPublishVolume", ATTACH[1])
        assert answer.publish_context == {"lun": "7"}
    assert judge_log(place / "one.log") == []
    assert driver.get("CreateVolume")[0].secrets == {"k": "hunter22"}
    content = (place / "one.log").read_text()
    assert "hunter22" not in content
    assert "[SECRET:k]" in content


CHANGED = PUBLISH[1].replace("MULTI", "X").replace("target_path", "readonly: true target_path", 1)
PLANTED: dict[str, tuple[str, Steps]] = {
    "publish without stage": ("publish_without_stage", [*PROBE, CREATE, ATTACH, PUBLISH]),
    "publish at another staging path": ("publish_without_stage", [*UP[:-1], (PUBLISH[0], PUBLISH[1].replace('"/s"', '"/z"'))]),  # noqa: E501
    "publish without a staging path": ("missing_field", [*UP[:-1], (PUBLISH[0], PUBLISH[1].replace('staging_target_path: "/s"', ""))]),  # noqa: E501
    "stage without attach": ("stage_without_attach", [*PROBE, CREATE, (STAGE[0], STAGE[1].replace(CONTEXT, ""))]),
    "stage twice": ("second_staging_path", [*UP, (STAGE[0], STAGE[1].replace('"/s"', '"/z"'))]),
    "unstage while published": ("unstage_while_published", [*UP, UNSTAGE]),
    "detach while staged": ("detach_while_used", [*UP, UNPUBLISH, DETACH]),
    "detach while published": ("detach_while_used", [*UP, DETACH]),
    "delete while attached": ("delete_while_used", [*PROBE, CREATE, ATTACH, DELETE]),
    "second attach": ("second_attach", [*PROBE, CREATE, ATTACH, (ATTACH[0], ATTACH[1].replace("n1", "n2"))]),
    "create with other arguments": ("changed_repeat", [*PROBE, CREATE, (CREATE[0], CREATE[1] + ' parameters { key: "a" }')]),  # noqa: E501
    "attach with another mode": ("changed_repeat", [*PROBE, CREATE, ATTACH, (ATTACH[0], ATTACH[1].replace(CAP, MANY))]),
    "publish with another readonly": ("changed_repeat", [*UP, (PUBLISH[0], PUBLISH[1] + " readonly: true")]),
    "another volume context": ("changed_context", [*PROBE, CREATE, (ATTACH[0], ATTACH[1].replace('"b"', '"c"'))]),
    "another publish context": ("changed_context", [*UP[:-2], (STAGE[0], STAGE[1].replace('"7"', '"8"'))]),
    "a secret among the parameters": ("secret_leaked", [*PROBE, (CREATE[0], CREATE[1] + ' parameters { key: "p" value: "my hunter22" }')]),  # noqa: E501
    "detach from every node": ("empty_node_id", [*PROBE, ("ControllerUnpublishVolume", 'volume_id: "v"')]),
    "an empty capacity range": ("empty_message", [*PROBE, (CREATE[0], CREATE[1] + " capacity_range { }")]),
    "an empty topology": ("empty_message", [*PROBE, (CREATE[0], CREATE[1] + " accessibility_requirements { }")]),
    "no access mode": ("empty_message", [*PROBE, ("CreateVolume", 'name: "x" volume_capabilities { mount { } }')]),
    "no capability": ("missing_field", [*PROBE, CREATE, ("ControllerPublishVolume", f'{VOLUME} node_id: "n1"')]),
    "readonly attach": ("readonly_attach", [*PROBE, CREATE, (ATTACH[0], ATTACH[1] + " readonly: true")]),
    "an alpha mode": ("mode_without_capability", [*PROBE, CREATE, (ATTACH[0], ATTACH[1].replace(CAP, ALPHA))]),
    "a call that is not listed": ("no_capability", [*PROBE, CREATE, ("ControllerModifyVolume", 'volume_id: "v" mutable_parameters { key: "a" }')]),  # noqa: E501
    "a long name": ("too_long", [*PROBE, (CREATE[0], CREATE[1].replace('"x"', '"' + "x" * 129 + '"'))]),
}  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED)
async def test_a_planted_mistake_is_found(place: Path, planted: str) -> None:
    rule, steps = PLANTED[planted]
    async with bench(place, ControllerModifyVolume="") as (_, channel):
        await play(channel, steps)
    findings = judge_log(place / "one.log")
    assert rule in [finding.rule for finding in findings]
    assert {finding.rule for finding in findings} <= {rule, "detach_while_used", "publish_without_stage"}
    assert "hunter22" not in msgspec.json.encode(findings).decode()


async def test_a_secret_that_the_driver_put_into_a_context_is_its_own_affair(place: Path) -> None:
    context = 'volume_context { key: "chap" value: "hunter22" }'
    volume = VOLUME.replace('volume_context { key: "a" value: "b" }', context)
    async with bench(place, CreateVolume=f'volume {{ volume_id: "v" {context} }}') as (_, channel):
        await play(channel, [*PROBE, CREATE, ("ControllerPublishVolume", f'{volume} node_id: "n1" {CAP}')])
        assert rules(place / "one.log") == []
        await send(channel, "ControllerPublishVolume", f'{VOLUME} node_id: "hunter22" {MANY}')
    assert "secret_leaked" in rules(place / "one.log")


async def test_two_calls_in_flight(place: Path) -> None:
    async with bench(place, ControllerExpandVolume="hang") as (driver, channel), anyio.create_task_group() as group:
        await play(channel, [*PROBE, CREATE])
        group.start_soon(send, channel, "ControllerExpandVolume", 'volume_id: "v" capacity_range { required_bytes: 9 }')
        await driver.hanging.wait()
        await play(channel, [("CreateVolume", CREATE[1].replace('"x"', '"y"'))])
        assert rules(place / "one.log") == []
        await play(channel, [ATTACH])
        assert rules(place / "one.log") == ["two_in_flight"]
        group.cancel_scope.cancel()


async def test_a_call_that_was_given_up_is_not_in_flight(place: Path) -> None:
    expand = ("ControllerExpandVolume", 'volume_id: "v" capacity_range { required_bytes: 9 }')
    async with bench(place, ControllerExpandVolume="hang") as (driver, channel):
        await play(channel, [*PROBE, CREATE])
        with anyio.move_on_after(0.2):
            await send(channel, *expand)
        with pytest.raises(DriverFault):
            await send(channel, *expand, timeout_s=0.2)
        driver.answers["ControllerExpandVolume"] = ALL["ControllerExpandVolume"]
        await play(channel, [expand])
    assert rules(place / "one.log") == []
    assert (place / "one.log").read_text().count('"GIVEN_UP"') == 2


async def test_after_a_final_refusal_the_arguments_may_change(place: Path) -> None:
    other = (CREATE[0], CREATE[1] + ' parameters { key: "a" }')
    async with bench(place, CreateVolume=(grpc.StatusCode.INVALID_ARGUMENT, "no hunter22")) as (driver, channel):
        await play(channel, PROBE)
        with pytest.raises(DriverFault, match="no hunter22"):
            await send(channel, *CREATE)
        driver.answers["CreateVolume"] = (grpc.StatusCode.UNAVAILABLE, "")
        with pytest.raises(DriverFault):
            await send(channel, *other)
        assert rules(place / "one.log") == []
        driver.answers["CreateVolume"] = ALL["CreateVolume"]
        await play(channel, [CREATE])
    assert rules(place / "one.log") == ["changed_repeat"]
    assert "hunter22" not in (place / "one.log").read_text()


async def test_what_may_have_begun_must_be_undone_first(place: Path) -> None:
    async with bench(place, NodePublishVolume=(grpc.StatusCode.DEADLINE_EXCEEDED, "")) as (driver, channel):
        await play(channel, UP[:-1])
        with pytest.raises(DriverFault):
            await send(channel, *PUBLISH)
        await play(channel, [UNSTAGE])
        assert rules(place / "one.log") == ["unstage_while_published"]
        driver.answers["NodePublishVolume"] = (grpc.StatusCode.INVALID_ARGUMENT, "")
    (place / "one.log").unlink()
    async with bench(place, NodePublishVolume=(grpc.StatusCode.INVALID_ARGUMENT, "")) as (_, channel):
        await play(channel, UP[:-1])
        with pytest.raises(DriverFault):
            await send(channel, *PUBLISH)
        await play(channel, DOWN[1:])
    assert rules(place / "one.log") == []


async def test_a_path_that_is_in_use(place: Path) -> None:
    target = place / "target"
    target.mkdir()
    async with bench(place) as (_, channel):
        await play(channel, [*UP[:-1], (PUBLISH[0], PUBLISH[1].replace("/no/t", str(target)))])
        unpublish = (UNPUBLISH[0], UNPUBLISH[1].replace("/no/t", str(target)))
        holder = await anyio.open_process(["sleep", "60"], cwd=target)
        try:
            await play(channel, [unpublish])
        finally:
            holder.kill()
            await holder.wait()
        assert rules(place / "one.log") == ["path_in_use"]
        assert f"{holder.pid} sleep {target}" in judge_log(place / "one.log")[0].message
        await play(channel, [unpublish])
    assert rules(place / "one.log") == ["path_in_use"]


async def test_a_call_without_a_deadline(place: Path) -> None:
    async with bench(place), grpc.aio.insecure_channel(f"unix:{place}/one.sock") as channel:
        assert await channel.unary_unary(calls.PROBE.path)(b"") == b""
    assert rules(place / "one.log") == ["no_deadline"]


async def test_judges_of_one_plugin_on_several_nodes_are_judged_together(place: Path) -> None:
    detach_other = ("ControllerUnpublishVolume", 'volume_id: "v" node_id: "n2"')
    attach_other = ("ControllerPublishVolume", ATTACH[1].replace("n1", "n2"))
    two = bench(place, "two", scope="part", NodeGetInfo='node_id: "n2"')
    async with bench(place, scope="part") as (_, first), two as (_, second):
        await play(first, PROBE)
        await play(second, PROBE)
        await play(first, [CREATE, attach_other])
        await play(second, [STAGE, PUBLISH])
        logs = [place / "one.log", place / "two.log"]
        assert judge_logs(logs) == []
        assert judge_log(logs[1]) == []
        note_gone(place / "gone.log", node_id="n2", reason="its power was cut", at_ns=time.time_ns())
        await play(first, [detach_other, ATTACH, STAGE])
        assert [finding.rule for finding in judge_logs(logs)] == ["detach_while_used"] * 2
        assert judge_logs([*logs, place / "gone.log"]) == []
        await play(second, [STAGE])
    assert [finding.rule for finding in judge_logs([*logs, place / "gone.log"])] == ["stage_without_attach"]


async def test_a_boot_of_the_node_takes_its_mounts_and_a_restart_of_the_judge_does_not(place: Path) -> None:
    log = place / "one.log"
    async with bench(place) as (_, channel):
        await play(channel, UP)
    async with bench(place) as (_, channel):
        await play(channel, [*PROBE, DETACH])
    assert rules(log) == ["detach_while_used"] * 2
    lines = list(read_log(log))
    opened = [number for number, line in enumerate(lines) if isinstance(line, Opened)][-1]
    lines[opened] = msgspec.structs.replace(lines[opened], boot_id="another")
    log.write_bytes(b"\n".join(msgspec.json.encode(line) for line in lines))
    assert rules(log) == []


async def test_a_status_and_a_missing_driver_come_back_as_they_are(place: Path) -> None:
    async with bench(place, Probe=(grpc.StatusCode.FAILED_PRECONDITION, "the disk is gone")) as (_, channel):
        with pytest.raises(DriverFault, match="the disk is gone") as caught:
            await send(channel, "Probe", "")
        assert caught.value.status == "FAILED_PRECONDITION"
    front = place / "alone.sock"
    async with running_judge(listen=front, driver=place / "none.sock", log=place / "alone.log"):
        channel = unix_channel(str(front))
        with pytest.raises(DriverFault) as caught:
            await send(channel, "Probe", "")
        assert caught.value.status == "UNAVAILABLE"
        await channel.close()


async def test_a_log_cut_short_is_read_and_a_broken_one_is_refused(place: Path) -> None:
    async with bench(place) as (_, channel):
        await play(channel, UP)
    log = place / "one.log"
    log.write_bytes(log.read_bytes()[:-9])
    assert judge_log(log) == []
    log.write_bytes(b"nonsense\n" + log.read_bytes())
    with pytest.raises(ValueError, match=r"one\.log:1: not a line"):
        judge_log(log)


async def test_the_hash_does_not_depend_on_secrets(place: Path) -> None:
    async with bench(place) as (_, channel):
        await play(channel, [CREATE, (CREATE[0], CREATE[1].replace("hunter22", "another1"))])
        await play(channel, [(CREATE[0], CREATE[1].replace('"x"', '"y"'))])
    hashes = [line.hash for line in read_log(place / "one.log") if isinstance(line, Started)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_short_secrets_are_no_reason_to_suspect_every_text() -> None:
    redactor = Redactor()
    create = calls.CREATE_VOLUME.request_type
    redactor.describe(text_format.Parse('name: "x" secrets { key: "k" value: "1" }', create()))
    assert redactor.describe(text_format.Parse('name: "vol1"', create())) == ({"name": "vol1"}, ())


def test_a_secret_is_known_in_other_spellings_and_among_mount_flags() -> None:
    redactor = Redactor()
    text = f'volume_id: "v" {CAP} secrets {{ key: "k" value: "a/b c+d" }}'
    text = text.replace("mount { }", 'mount { mount_flags: "ro" mount_flags: "password=hunter22" }')
    described, leaks = redactor.describe(text_format.Parse(text, calls.NODE_STAGE_VOLUME.request_type()))
    assert leaks == ()
    assert described["volume_capability"]["mount"] == {"mount_flags": ["ro", "password=[SECRET:password]"]}
    spelled = "a/b c+d a%2Fb%20c%2Bd YS9iIGMrZA== hunter22"
    assert redactor.clean(spelled) == "[SECRET:k] [SECRET:k] [SECRET:k] [SECRET:password]"


def test_the_program_runs_a_driver_and_ends_with_a_verdict(place: Path) -> None:
    front, back, log = place / "a.sock", place / "b.sock", place / "calls.log"
    driver = [sys.executable, "-m", "moorage.csi.local", "--endpoint", f"unix://{back}", "--data", str(place / "data")]
    words = ["--listen", f"unix://{front}", "--driver", f"unix://{back}", "--log", str(log), "--run", *driver]
    command = [sys.executable, "-m", "moorage.testing.driver_judge", *words, "--die-with-parent", "{pid}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"ready unix://{front}\n"
        anyio.run(_ask_until_ready, front)
        process.terminate()
        _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "empty_node_id: ControllerUnpublishVolume 'v'" in said
    assert '"rule":"empty_node_id"' in (place / "calls.log.verdict").read_text()
    assert not back.exists()
    assert log.stat().st_mode & 0o777 == 0o600


async def _ask_until_ready(front: Path) -> None:
    channel = unix_channel(str(front))
    for _ in range(200):
        try:
            await send(channel, "Probe", "")
            break
        except DriverFault:
            await anyio.sleep(0.05)
    await send(channel, "ControllerUnpublishVolume", 'volume_id: "v"')
    await channel.close()


def test_the_program_ends_with_its_driver_and_names_a_path_that_it_cannot_have(place: Path) -> None:
    words = ["--listen", f"unix://{place}/none/a.sock", "--driver", f"unix://{place}/b.sock"]
    command = [sys.executable, "-m", "moorage.testing.driver_judge", *words, "--log", str(place / "log")]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert found.returncode == 2
    assert "a.sock" in found.stderr
    command[4] = f"unix://{place}/a.sock"
    found = subprocess.run([*command, "--run", "true"], capture_output=True, text=True, check=False, timeout=30)
    assert found.returncode == 0
    assert "0 calls, 0 findings" in found.stderr


def test_the_program_names_a_wrong_argument(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--listen", "tcp://x", "--driver", f"unix://{place}/b.sock", "--log", str(place / "log")]) == 2
    assert "--listen 'tcp://x' is not unix:///" in capsys.readouterr().err
