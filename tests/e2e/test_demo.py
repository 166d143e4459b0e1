"""The tour that README promises, run as a user would; it works, is quick, and leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dev_server import MARK, find_ordinary_identity, find_port, list_marked
from left_behind import find_mounts

DEMO = Path(__file__).parents[2] / "tools" / "demo.py"
WITHIN_S = 55.0  # `make demo` promises a minute


def run_demo(command: list[str], place: Path, **options: object) -> None:
    """Run it with a temporary directory of its own, and look for what it left there and in the process table."""
    environment = options.pop("env", None) or dict(os.environ)
    assert isinstance(environment, dict)
    # Settings of the user's shell must not lead the tour to another server.
    environment |= {"TMPDIR": str(place), MARK: str(place), "MOORAGE_ADDR": f"http://127.0.0.1:{find_port()}"}
    started_s = time.monotonic()
    done = subprocess.run(
        [*command, str(DEMO)],
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    print(done.stdout[-6000:], done.stderr[-3000:], f"{time.monotonic() - started_s:.1f} s")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "moorage works"
    assert done.stderr == ""
    assert "\x1b" not in done.stdout, "colours are for terminals"
    assert list(place.iterdir()) == []
    assert find_mounts(place) == {}
    assert list_marked(place) == []


@pytest.mark.root
@pytest.mark.slow
def test_the_tour_with_bind_mounts(tmp_path: Path) -> None:
    run_demo([sys.executable], tmp_path)


@pytest.mark.slow
def test_the_tour_of_an_ordinary_user(tmp_path: Path) -> None:
    identity = find_ordinary_identity()
    if identity is None:
        pytest.skip("nobody, the ordinary user of root's tests, may not run this installation")
    place = tmp_path
    if identity.user is not None:
        # The directories above tmp_path are root's alone.
        place = Path("/tmp") / f"moor-tour-{os.getpid()}"
        place.mkdir()
        os.chown(place, identity.user, identity.user)
    try:
        run_demo([identity.interpreter], place, **identity.popen_options())
    finally:
        if place != tmp_path:
            place.rmdir()
