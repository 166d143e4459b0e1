"""What a host tells about itself: name, boot, kernel, sizes; and the node ID that is made once.

Every function blocks: call it in a worker thread. Linux only.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import uuid
from collections.abc import Callable
from pathlib import Path

import moorage
from moorage.agent.journal import write_whole
from moorage.errors import BadRequest
from moorage.model.ids import NodeId
from moorage.model.node import Node

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
_MB = 1024 * 1024


def describe_host(state_dir: Path, *, new_id: Callable[[], str] = lambda: str(uuid.uuid4())) -> Node:
    """This host as a node. Raises BadRequest where the state directory's node ID is not a UUID."""
    node_id = load_node_id(state_dir, new_id=new_id)
    name = socket.gethostname()
    memory = _read_memory_bytes()
    disk = shutil.disk_usage(state_dir)
    release = _read_os_release()
    cpus = os.cpu_count() or 1
    mhz = _read_cpu_mhz()
    return Node(
        id=node_id,
        name=name,
        boot_id=BOOT_ID_FILE.read_text().strip(),
        attributes={
            "kernel.name": platform.system().lower(),
            "kernel.version": platform.release(),
            "cpu.arch": platform.machine(),
            "cpu.numcores": str(cpus),
            "os.name": release.get("ID", "linux"),
            "os.version": release.get("VERSION_ID", ""),
            "unique.hostname": name,
            "memory.totalbytes": str(memory),
            "unique.storage.bytestotal": str(disk.total),
            "unique.storage.bytesfree": str(disk.free),
        },
        cpu_mhz=cpus * mhz,
        memory_mb=memory // _MB,
        disk_mb=disk.free // _MB,
        version=moorage.__version__,
    )


def load_node_id(state_dir: Path, *, new_id: Callable[[], str]) -> NodeId:
    """The node ID kept in the state directory, made at the first start."""
    path = state_dir / "node-id"
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        text = new_id()
        write_whole(str(path), f"{text}\n".encode())
    try:
        return NodeId(str(uuid.UUID(text)))
    except ValueError:
        raise BadRequest(f"{path} does not hold a UUID; remove the file to make this host a new node") from None


def _read_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read_cpu_mhz() -> int:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("cpu MHz"):
                return int(float(line.partition(":")[2]))
    except (OSError, ValueError):
        pass
    return 1000


def _read_os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}
