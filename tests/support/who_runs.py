"""Who runs the programs of a test: the one who runs the tests, or an ordinary user."""

from __future__ import annotations

import contextlib
import os
import site
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import moorage

NOBODY = 65534


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who runs a program, and by which interpreter. ``user`` None: whoever runs the tests."""

    user: int | None = None
    interpreter: str = sys.executable

    def popen_options(self, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
        """What Popen needs for it."""
        environment = dict(os.environ if environment is None else environment)
        if self.user is None:
            return {"env": environment}
        # Another interpreter does not know the environment that this one runs in.
        paths = [*site.getsitepackages(), str(Path(moorage.__path__[0]).parent)]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        return {"env": environment, "user": self.user, "group": self.user, "extra_groups": []}


def find_ordinary_identity() -> Identity | None:
    """An ordinary user: the one who runs the tests, or, for root, nobody. None when nobody cannot run our programs."""
    if os.geteuid() != 0:
        return Identity()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for interpreter in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        identity = Identity(user=NOBODY, interpreter=interpreter)
        command = [interpreter, "-c", "import moorage.serve.dev, grpc, apsw, uvloop, httptools"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run(command, cwd="/", capture_output=True, check=True, **identity.popen_options())
            return identity
    return None
