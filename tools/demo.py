"""The tour: ``make demo``. One server of its own, the real commands, real mounts, and nothing left at the end.

    demo.py [WORD...]        WORD...: what the interpreter runs as the server, ``-m moorage`` when nothing is said

Starts ``moorage dev`` with a temporary directory on a free port, shows each command with what it prints and how long
it took, checks what it claims, and ends with ``moorage works``. Exit code 0, or 1 with the reason and the end of the
server's log. As root volumes are bind mounts, for an ordinary user they are links.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from moorage.client.sync import Client, Endpoint
from moorage.errors import MoorageError

READY_WITHIN_S = 30.0
COMMAND_WITHIN_S = 60.0
STOP_WITHIN_S = 10.0
LOG_TAIL_LINES = 40
MIB = 1024 * 1024
SIZE_BEFORE = 16 * MIB
SIZE_AFTER = 32 * MIB
CONTENT = b"what was written before the snapshot\n" * 1000

IS_TERMINAL = sys.stdout.isatty() and "NO_COLOR" not in os.environ


class DemoError(Exception):
    """A step did not do what it says."""


def paint(text: str, code: str) -> str:
    """``text`` in a colour, on a terminal."""
    return f"\x1b[{code}m{text}\x1b[0m" if IS_TERMINAL else text


def say(text: str = "") -> None:
    """A line of the tour."""
    print(text, flush=True)


def check(is_true: object, what: str) -> None:
    """Fail with ``what`` unless it is so."""
    if not is_true:
        raise DemoError(what)


class Tour:
    """The server of this tour, its address, and what the steps share."""

    def __init__(self, root: Path, program: Sequence[str]) -> None:
        self.root = root
        self.program = program
        self.data = root / "data"
        self.log = root / "server.log"
        self.mounts = root / "mnt"
        self.mounts.mkdir()
        self.server: subprocess.Popen[bytes] | None = None
        self.address = ""
        self.plugin = ""
        self.number = 0

    # -- the server ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start ``moorage dev`` and wait for its line ``ready URL``."""
        ready = self.root / "server.out"
        with ready.open("wb") as out, self.log.open("wb") as log:
            self.server = subprocess.Popen(
                [sys.executable, *self.program, "dev", "--bind", "127.0.0.1:0", "--data-dir", str(self.data)],
                stdout=out,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        ends_s = time.monotonic() + READY_WITHIN_S
        while not self.address:
            check(self.server.poll() is None, f"the server ended at once with code {self.server.returncode}")
            check(time.monotonic() < ends_s, f"the server was not ready within {READY_WITHIN_S:.0f} s")
            time.sleep(0.02)
            for line in ready.read_text(errors="replace").splitlines():
                if line.startswith("ready http"):
                    self.address = line.split()[1]
        self.plugin = self.wait_for(self._find_plugin, "a healthy plugin")

    def _find_plugin(self) -> str:
        for plugin in self.get("/v1/plugins", type="csi") or []:
            if plugin["NodesHealthy"] and (plugin["ControllersHealthy"] or not plugin["ControllerRequired"]):
                return str(plugin["ID"])
        return ""

    def stop(self) -> None:
        """SIGTERM, and the server must end cleanly."""
        server, self.server = self.server, None
        if server is None:
            return
        server.terminate()
        try:
            code = server.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired as error:
            self._kill(server)
            raise DemoError(f"the server did not stop within {STOP_WITHIN_S:.0f} s of SIGTERM") from error
        self._kill(server)
        check(code == 0, f"the server ended with code {code} after SIGTERM")

    @staticmethod
    def _kill(server: subprocess.Popen[bytes]) -> None:
        """End what is left of the server's session; it has one of its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()

    def kill(self) -> None:
        """After a failure: end the server, whatever it is doing."""
        if self.server is not None:
            self.server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.server.wait(STOP_WITHIN_S)
            self._kill(self.server)
            self.server = None

    # -- asking it -----------------------------------------------------------------------------------------------

    def get(self, path: str, **query: str) -> Any:
        """GET from the API."""
        with Client(Endpoint(address=self.address)) as client:
            return client.get(path, query).json()

    def wait_for(self, find: Callable[[], str], what: str) -> str:
        """The first non-empty answer of ``find``."""
        ends_s = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < ends_s:
            found = find()
            if found:
                return found
            time.sleep(0.05)
        raise DemoError(f"there was no {what} within {READY_WITHIN_S:.0f} s")

    def run(self, *words: str) -> str:
        """Run a command of the CLI, show it, and return what it printed."""
        shown = " ".join(word.replace(str(self.root), "$DIR") for word in words)
        say(f"   {paint('$ moorage ' + shown, '1')}")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MOORAGE_", "NOMAD_"))}
        environment["MOORAGE_ADDR"] = self.address
        done = subprocess.run(
            [sys.executable, "-m", "moorage", *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_WITHIN_S,
            check=False,
        )
        for line in (done.stdout + done.stderr).replace(str(self.root), "$DIR").splitlines():
            say(f"     {line}")
        check(done.returncode == 0, f"`moorage {shown}` ended with code {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """A numbered step with its time."""
        self.number += 1
        say(paint(f"{self.number:2}. {title}", "36;1"))
        started_s = time.monotonic()
        yield
        say(f"     {paint('ok', '32')} {paint(f'{time.monotonic() - started_s:.2f} s', '2')}")

    def external_ids(self) -> list[str]:
        """What the driver itself lists."""
        listed = self.get("/v1/volumes/external", plugin_id=self.plugin) or {}
        return [str(volume["ExternalID"]) for volume in listed.get("Volumes") or ()]

    def find_traces(self, *ids: str) -> list[str]:
        """Paths below the data directory that bear one of these IDs."""
        return sorted(
            str(path.relative_to(self.data))
            for path in self.data.rglob("*")
            if any(name and name in path.name for name in ids)
        )

    def find_mounts(self) -> list[str]:
        """Mount points below the tour's directory."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line.split()[4] for line in lines if line.split()[4].startswith(str(self.root))]


def describe_mount(tour: Tour, path: Path) -> str:
    """How the volume got to its path; fails when nothing is there."""
    if path.is_symlink():
        return "a link into the driver's directory"
    check(str(path) in tour.find_mounts(), f"{path} is neither a mount nor a link")
    return "a bind mount"


def show_tour(tour: Tour) -> None:
    """All steps, from the first volume to the last check."""
    first, second = tour.mounts / "data", tour.mounts / "restored"
    with tour.step("Create a volume"):
        tour.run("volume", "create", "data", "-plugin", tour.plugin, "-size", "16MiB")
        external = str(tour.get("/v1/volume/csi/data")["ExternalID"])
        check(tour.find_traces(external), "the driver keeps nothing under the volume's external ID")
    with tour.step("List the volumes"):
        check("data" in tour.run("volume", "status"), "the list does not show the volume")
    with tour.step("Mount it and write a file"):
        tour.run("mount", "data", str(first))
        say(f"     $DIR/mnt/data is {describe_mount(tour, first)}")
        (first / "hello").write_bytes(CONTENT)
        (first / "later").write_bytes(b"")
    with tour.step("Make a snapshot, and change the volume afterwards"):
        tour.run("volume", "snapshot", "create", "data", "before")
        (first / "hello").write_bytes(b"overwritten\n")
        snapshots = tour.get("/v1/volumes/snapshot", plugin_id=tour.plugin)["Snapshots"]
        check(len(snapshots) == 1, f"the driver lists {len(snapshots)} snapshots instead of one")
        snapshot = str(snapshots[0]["ID"])
    with tour.step("Restore the snapshot into a second volume and read the file back"):
        tour.run("volume", "create", "restored", "-plugin", tour.plugin, "-size", "16MiB", "-snapshot", snapshot)
        tour.run("mount", "restored", str(second))
        read = (second / "hello").read_bytes()
        check(read == CONTENT, f"the restored file differs: {len(read)} bytes instead of {len(CONTENT)}")
        say(f"     {len(read)} bytes read back, equal to what was written before the snapshot")
    restored = str(tour.get("/v1/volume/csi/restored")["ExternalID"])
    with tour.step("Make the first volume bigger while it is mounted"):
        old = tour.get("/v1/volume/csi/data")["Capacity"]
        tour.run("volume", "create", "data", "-plugin", tour.plugin, "-size", "32MiB")
        new = tour.get("/v1/volume/csi/data")["Capacity"]
        check(old >= SIZE_BEFORE and new >= SIZE_AFTER, f"the capacity went from {old} to {new} bytes")
        say(f"     capacity {old // MIB} MiB → {new // MIB} MiB")
        check((first / "hello").read_bytes() == b"overwritten\n", "the file is not what it was before the expansion")
    with tour.step("Unmount both"):
        tour.run("umount", str(first))
        tour.run("umount", "restored")
        check(not (first / "hello").exists(), "the first volume's file is still visible at its path")
    with tour.step("Delete the snapshot and both volumes"):
        tour.run("volume", "snapshot", "delete", tour.plugin, snapshot)
        tour.run("volume", "delete", "restored")
        tour.run("volume", "delete", "data")
    with tour.step("Nothing is left"):
        check(tour.get("/v1/volumes", type="csi") == [], "the server still lists volumes")
        check(tour.external_ids() == [], f"the driver still lists {tour.external_ids()}")
        listed = tour.get("/v1/volumes/snapshot", plugin_id=tour.plugin)["Snapshots"]
        check(not listed, f"the driver still lists {len(listed)} snapshots")
        traces = tour.find_traces(external, restored, snapshot)
        check(not traces, f"the driver's directory still holds {traces}")
        check(not tour.find_mounts(), f"still mounted: {tour.find_mounts()}")
        say("     no volume at the server, none at the driver, no directory, no mount")


def clean(tour: Tour) -> None:
    """After a failure: unmount and remove what the tour made."""
    tour.kill()
    for path in sorted(tour.find_mounts(), reverse=True):
        subprocess.run(["umount", "-l", path], check=False, capture_output=True)


def main() -> int:
    """Run the tour; the exit code says whether moorage works."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started_s = time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="moorage-demo-")).resolve()
    tour = Tour(root, sys.argv[1:] or ("-m", "moorage"))
    say(f"DIR={root}")
    try:
        with tour.step("Start `moorage dev` on a free port"):
            tour.start()
            who = "root: volumes are bind mounts" if os.geteuid() == 0 else "an ordinary user: volumes are links"
            say(f"     {tour.address}, plugin {tour.plugin}, running as {who}")
        show_tour(tour)
        with tour.step("Stop the server with SIGTERM"):
            tour.stop()
            check(not tour.find_mounts(), f"still mounted: {tour.find_mounts()}")
    except (DemoError, MoorageError, OSError, subprocess.TimeoutExpired, KeyError) as error:
        say(paint(f"failed: {error if not isinstance(error, KeyError) else f'the answer lacks {error}'}", "31;1"))
        tour.kill()
        say("the end of the server's log:")
        for line in tour.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:] if tour.log.exists() else []:
            say(f"   {line}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    finally:
        clean(tour)
        shutil.rmtree(root, ignore_errors=True)
    if root.exists():
        say(paint(f"failed: {root} could not be removed", "31;1"))
        return 1
    say()
    say(paint(f"{tour.number} steps in {time.monotonic() - started_s:.1f} s", "2"))
    say(paint("moorage works", "32;1"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
