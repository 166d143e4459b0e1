"""The tour that README promises, run as a user would; it works, is quick, and leaves nothing.

A judge of orchestrators stands before the tour's driver, and what it finds fails the test.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import anyio
import pytest
from dev_server import IS_JUDGED, JUDGED_PROGRAM, MARK, find_port, list_marked, wait_until
from left_behind import find_mounts
from served_driver import check_log
from who_runs import Identity, find_ordinary_identity

from moorage.csi.client import DriverClient
from moorage.model import steps
from moorage.model.volume import Capability

DEMO = Path(__file__).parents[2] / "tools" / "demo.py"
WITHIN_S = 55.0  # `make demo` promises a minute


@pytest.fixture
def calls() -> Iterator[Path]:
    """A directory for the judge's log, beside that of the tour, which has to be empty in the end."""
    with tempfile.TemporaryDirectory(prefix="moor-calls-", dir="/tmp") as directory:
        yield Path(directory)


def run_demo(place: Path, calls: Path, identity: Identity | None = None) -> None:
    """Run it with a temporary directory of its own, and look for what it left there and in the process table."""
    identity = identity or Identity()
    log = calls / "log"
    options = identity.popen_options()
    # Settings of the user's shell must not lead the tour to another server.
    options["env"] |= {"TMPDIR": str(place), MARK: str(place), "MOORAGE_ADDR": f"http://127.0.0.1:{find_port()}"}
    started_s = time.monotonic()
    done = subprocess.run(
        [identity.interpreter, str(DEMO), *([str(JUDGED_PROGRAM), str(log)] if IS_JUDGED else [])],
        cwd=place,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
        **options,
    )
    print(done.stdout[-6000:], done.stderr[-3000:], f"{time.monotonic() - started_s:.1f} s")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "moorage works"
    assert done.stderr == ""
    assert "\x1b" not in done.stdout, "colours are for terminals"
    assert list(place.iterdir()) == []
    assert find_mounts(place) == {}
    assert list_marked(place) == []
    if IS_JUDGED:
        check_log(log)


@pytest.mark.root
@pytest.mark.slow
def test_the_tour_with_bind_mounts(tmp_path: Path, calls: Path) -> None:
    run_demo(tmp_path, calls)


@pytest.mark.slow
def test_the_tour_of_an_ordinary_user(tmp_path: Path, calls: Path) -> None:
    identity = find_ordinary_identity()
    if identity is None:
        pytest.skip("nobody, the ordinary user of root's tests, may not run this installation")
    place = tmp_path
    if identity.user is not None:
        # The directories above tmp_path are root's alone.
        place = Path("/tmp") / f"moor-tour-{os.getpid()}"
        place.mkdir()
        for made in (place, calls):
            os.chown(made, identity.user, identity.user)
    try:
        run_demo(place, calls, identity)
    finally:
        if place != tmp_path:
            place.rmdir()


@pytest.mark.slow
@pytest.mark.skipif(not IS_JUDGED, reason="judges are left out")
def test_a_breach_during_the_tour_fails_it(calls: Path) -> None:
    """Another caller publishes what was never staged; the driver refuses it, and the tour itself works."""
    place = calls / "tour"
    place.mkdir()

    def find_socket() -> Path | None:
        return next((path for path in place.glob("*/data/run/*.sock") if path.name != "judged.sock"), None)

    async def breach(socket: Path) -> None:
        step = steps.PublishVolume(
            external_id="none",
            target_path=f"{calls}/breach/target",
            staging_path=f"{calls}/breach/staging",
            capability=Capability(access_mode="single-node-writer", attachment_mode="file-system"),
        )
        async with DriverClient(str(socket)) as client:
            assert isinstance(await client.run(step, timeout_s=10), steps.Failed)

    def wait_and_breach() -> None:
        anyio.run(breach, wait_until(find_socket, "the tour's driver is there"))

    caller = Thread(target=wait_and_breach)
    caller.start()
    try:
        with pytest.raises(AssertionError, match="publish_without_stage: NodePublishVolume 'none'"):
            run_demo(place, calls)
    finally:
        caller.join()
