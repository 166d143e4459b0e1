"""A judge of orchestrators: stands between one and a CSI driver, writes down each call, and says what was wrong.

    python -m moorage.testing.driver_judge --listen unix:///a.sock --driver unix:///b.sock --log FILE

Shapes: ``judge_log`` judges one log, ``judge_logs`` those of several judges of one plugin together, by the order of
    time. ``running_judge`` is the proxy within a test's own process.
Returns (the program) after SIGTERM or SIGINT, or with the driver that it runs: 0 without findings, 1 with, 2 for
    arguments that cannot be used. The verdict is also written beside the log, to ``FILE.verdict``.
Never:  shows or keeps a secret.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from moorage.testing.judge_calls import Finding
from moorage.testing.judge_order import Court
from moorage.testing.judge_proxy import Proxy
from moorage.testing.judge_records import Ended, Gone, LogFile, Opened, Scope, Started, read_log

STOP_S = 5.0
DRIVER_START_S = 10.0
DRIVER_LOOK_S = 0.02
_PR_SET_PDEATHSIG = 1
_SELF_DESCRIBING = (
    "GetPluginCapabilities", "ControllerGetCapabilities", "NodeGetCapabilities", "NodeGetInfo",
)  # fmt: skip


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a look at one or more logs."""

    calls: int
    findings: list[Finding]


def judge_log(path: Path) -> list[Finding]:
    """What is wrong in one judge's log. Raises ValueError for a file that is no judge's log, OSError."""
    return reach_verdict((path,)).findings


def judge_logs(paths: Iterable[Path]) -> list[Finding]:
    """What is wrong in the logs of several judges of one plugin, such as one beside the driver on each node."""
    return reach_verdict(tuple(paths)).findings


def reach_verdict(paths: Sequence[Path]) -> Verdict:
    """All findings in the logs taken together, and how many calls they hold.

    A single log whose judge sees a part of the calls is judged by the rules that this part allows.
    """
    logs = {str(path): list(read_log(path)) for path in paths}
    scopes = {line.scope for lines in logs.values() for line in lines if isinstance(line, Opened)}
    court = Court(is_whole=len(logs) > 1 or "part" not in scopes)
    for name, lines in logs.items():
        methods: dict[int, str] = {}
        told: set[str] = set()
        for line in lines:
            if isinstance(line, Started):
                methods[line.id] = line.method
            elif isinstance(line, Ended) and line.status == "OK":
                method = methods.get(line.id, "")
                if method in _SELF_DESCRIBING and method not in told:
                    told.add(method)
                    court.prepare(name, method, line.answer)
    merged = sorted(
        ((line.at_ns, number, name, line) for name, lines in logs.items() for number, line in enumerate(lines)),
        key=lambda entry: entry[:3],
    )
    for _, _, name, line in merged:
        court.take(name, line)
    return Verdict(calls=court.calls, findings=court.findings())


def note_gone(path: Path, *, node_id: str, reason: str, at_ns: int) -> None:
    """Write into a log (a judge's, or one of its own) that a node, by its ID for the driver, holds nothing any more.

    It counts until the orchestrator attaches a volume to the node again.
    """
    log = LogFile(path)
    try:
        log.write(Gone(at_ns=at_ns, node_id=node_id, reason=reason))
    finally:
        log.close()


@asynccontextmanager
async def running_judge(*, listen: Path, driver: Path, log: Path, scope: Scope = "whole") -> AsyncIterator[None]:
    """A judge that stands in for the driver while the block runs. Raises OSError, ValueError when it cannot."""
    proxy = Proxy(listen=listen, driver=driver, log=log, scope=scope)
    proxy.prepare()
    async with proxy.serve():
        yield


def format_finding(finding: Finding) -> str:
    """A finding in one line."""
    where = f"call {finding.call} of {Path(finding.judge).stem}"
    return f"{finding.rule}: {finding.method} {finding.subject!r} ({where}): {finding.message}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    args = _parse(argv)
    if args.die_with_parent is not None:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if args.die_with_parent and os.getppid() != args.die_with_parent:
            return 0
    paths = {}
    for name in ("listen", "driver"):
        text: str = getattr(args, name)
        paths[name] = Path(text.removeprefix("unix://"))
        if not text.startswith("unix:///"):
            print(f"driver_judge: --{name} {text!r} is not unix:///PATH.sock", file=sys.stderr)
            return 2
    errors: list[BaseException] = []
    try:
        proxy = Proxy(listen=paths["listen"], driver=paths["driver"], log=args.log, scope=args.scope)
        proxy.prepare()
        anyio.run(partial(_serve, proxy, args.run))
    except* (OSError, ValueError, RuntimeError) as group:
        errors = _flatten(group)
    for error in errors:
        print(f"driver_judge: {error}", file=sys.stderr)
    if errors:
        return 2
    verdict = reach_verdict((args.log,))
    args.log.with_name(f"{args.log.name}.verdict").write_bytes(msgspec.json.encode(verdict))
    for finding in verdict.findings:
        print(format_finding(finding), file=sys.stderr)
    print(f"driver_judge: {verdict.calls} calls, {len(verdict.findings)} findings", file=sys.stderr)
    return 1 if verdict.findings else 0


def _flatten(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [inner for part in error.exceptions for inner in _flatten(part)]
    return [error]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m moorage.testing.driver_judge",
        description="Forward CSI calls to a driver, write them down, and say what an orchestrator did wrong.",
    )
    parser.add_argument("--listen", required=True, metavar="unix:///A.sock", help="the socket for the orchestrator")
    parser.add_argument("--driver", required=True, metavar="unix:///B.sock", help="the driver's socket")
    parser.add_argument("--log", required=True, type=Path, metavar="FILE", help="where calls are written; appended to")
    parser.add_argument(
        "--scope", choices=("whole", "part"), default="whole",
        help="part: other judges see some of the calls; judge the logs together (default: whole)",
    )  # fmt: skip
    parser.add_argument(
        "--die-with-parent", nargs="?", type=int, const=0, metavar="PID", help="end when the starting process ends"
    )
    parser.add_argument(
        "--run", nargs=argparse.REMAINDER, default=[], metavar="COMMAND",
        help="the driver's command: run it, and end with it; {pid} in a word stands for this process's ID",
    )  # fmt: skip
    return parser.parse_args(argv)


async def _serve(proxy: Proxy, command: Sequence[str]) -> None:
    """Serve until a signal, or until the driver that was started here ends."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as group:
            group.start_soon(_listen, proxy, command)
            async for _ in signals:
                break
            group.cancel_scope.cancel()


async def _listen(proxy: Proxy, command: Sequence[str]) -> None:
    async with anyio.create_task_group() as group:
        if command:
            group.start_soon(_run_driver, [word.replace("{pid}", str(os.getpid())) for word in command])
            await _wait_serving(proxy.driver)
        async with proxy.serve():
            print(f"ready unix://{proxy.listen}", flush=True)
            await anyio.sleep_forever()


async def _wait_serving(socket: Path) -> None:
    """Return when the driver takes connections, so that whoever finds the judge finds a driver behind it."""
    with anyio.move_on_after(DRIVER_START_S):
        while True:
            with suppress(OSError):
                async with await anyio.connect_unix(socket):
                    return
            await anyio.sleep(DRIVER_LOOK_S)


async def _run_driver(command: Sequence[str]) -> None:
    process = await anyio.open_process(command, stdin=subprocess.DEVNULL, stdout=None, stderr=None)
    try:
        await process.wait()
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                process.terminate()
                with anyio.move_on_after(STOP_S):
                    await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await process.aclose()


if __name__ == "__main__":
    sys.exit(main())
