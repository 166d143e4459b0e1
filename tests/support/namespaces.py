"""Hosts in miniature: each has network, mount, process and host-name namespaces of its own; one switch joins them.

A ``Lan`` is a network namespace with a bridge, 10.213.0.1, in which the server runs; its ``Host`` objects are
10.213.0.11 and on. Addresses exist inside these namespaces only. Server and agents speak TLS, each with a certificate.
A host can be cut off (its port at the switch goes down), powered off (every process in it dies at once, and its mounts
with them) and booted again with another boot ID.
Its directory is its disk: it stays.
Needs root. Nothing is left behind when the test's own process closes the Lan; each namespace goes with its processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import io
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from canary_marks import HEADER_SECRET, MARKED
from canary_watch import RECORDING, Watch
from dev_server import MARK, REFERRING, WATCHED, list_marked, wait_until
from guarding import Door
from parting import part
from recording import RECORD

from moorage.cli.main import main

NETWORK = "10.213.0"
SWITCH_ADDRESS = f"{NETWORK}.1"
SERVER_PORT = 4646
ANSWER_S = 20.0
ASKERS = 8
LOG_TAIL_LINES = 40
# Ends what is started when the tests' own process ends, however it ends.
_TIED = ("setpriv", "--pdeathsig", "KILL")
_CLONE_NEWNET = 0x40000000
# The last word of a host's first process; the host is up when it was said.
_BOOT = """
mount --bind "$1" /proc/sys/kernel/random/boot_id && echo "$2" > /proc/sys/kernel/hostname && ip link set lo up &&
echo up && exec sleep 100000
"""


def run(*words: str) -> None:
    """A command of the system's that must succeed."""
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"{' '.join(words)}: {found.stderr.strip()}"


class Job:
    """A program inside a host or at the switch. Its output goes to NAME.out and NAME.log of the host's directory."""

    def __init__(self, enter: Sequence[str], words: Sequence[str], *, name: str, place: Path, forks: bool) -> None:
        self.name = name
        self.out_file = place / f"{name}.out"
        self.log_file = place / f"{name}.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MOORAGE_", "NOMAD_"))}
        environment |= {**REFERRING, RECORD: str(place / f"{name}{RECORDING}")}
        # Of a host's place and of the switch's: the Lan's.
        environment[MARK] = str(next(p for p in (place, *place.parents) if p.name.startswith("lan-")))
        with self.out_file.open("wb") as out, self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*_TIED, *enter, *words], stdin=subprocess.DEVNULL, stdout=out, stderr=log, cwd=place, env=environment
            )
        self.pid = self._process.pid
        if forks:
            self.pid = wait_until(lambda: find_child(self._process.pid), f"{name} started", within_s=10)

    @property
    def is_running(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def wait_ready(self, word: str = "ready") -> None:
        """Return when it has said ``word`` on its standard output."""

        def is_ready() -> bool:
            assert self.is_running, f"{self.name} ended:\n{self.log_file.read_text(errors='replace')[-3000:]}"
            return word.encode() in self.out_file.read_bytes()

        wait_until(is_ready, f"{self.name} is ready")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal and wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"{self.name} did not end within 15 s of signal {number}") from None

    def stop(self) -> None:
        """SIGTERM, and wait for its end."""
        self.kill(signal.SIGTERM)

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """It is stopped, and goes on when the block ends."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            # What brought it into its namespaces stops with it.
            for pid in {self._process.pid, self.pid}:
                os.kill(pid, signal.SIGCONT)

    def wait_gone(self) -> None:
        """Return when it ended by itself."""
        self._process.wait(15)

    def tail(self) -> str:
        """The end of its log."""
        lines = self.log_file.read_text(errors="replace").splitlines() if self.log_file.exists() else []
        return "\n".join(line[:600] for line in lines[-LOG_TAIL_LINES:])


def find_child(pid: int) -> int:
    """The first child of a process, or 0."""
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        # nsenter's child is a copy of nsenter until it has become the program.
        for child in children:
            if Path(f"/proc/{child}/comm").read_text().strip() != "nsenter":
                return int(child)
    return 0


class Host:
    """A host of the Lan. ``number`` counts from 1."""

    def __init__(self, lan: Lan, number: int) -> None:
        self.name = f"n{number}"
        self.address = f"{NETWORK}.{10 + number}"
        self.place = lan.place / self.name
        self.place.mkdir()
        self.jobs: dict[str, Job] = {}
        self._lan = lan
        self._port = f"v{number}"
        self._boot_file = self.place / "boot_id"
        self._first: subprocess.Popen[bytes] | None = None
        self.pid = 0

    # -- power and network -------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Switch it on, with a new boot ID."""
        assert self._first is None, f"{self.name} is on already"
        self._boot_file.write_text(f"{uuid.uuid4()}\n")
        words = [*_TIED, "unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        out = self.place / "boot.out"
        with out.open("wb") as file:
            self._first = subprocess.Popen(
                [*words, "sh", "-c", _BOOT, "sh", str(self._boot_file), self.name],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        wait_until(lambda: b"up" in out.read_bytes(), f"{self.name} is up", within_s=10)
        self.pid = find_child(self._first.pid)
        assert self.pid, out.read_text()
        switch = self._lan.enter_switch
        run(*switch, "ip", "link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        run(*switch, "ip", "link", "set", self._port, "master", "br0", "up")
        run(*self.enter, "ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
        run(*self.enter, "ip", "link", "set", "eth0", "up")

    def power_off(self) -> None:
        """End every process of the host at once; its mounts and its network end with them."""
        assert self._first is not None, f"{self.name} is off already"
        with contextlib.suppress(ProcessLookupError):  # somebody else may have switched it off
            os.kill(self.pid, signal.SIGKILL)
        self._first.wait(10)
        self._first = None
        for job in self.jobs.values():
            job.wait_gone()
        self.jobs.clear()
        wait_until(lambda: not Path(f"/proc/{self.pid}").exists(), "the host's first process is gone", within_s=10)
        # The kernel takes its time to end a network; its cable must not be there when the host is booted again.
        subprocess.run([*self._lan.enter_switch, "ip", "link", "del", self._port], capture_output=True, check=False)
        wait_until(lambda: self._port not in self._lan.list_ports(), "the cable is gone", within_s=10)

    def cut_off(self) -> None:
        """Take its port at the switch down: no packet passes."""
        run(*self._lan.enter_switch, "ip", "link", "set", self._port, "down")

    def join(self) -> None:
        """Bring its port up again."""
        run(*self._lan.enter_switch, "ip", "link", "set", self._port, "up")

    # -- inside ------------------------------------------------------------------------------------------------------

    @property
    def enter(self) -> list[str]:
        """The words that run a command inside."""
        return ["nsenter", "-t", str(self.pid), "--net", "--uts", "--mount", "--pid", "--"]

    def start(self, name: str, words: Sequence[str]) -> Job:
        """Start a program inside."""
        job = Job(self.enter, words, name=name, place=self.place, forks=True)
        self.jobs[name] = job
        return job

    def list_mounts(self, below: Path) -> list[str]:
        """Mount points below a directory, as a process inside sees them."""
        lines = Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()
        return [point for line in lines if (point := line.split()[4]).startswith(f"{below}/")]

    def path(self, inside: Path) -> Path:
        """A path of the host's, as the tests reach it."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def close(self) -> None:
        """Switch it off and show the end of its logs."""
        if self._first is not None:
            self.power_off()
        for file in () if self._lan.is_quiet else sorted(self.place.glob("*.log")):
            lines = file.read_text(errors="replace").splitlines()
            print(f"--- {self.name} {file.name}: the last of {len(lines)} lines")
            print("\n".join(line[:600] for line in lines[-LOG_TAIL_LINES:]))


class Lan:
    """A switch with hosts, below one directory."""

    def __init__(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="lan-", dir="/tmp")).resolve()
        self.hosts: list[Host] = []
        self.is_quiet = False
        self.leaks: list[str] = []
        self.watch = Watch(self.place)
        self.server: Job | None = None
        self.url = f"https://{SWITCH_ADDRESS}:{SERVER_PORT}"
        self.tls = self.place / "tls"
        self.make_certificate("ca")
        self.make_certificate("server", "-host", SWITCH_ADDRESS)
        self.door = Door(url=self.url, ca_file=str(self.tls / "ca.pem"))
        self.door.context = ssl.create_default_context(cafile=self.door.ca_file)
        self._switch = subprocess.Popen(
            [*_TIED, "unshare", "--net", "sh", "-c", "ip link set lo up; exec sleep 100000"], stdin=subprocess.DEVNULL
        )
        own = os.stat("/proc/self/ns/net").st_ino
        wait_until(
            lambda: os.stat(f"/proc/{self._switch.pid}/ns/net").st_ino != own, "the switch is there", within_s=10
        )
        self.enter_switch = ["nsenter", f"--net=/proc/{self._switch.pid}/ns/net", "--"]
        # An address of its own: otherwise it is that of a cable, and changes with it under the hosts.
        run(*self.enter_switch, "ip", "link", "add", "br0", "address", "02:0a:d5:00:00:01", "type", "bridge")
        run(*self.enter_switch, "ip", "addr", "add", f"{SWITCH_ADDRESS}/24", "dev", "br0")
        run(*self.enter_switch, "ip", "link", "set", "br0", "up")
        self._asker = ThreadPoolExecutor(ASKERS, initializer=_enter_network, initargs=(self._switch.pid,))

    def make_certificate(self, *words: str) -> None:
        """`moorage tls WORDS`."""
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(["tls", *words, "-dir", str(self.tls)]) == 0, words

    def add_host(self) -> Host:
        """One more host, switched on; its agent can show who it is."""
        host = Host(self, len(self.hosts) + 1)
        self.make_certificate("agent", host.name)
        self.hosts.append(host)
        host.boot()
        return host

    def list_ports(self) -> list[str]:
        """The names of the cables at the switch."""
        found = subprocess.run([*self.enter_switch, "ip", "-j", "link"], capture_output=True, check=True)
        return [row["ifname"] for row in json.loads(found.stdout)]

    def start_server(self, *options: str) -> None:
        """Start `moorage server` at the switch; its records stay when it was started before."""
        words = [sys.executable, *WATCHED, "server", "--acl", "--bind", f"{SWITCH_ADDRESS}:{SERVER_PORT}"]
        words += ["--data-dir", str(self.place / "server"), "--tls-verify-client", "agents", *options]
        words += ["--tls-cert-file", f"{self.tls}/server.pem", "--tls-key-file", f"{self.tls}/server-key.pem"]
        words += ["--tls-ca-file", f"{self.tls}/ca.pem"]
        self.server = Job(self.enter_switch, words, name="server", place=self.place, forks=False)
        self.server.wait_ready()
        if not self.door.token:
            self.door.token = self.put("/v1/acl/bootstrap")["SecretID"]
            self.watch.counts["guarded fleets"] += 1

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """The status and the JSON, or the text, of an answer of the server."""
        return self._asker.submit(_ask, self.door, method, path, body).result(ANSWER_S + 5)

    def get(self, path: str) -> Any:
        """The JSON of a GET that must succeed."""
        status, answer = self.ask("GET", path)
        assert status == 200, f"GET {path}: {status} {answer}"
        return answer

    def put(self, path: str, body: object = None) -> Any:
        """The JSON of a PUT that must succeed."""
        status, answer = self.ask("PUT", path, body)
        assert status == 200, f"PUT {path}: {status} {answer}"
        return answer

    def run_cli(self, *words: str) -> str:
        """What `moorage WORDS` prints; it must succeed."""
        command = [
            *self.enter_switch,
            sys.executable,
            "-m",
            "moorage",
            *words,
            "--address",
            self.url,
            "--ca-cert",
            f"{self.tls}/ca.pem",
        ]
        environment = os.environ | self.door.variables()
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, env=environment)
        assert found.returncode == 0, f"moorage {' '.join(words)}: {found.stderr}"
        return found.stdout

    def close(self) -> None:
        """Switch everything off, show the logs, search for the volumes' secret, remove the directory."""
        with contextlib.ExitStack() as ends:
            ends.callback(shutil.rmtree, self.place, ignore_errors=True)
            ends.callback(self._search)
            ends.callback(self._switch.wait)
            ends.callback(self._switch.kill)
            ends.callback(self._asker.shutdown)
            ends.callback(self._close_server)
            for host in self.hosts:
                ends.callback(host.close)
            ends.callback(self._part)

    def _part(self) -> None:
        """The last requests, with the programs still running; and a look at their arguments and environments."""
        if self.server is not None and self.server.is_running:
            said = self._asker.submit(part, self.door, self.place).result(60)
            self.watch.counts["parting words"] += said
        self.watch.search_running(list_marked(self.place))

    def _search(self) -> None:
        self.watch.search()
        self.leaks.extend(self.watch.list_leaks())

    def _close_server(self) -> None:
        if self.server is not None:
            with contextlib.suppress(AssertionError):
                self.server.stop()
            if not self.is_quiet:
                print(f"--- server:\n{self.server.tail()}")


@contextlib.contextmanager
def running_lan() -> Iterator[Lan]:
    """A Lan that is closed at the end."""
    lan = Lan()
    try:
        yield lan
    finally:
        lan.close()
    assert not lan.leaks, "secrets are in\n" + "\n".join(lan.leaks)


def _enter_network(pid: int) -> None:
    """Move this thread, for good, into a process's network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/proc/{pid}/ns/net", "rb") as file:
        assert libc.setns(file.fileno(), _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


def _ask(door: Door, method: str, path: str, body: object) -> tuple[int, Any]:
    connection = http.client.HTTPSConnection(SWITCH_ADDRESS, SERVER_PORT, timeout=ANSWER_S, context=door.context)
    headers = {"X-Nomad-Token": door.token} if door.token else {}
    if method != "GET" and path.startswith("/v1/volume"):
        headers["X-Nomad-CSI-Secrets"] = f"marked={MARKED[HEADER_SECRET]}"
    try:
        connection.request(method, path, body=None if body is None else json.dumps(body).encode(), headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        is_json = (answer.getheader("content-type") or "").startswith("application/json")
        return answer.status, json.loads(content) if is_json and content else content.decode("utf-8", "replace")
    finally:
        connection.close()


def now_ns() -> int:
    """The time of day in nanoseconds."""
    return time.time_ns()
