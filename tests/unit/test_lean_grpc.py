"""How gRPC waits for sockets is chosen before it is imported, for this process only."""

from __future__ import annotations

import os
import subprocess
import sys

from moorage.lean_grpc import LEAN, NAME

SHOW = f"import os, moorage.rpc, moorage.csi.local.server; print(os.environ.get({NAME!r}))"


def run(**more: str) -> tuple[str, str]:
    """What a fresh process shows, and what it says on stderr."""
    environment = {name: value for name, value in os.environ.items() if name != NAME} | more
    done = subprocess.run(
        [sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout.strip(), done.stderr


def test_the_names_are_ones_that_grpc_knows_and_no_child_inherits_them() -> None:
    """A later gRPC that drops them fails here: then measure whether they are still needed."""
    assert run() == ("None", "")


def test_a_users_own_choice_stands() -> None:
    shown, said = run(**{NAME: "no_such_name"})
    assert shown == "no_such_name"
    # This also shows that gRPC reads it when it is imported.
    assert "Unknown experiment: no_such_name" in said
    assert LEAN.partition(",")[0][1:] not in said
