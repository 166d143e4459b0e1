"""Where a server listens, as text. Agents look at it too, and load nothing of the server for that."""

from __future__ import annotations

import ipaddress

UNIX = "unix://"


def is_local(bind: str) -> bool:
    """Whether nothing but this host can reach what is bound there."""
    if bind.startswith(UNIX):
        return True
    host = bind.rpartition(":")[0].strip("[]") or "127.0.0.1"
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
