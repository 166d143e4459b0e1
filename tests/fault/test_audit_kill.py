"""A program that is killed while it writes its audit log leaves a chain that the next start continues."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from moorage.rules.audit import Head, follow
from moorage.serve.audit_writer import list_files, read_lines

WRITE = """
import sys, time
from pathlib import Path
from moorage.model.audit import AuditEntry, Who
from moorage.serve.audit_writer import AuditFileSettings, AuditWriter
writer = AuditWriter(Path(sys.argv[1]), AuditFileSettings(rotate_bytes=200_000, keep=1000, queue_max=100))
number = 0
print("ready", flush=True)
while True:
    entry = AuditEntry(at_ns=time.time_ns(), request_id=str(number), who=Who(), method="PUT", path="/" + "x" * 300,
                       route="/x", namespace="", result="done", status=200)
    if writer._put(entry):
        number += 1
"""
KILLS = 8


def test_killed_at_any_moment_the_chain_goes_on(tmp_path: Path) -> None:
    path, seq = tmp_path / "audit.log", 0
    chance = random.Random(4)
    for _ in range(KILLS):
        with subprocess.Popen([sys.executable, "-c", WRITE, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0.0, 0.3))
            process.kill()
        lines = [line for _, line in read_lines(list_files(path))]
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        heads = list(follow(lines, Head()))
        assert not heads or isinstance(heads[-1], Head), heads[-1]
        assert not heads or heads[-1].seq >= seq
        seq = heads[-1].seq if heads else 0
    assert seq > KILLS
    with subprocess.Popen([sys.executable, "-c", WRITE, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3)
        process.terminate()
    lines = [line for _, line in read_lines(list_files(path))]
    # Whatever was torn before, the chain is whole but for what this last kill may have torn.
    assert len(list(follow([line for line in lines if line.endswith(b"\n")], Head()))) >= seq
