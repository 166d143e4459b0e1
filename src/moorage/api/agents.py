"""Handlers of the pages about the server itself: agent, members, leader, health.

One server is all there is, so it leads. Its address is the one that the client used to reach it: ``server members``
compares the leader with each member's address and port, so all of them come from one place here.
Source: contract clients §2, §10; golden around.jsonl.
"""

from __future__ import annotations

import os
import re
import uuid
from typing import Any

from msgspec import Struct

from moorage import __version__
from moorage.api.http import JSON, Answer, Request, encode, json_answer
from moorage.api.params import REGION, check_region
from moorage.engine.service import Service

DATACENTER = "dc1"
PORT = 4646
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?")


class Identity(Struct, frozen=True):
    """The server as members and peers show it. ``host`` is an address or name, without brackets."""

    id: str
    name: str
    host: str
    port: int

    @property
    def address(self) -> str:
        """``host:port`` as Go joins them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def member_name(self) -> str:
        """The name among members."""
        return f"{self.name}.{REGION}"


def identify(request: Request) -> Identity:
    """This server, at the address that the request came to."""
    name = os.uname().nodename
    found = _HOST.fullmatch(request.header("host"))
    host = found[1].strip("[]") if found else "127.0.0.1"
    port = int(found[2]) if found and found[2] else PORT
    return Identity(id=str(uuid.uuid5(uuid.NAMESPACE_DNS, name)), name=name, host=host, port=port)


def _member(server: Identity) -> dict[str, Any]:
    return {
        "Addr": server.host,
        "DelegateCur": 4,
        "DelegateMax": 5,
        "DelegateMin": 2,
        "Name": server.member_name,
        "Port": server.port,
        "ProtocolCur": 2,
        "ProtocolMax": 5,
        "ProtocolMin": 1,
        "Status": "alive",
        "Tags": {
            "bootstrap": "1",
            "build": __version__,
            "dc": DATACENTER,
            "expect": "1",
            "id": server.id,
            "port": str(server.port),
            "raft_vsn": "3",
            "region": REGION,
            "role": "nomad",
            "rpc_addr": server.host,
            "vsn": "1",
        },
    }


async def read_members(service: Service, request: Request) -> Answer:
    """GET /v1/agent/members."""
    server = identify(request)
    body = {
        "Members": [_member(server)],
        "ServerDC": DATACENTER,
        "ServerName": server.name,
        "ServerRegion": REGION,
    }
    return json_answer(request, body)


async def list_servers(service: Service, request: Request) -> Answer:
    """GET /v1/agent/servers."""
    return json_answer(request, [identify(request).address])


async def read_self(service: Service, request: Request) -> Answer:
    """GET /v1/agent/self. No hints: there is no user interface at the paths that the CLI would print."""
    server = identify(request)
    node_id = _find_own_node(service, server.name)
    config = {
        "ACL": {"Enabled": service.acl.is_enabled},
        "Client": {"Enabled": bool(node_id)},
        "Datacenter": DATACENTER,
        "Name": server.name,
        "Region": REGION,
        "Server": {"Enabled": True},
        "UI": {"Enabled": False, "ShowCLIHints": False},
        "Version": {"Version": __version__},
    }
    stats = {
        "nomad": {
            "bootstrap": "true",
            "known_regions": "1",
            "leader": "true",
            "leader_addr": server.address,
            "server": "true",
        },
        "runtime": {"arch": os.uname().machine, "kernel.name": os.uname().sysname.lower(), "version": __version__},
    }
    if node_id:
        count = len(service.reads.list_allocations("*", "", node_id))
        stats["client"] = {"known_servers": server.address, "node_id": node_id, "num_allocations": str(count)}
    return json_answer(request, {"config": config, "member": _member(server), "stats": stats})


def _find_own_node(service: Service, name: str) -> str:
    """The node of this host, by its name, or the only one; empty when it cannot be told."""
    nodes = [r.value for r in service.reads.list_nodes()]
    same = [n for n in nodes if n.name == name]
    chosen = same if len(same) == 1 else nodes
    return chosen[0].id if len(chosen) == 1 else ""


async def read_health(service: Service, request: Request) -> Answer:
    """GET /v1/agent/health: a server that answers is well; the client's part tells whether any agent is ready.

    ``type=server`` or ``type=client`` asks for one part; a client that is not well makes that answer a 500.
    """
    kind = request.query.get("type", "")
    is_client_ok = any(r.value.status == "ready" for r in service.reads.list_nodes())
    parts: dict[str, dict[str, Any]] = {
        "client": {"message": "ok" if is_client_ok else "no agent is ready", "ok": is_client_ok},
        "server": {"message": "ok", "ok": True},
    }
    if kind not in parts:
        return json_answer(request, parts)
    status = 200 if parts[kind]["ok"] else 500
    return Answer(status=status, body=encode({kind: parts[kind]}), content_type=JSON)


async def read_leader(service: Service, request: Request) -> Answer:
    """GET /v1/status/leader."""
    check_region(request.query)
    return json_answer(request, identify(request).address)


async def list_peers(service: Service, request: Request) -> Answer:
    """GET /v1/status/peers."""
    check_region(request.query)
    return json_answer(request, [identify(request).address])


async def list_regions(service: Service, request: Request) -> Answer:
    """GET /v1/regions."""
    return json_answer(request, [REGION])
