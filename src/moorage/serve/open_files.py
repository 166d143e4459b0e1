"""How many files and connections this process may have open."""

from __future__ import annotations

import resource

import structlog

log = structlog.get_logger()

# For the store, logs, drivers' pipes, and what libraries open.
RESERVED = 256
# Beyond this the kernel's tables are the limit anyway.
WANTED_MAX = 1 << 20


def raise_open_files() -> int:
    """Raise the number of open files to what the host allows this process; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_MAX if hard == resource.RLIM_INFINITY else min(hard, WANTED_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return WANTED_MAX if soft == resource.RLIM_INFINITY else soft


def bound_connections(connections_max: int, open_files_max: int) -> int:
    """How many connections there may be so that files are left for everything else; says so where that is fewer."""
    possible = max(open_files_max - RESERVED, open_files_max // 2)
    if possible < connections_max:
        log.warning(
            "limits.connections_bounded",
            connections_max=possible,
            wanted=connections_max,
            open_files_max=open_files_max,
            hint="raise the limit of open files (LimitNOFILE=, ulimit -n), or lower limits.connections_max",
        )
    return min(connections_max, possible)
