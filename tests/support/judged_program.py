"""`moorage WORDS…` whose embedded driver stands behind a judge: ``python judged_program.py LOG WORDS…``.

The program is the real one; only the command of the embedded driver is another one: the judge, which runs the driver.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
from recording import find_path, install

from moorage.__main__ import main
from moorage.serve import node
from moorage.serve.drivers import SupervisedDriver

embed_driver = node.embed_driver


def embed_judged_driver(name: str, *, socket: Path, data_dir: Path, node_id: str) -> SupervisedDriver:
    """The judge at the driver's socket, and behind it the embedded driver at another one."""
    behind = socket.with_name("judged.sock")
    driver = embed_driver(name, socket=behind, data_dir=data_dir, node_id=node_id)
    command = [word if word != str(os.getpid()) else "{pid}" for word in driver.command]
    judge = [sys.executable, "-m", "moorage.testing.driver_judge", "--listen", f"unix://{socket}"]
    judge += ["--driver", f"unix://{behind}", "--log", LOG, "--die-with-parent", str(os.getpid()), "--run", *command]
    # Logged: what the judge prints is not for those who wait for the word of the program itself.
    return msgspec.structs.replace(driver, command=tuple(judge), socket=socket, is_logged=True)


if __name__ == "__main__":
    LOG = sys.argv.pop(1)
    node.embed_driver = embed_judged_driver
    if find_path():
        install(find_path())
    main()
