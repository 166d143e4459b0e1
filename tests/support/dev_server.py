"""Real programs of ours for tests: `moorage dev`, `server`, `agent`, `driver local` as child processes.

A Fleet has a short directory of its own (socket paths have a limit), free ports and the log of each program. At its
end it stops what it started, by process ID, unmounts what is left below its directory, and prints the end of each log:
pytest shows that for a test that failed.
Never: ends a process that it did not start.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from canary_marks import MARKS, REFERRED_NAME, REFERRED_VARIABLE
from canary_watch import RECORDING, Watch
from guarding import Door, copy_certificates, find_door, note_door, open_door, server_variables
from left_behind import take_away
from parting import part
from recording import RECORD
from who_runs import Identity

T = TypeVar("T")

READY_S = 30.0
STOP_S = 15.0
LOG_TAIL_LINES = 60
# Below the kernel's ephemeral ports: a client that dials a dead server's port must not be given that port itself.
PORTS = range(20000, 32000)
MARK = "MOORING_TEST"
# Every driver of a fleet stands behind a judge of orchestrators, and a finding fails the test; set to 0: none does.
IS_JUDGED = os.environ.get("MOORAGE_TEST_JUDGE") != "0"
JUDGE = "moorage.testing.driver_judge"
JUDGED_PROGRAM = Path(__file__).with_name("judged_program.py")
WATCHED = (str(Path(__file__).with_name("watched_program.py")),)
# Set to 1, every fleet that can is guarded: TLS and access control; those marked for it are in any case, once.
IS_GUARDED = os.environ.get("MOORAGE_TEST_GUARDED") == "1"
# What agents may refer to, and the mark in it.
REFERRING = {"MOORAGE_AGENT_SECRET_ENV": REFERRED_NAME, REFERRED_NAME: MARKS.make_plain(REFERRED_VARIABLE)}
MOORAGE = ("-m", "moorage")
_SETTINGS = ("MOORAGE_", "NOMAD_")
_DRIVER_READY = re.compile(r"\bready\b.* endpoint=")


def wait_until(find: Callable[[], T], what: str, *, within_s: float = READY_S) -> T:
    """The first true result of ``find``; fails with ``what`` and the last result when it stays false."""
    ends_s = time.monotonic() + within_s
    while True:
        found = find()
        if found:
            return found
        assert time.monotonic() < ends_s, f"not within {within_s:g} s: {what} (last: {found!r})"
        time.sleep(0.02)


def find_port() -> int:
    """A port that nobody listens on now."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def list_marked(place: Path) -> list[int]:
    """Processes, with their children's children, whose environment bears the mark of this directory."""
    mark = f"{MARK}={place}".encode()
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (directory / "environ").read_bytes().split(b"\0"):
                    found.append(int(directory.name))
    return found


class Program:
    """One program of a fleet, which may be ended and started again. ``url`` is empty for what serves no HTTP."""

    def __init__(
        self,
        words: Sequence[str],
        place: Path,
        *,
        name: str,
        identity: Identity,
        url: str = "",
        module: Sequence[str] = MOORAGE,
        variables: Mapping[str, str] = REFERRING,
    ) -> None:
        self.words = [identity.interpreter, *module, *words]
        self.name = name
        self.url = url
        self.log_file = place / f"{name}.log"
        self.out_file = place / f"{name}.out"
        self.starts = 0
        self._identity = identity
        self._place = place
        self._variables = variables
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process ID of the running program."""
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    @property
    def log(self) -> str:
        """All it logged, over all its starts."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def start(self) -> None:
        """Start it, and return at once."""
        assert self._process is None, f"{self.name} runs already"
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_SETTINGS)}
        environment |= {MARK: str(self._place), "HOME": str(self._place), **self._variables}
        environment[RECORD] = str(self._place / f"{self.name}{RECORDING}")
        with self.out_file.open("wb") as out, self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self.words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                cwd=self._place,
                **self._identity.popen_options(environment),
            )
        self.starts += 1

    def wait_ready(self) -> None:
        """Return when it said that it is ready, on stdout or, the driver, in its log."""
        wait_until(self._is_ready, f"{self.name} is ready")

    def _is_ready(self) -> bool:
        assert self._process is not None
        code = self._process.poll()
        assert code is None, f"{self.name} ended with code {code}:\n{self.log[-2000:]}"
        if "driver" in self.words[:4]:
            return len(_DRIVER_READY.findall(self.log)) >= self.starts
        return b"ready " in self.out_file.read_bytes()

    def kill(self) -> None:
        """SIGKILL: no clean-up of its own runs."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and its exit code. Fails when it does not end."""
        return self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Start it again after its end, and wait until it is ready."""
        self.start()
        self.wait_ready()

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        assert process is not None, f"{self.name} does not run"
        process.send_signal(number)
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self.name} did not end within {STOP_S:g} s of {number.name}") from None

    def clean(self) -> None:
        """End it, if it runs, and say nothing."""
        if self._process is not None:
            with contextlib.suppress(AssertionError):
                self.stop()


class Fleet:
    """Programs that work together below one directory."""

    def __init__(self, identity: Identity | None = None, *, is_guarded: bool = IS_GUARDED) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="moor-", dir="/tmp")).resolve()
        self.is_guarded = is_guarded
        self.variables: Mapping[str, str] = REFERRING
        self.watch = Watch(self.place)
        self.identity = identity or Identity()
        self.programs: list[Program] = []
        self.leaks: list[str] = []
        self._give(self.place)
        self.mounts = self.place / "mnt"
        self.mounts.mkdir()
        self._give(self.mounts)

    def _give(self, path: Path) -> None:
        if self.identity.user is not None:
            os.chown(path, self.identity.user, self.identity.user)

    # -- starting ----------------------------------------------------------------------------------------------------

    def start_dev(self, *, plugin_id: str = "hostpath", options: Sequence[str] = ()) -> Program:
        """`moorage dev`, ready: its driver is healthy."""
        port = find_port()
        words = ["dev", "--bind", f"127.0.0.1:{port}", "--data-dir", str(self.place / "dev"), "--plugin-id", plugin_id]
        return self._serve([*words, *options], "dev", port, module=self.dev_module(str(port)))

    def start_server(self, *options: str, scheme: str = "http") -> Program:
        """`moorage server`, ready."""
        port = find_port()
        words = ["server", "--bind", f"127.0.0.1:{port}", "--data-dir", str(self.place / "server"), *options]
        return self._serve(words, "server", port, module=WATCHED, scheme=scheme)

    def _serve(self, words: list[str], name: str, port: int, *, module: Sequence[str], scheme: str = "http") -> Program:
        """A program that serves, guarded if the fleet is and the words do not say how it is to be guarded."""
        url = f"{scheme}://127.0.0.1:{port}"
        if scheme == "https" or "--acl" in words:
            return self._start(words, name, url=url, module=module)
        if not self.is_guarded:
            note_door(Door(url=url, is_marked=True))
            return self._start(words, name, url=url, module=module)
        url = f"https://127.0.0.1:{port}"
        program = self._start(words, name, url=url, module=module, more=server_variables(self.tls))
        open_door(url, self.tls, self.join_token_file)
        self.watch.counts["guarded fleets"] += 1
        return program

    @property
    def tls(self) -> Path:
        """Certificates of this fleet, for whoever runs its programs."""
        place = self.place / "tls"
        if not place.exists():
            for path in (copy_certificates(place), *place.iterdir()):
                self._give(path)
        return place

    @property
    def join_token_file(self) -> Path:
        """Where the agents of a guarded fleet find their join token."""
        return self.place / "join-token"

    def start_driver(self, at: Path | None = None) -> Program:
        """`moorage driver local`, ready; its socket is ``at``, which is ``driver_socket`` if nothing is said."""
        listening = socket = at or self.driver_socket
        socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._give(socket.parent)
        if IS_JUDGED:
            socket = self.place / f"{socket.parent.name}.judged"
            words = ["--listen", f"unix://{listening}", "--driver", f"unix://{socket}"]
            words += ["--log", str(self.place / f"{listening.parent.name}.calls")]
            self._start(words, "judge", module=["-m", JUDGE])
        data = self.place / ("volumes" if at is None else f"volumes-{listening.parent.name}")
        words = ["driver", "local", "--endpoint", f"unix://{socket}", "--data", str(data)]
        return self._start([*words, "--node-id", "node-1"], "driver")

    def judge_command(self, driver: Sequence[str], *, socket: Path) -> list[str]:
        """The command of a driver at ``socket`` behind a judge, for settings; the judge runs the driver."""
        if not IS_JUDGED:
            return [str(word) for word in driver]
        behind = f"unix://{self.place / socket.parent.name}.judged"
        words = [behind if word == f"unix://{socket}" else str(word) for word in driver]
        judge = [sys.executable, "-m", JUDGE, "--listen", f"unix://{socket}", "--driver", behind]
        log = str(self.place / f"{socket.parent.name}.calls")
        return [*judge, "--log", log, "--die-with-parent", "--run", *words, "--die-with-parent", "{pid}"]

    def dev_module(self, log: str) -> Sequence[str]:
        """The module words of `moorage dev` whose embedded driver stands behind a judge."""
        return [str(JUDGED_PROGRAM), str(self.place / f"{log}.calls")] if IS_JUDGED else WATCHED

    @property
    def driver_socket(self) -> Path:
        """Where a driver of this fleet listens."""
        return self.place / "csi" / "csi.sock"

    def start_agent(self, server: Program, *, plugin_id: str = "hostpath") -> Program:
        """`moorage agent` for the fleet's driver, ready: the server knows it."""
        words = ["agent", "--server", server.url, "--data-dir", str(self.place / "agent")]
        return self.start_agent_with([*words, "--plugin", f"{plugin_id}=unix://{self.driver_socket}"], server)

    def start_agent_with(self, words: Sequence[str], server: Program) -> Program:
        """`moorage agent` with these words, ready, with what it takes to join a server that is guarded."""
        door = find_door(server.url)
        more: dict[str, str] = {}
        if door.token:
            more = {"MOORAGE_AGENT_CA_FILE": door.ca_file, "MOORAGE_AGENT_JOIN_TOKEN_FILE": str(self.join_token_file)}
            self._give(self.join_token_file)
        return self._start(words, "agent", more=more)

    def _start(
        self,
        words: Sequence[str],
        name: str,
        *,
        url: str = "",
        module: Sequence[str] | None = None,
        more: Mapping[str, str] | None = None,
    ) -> Program:
        if module is None:
            module = WATCHED if words[0] == "server" else MOORAGE
        program = Program(
            words,
            self.place,
            name=name,
            identity=self.identity,
            url=url,
            module=module,
            variables={**self.variables, **(more or {})},
        )
        self.programs.append(program)
        program.restart()
        return program

    # -- looking -----------------------------------------------------------------------------------------------------

    def find_processes(self) -> list[int]:
        """Processes that came from this fleet, children of children too, as long as they live."""
        return list_marked(self.place)

    # -- the end -----------------------------------------------------------------------------------------------------

    def find_faults(self) -> list[str]:
        """What the judges found, if there were any."""
        from moorage.testing.driver_judge import format_finding, judge_log

        return [format_finding(finding) for log in sorted(self.place.glob("*.calls")) for finding in judge_log(log)]

    def close(self) -> list[int]:
        """Stop everything, show the logs, remove the directory; returns processes that stayed, which it then kills."""
        self._part()
        for program in reversed(self.programs):
            program.clean()
        left = self._wait_gone()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for program in self.programs:
            lines = program.log.splitlines()
            print(f"--- {program.name}: the last of {len(lines)} lines logged in {program.starts} starts")
            print("\n".join(line[:600] for line in lines[-LOG_TAIL_LINES:]))
        take_away(self.place)
        self.watch.search()
        self.leaks = self.watch.list_leaks()
        shutil.rmtree(self.place, onerror=_make_writable)
        return left

    def _part(self) -> None:
        """The last requests, with the programs still running; and a look at their arguments and environments."""
        for program in self.programs:
            if program.is_running and program.url.startswith("http"):
                self.watch.counts["parting words"] += part(find_door(program.url), self.place)
        self.watch.search_running(self.find_processes())

    def _wait_gone(self) -> list[int]:
        ends_s = time.monotonic() + STOP_S
        while (left := self.find_processes()) and time.monotonic() < ends_s:
            time.sleep(0.02)
        return left


def _make_writable(function: Callable[..., object], path: str, error: object) -> None:
    """Volumes may hold directories without any permission."""
    with contextlib.suppress(OSError):
        os.chmod(os.path.dirname(path), stat.S_IRWXU)
        function(path)


@contextlib.contextmanager
def running_fleet(identity: Identity | None = None, *, is_guarded: bool = IS_GUARDED) -> Iterator[Fleet]:
    """A fleet that is closed at the end; a process that outlives its program fails the test."""
    fleet = Fleet(identity, is_guarded=is_guarded)
    try:
        yield fleet
    except BaseException:
        fleet.close()
        raise
    faults = fleet.find_faults()
    left = fleet.close()
    assert not left, f"processes {left} outlived the programs that started them"
    assert not faults, "\n".join(faults)
    assert not fleet.leaks, "secrets are in\n" + "\n".join(fleet.leaks)
