"""Drivers found by their sockets: what lies in the plugin directories.

    DIR/NAME.sock        the plugin NAME
    DIR/NAME/csi.sock    the plugin NAME
    DIR/NAME/x.sock      the plugin NAME, if it is the only socket in there

A socket file proves nothing about its driver: one that is left behind by a dead driver is a sick plugin, not a missing
one. Where a name is found twice, the earlier directory and the upper line above win.
Every function blocks: call it in a worker thread.
Never: connects.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator

from moorage.model.ids import PluginId

SUFFIX = ".sock"
CSI_SOCKET = "csi.sock"


def find_sockets(directories: Iterable[str]) -> dict[PluginId, str]:
    """The plugins of the directories with their sockets. A directory that is not there has none."""
    found: dict[PluginId, str] = {}
    for directory in directories:
        names = _list(directory)
        for name in names:
            path = os.path.join(directory, name)
            if name.endswith(SUFFIX) and len(name) > len(SUFFIX) and _is_socket(path):
                found.setdefault(PluginId(name.removesuffix(SUFFIX)), path)
        for name in names:
            for path in _find_inside(os.path.join(directory, name)):
                found.setdefault(PluginId(name), path)
    return found


def _find_inside(directory: str) -> Iterator[str]:
    chosen = os.path.join(directory, CSI_SOCKET)
    if _is_socket(chosen):
        yield chosen
        return
    sockets = [path for name in _list(directory) if _is_socket(path := os.path.join(directory, name))]
    named = [path for path in sockets if path.endswith(SUFFIX)]
    if len(named) == 1:
        yield named[0]


def _list(directory: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if not name.startswith("."))
    except OSError:
        return []


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False
