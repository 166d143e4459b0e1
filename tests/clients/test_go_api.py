"""The public Go client of the volumes API, unmodified, against `moorage dev`.

The tests themselves are the Go sources in ``go/``. They are built once against the newest published version of the
client and once against one of the age of Nomad 1.3. Skipped where there is no ``go``, or where it cannot fetch the
modules; a client that does not build, or a test of it that fails, is a failure.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from dev_server import Program, running_fleet

SOURCES = Path(__file__).parent / "go"
DOWNLOAD_S = 120
BUILD_S = 600
RUN_S = 180
# A wrong checksum is no trouble of the network.
TAMPERED = re.compile(r"checksum mismatch|SECURITY ERROR|missing go\.sum entry|updates to go\.(mod|sum) needed")
OUTCOME = re.compile(r"^--- (PASS|FAIL|SKIP): (\w+)", re.MULTILINE)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(DOWNLOAD_S + BUILD_S + RUN_S)]


@pytest.fixture
def server() -> Iterator[Program]:
    """A server of each run's own: the tests count what is there."""
    with running_fleet() as fleet:
        yield fleet.start_dev()


def call_go(*words: str, within_s: float) -> subprocess.CompletedProcess[str]:
    """Run ``go`` among the sources, with nothing of the surroundings that changes what it does there."""
    environment = os.environ | {"GOFLAGS": "", "GOWORK": "off"}
    command = ["go", *words]
    options = {"cwd": SOURCES, "env": environment, "capture_output": True, "text": True, "timeout": within_s}
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False, **options)


def build(target: Path, *, module_file: str, tags: str) -> None:
    """Build the test program. Skips when the modules are not to be had."""
    if shutil.which("go") is None:
        pytest.skip("there is no `go` on this host")
    try:
        fetched = call_go("mod", "download", f"-modfile={module_file}", within_s=DOWNLOAD_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"the modules of {module_file} cannot be fetched within {DOWNLOAD_S} s")
    if fetched.returncode != 0:
        assert not TAMPERED.search(fetched.stderr), fetched.stderr
        pytest.skip(f"the modules of {module_file} cannot be fetched: {' '.join(fetched.stderr.split())[-300:]}")
    words = ["test", "-c", f"-modfile={module_file}", f"-tags={tags}", "-o", str(target), "."]
    built = call_go(*words, within_s=BUILD_S)
    assert built.returncode == 0, f"the client does not build:\n{built.stderr}"


@pytest.mark.parametrize(
    ("module_file", "tags"), [("go.mod", ""), ("nomad13.mod", "nomad13")], ids=["newest", "nomad-1.3"]
)
def test_every_call_of_the_go_client(server: Program, tmp_path: Path, module_file: str, tags: str) -> None:
    """All Go tests that are there pass, and none is left out."""
    program = tmp_path / "clients.test"
    build(program, module_file=module_file, tags=tags)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NOMAD_")}
    environment["MOORAGE_TEST_ADDR"] = server.url
    options = {"cwd": SOURCES, "env": environment, "capture_output": True, "text": True, "timeout": RUN_S}
    listed = subprocess.run([str(program), "-test.list=."], check=True, **options).stdout.split()
    ended = subprocess.run(
        [str(program), "-test.v", f"-test.timeout={RUN_S - 10}s"], stdin=subprocess.DEVNULL, check=False, **options
    )
    outcomes = {name: outcome for outcome, name in OUTCOME.findall(ended.stdout)}
    lines = [line for line in ended.stdout.splitlines() if not line.startswith(("=== RUN", "--- PASS"))]
    assert ended.returncode == 0, "\n".join([*lines, ended.stderr])
    assert outcomes == dict.fromkeys(listed, "PASS")
    assert len(listed) > 15
