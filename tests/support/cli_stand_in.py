"""A stand-in for the server that the command line asks: it keeps every request, and answers from two dicts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

NODE = {"ID": "6f1c0000-0000-4000-8000-000000000001", "Name": "host1", "Status": "ready", "Address": "127.0.0.1"}


class Server:
    """A stand-in for the API: volumes and allocations in dicts; every request is kept in ``requests``."""

    def __init__(self) -> None:
        self.volumes: dict[str, dict[str, Any]] = {}
        self.allocations: dict[str, dict[str, Any]] = {}
        self.nodes: list[dict[str, Any]] = [NODE]
        self.requests: list[tuple[str, str, dict[str, str], Any, dict[str, str]]] = []
        self.fail: tuple[int, str] | None = None
        self.settle: Callable[[dict[str, Any]], None] = self._run
        self.polls = 0
        self.address = ""

    @staticmethod
    def _run(allocation: dict[str, Any]) -> None:
        stopping = allocation["DesiredStatus"] == "stop"
        allocation["ClientStatus"] = "complete" if stopping else "running"

    def add(self, volume_id: str, **more: Any) -> None:
        """Put a volume in."""
        self.volumes[volume_id] = {
            "ID": volume_id,
            "Name": volume_id,
            "Namespace": "default",
            "PluginID": "local",
            "Schedulable": True,
            "Capacity": 1024,
            "RequestedCapabilities": [{"AccessMode": "single-node-writer", "AttachmentMode": "file-system"}],
            "CurrentReaders": 0,
            "CurrentWriters": 0,
            **more,
        }

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        """Status and body (str is plain text, else JSON) of one request."""
        if self.fail:
            return self.fail
        parts = [unquote(part) for part in path.split("/")[2:]]
        match (method, parts):
            case "GET", ["volumes"]:
                return 200, [v for v in self.volumes.values() if v["ID"].startswith(query.get("prefix", ""))]
            case "GET", ["volume", "csi", volume_id]:
                return (200, self.volumes[volume_id]) if volume_id in self.volumes else (404, "volume not found")
            case "PUT", ["volume", "csi", volume_id, *_]:
                made = body["Volumes"][0]
                kept = self.volumes.get(volume_id, {})
                size = max(kept.get("Capacity", 0), made["RequestedCapacityMin"])
                self.add(volume_id, **{**kept, **made, "Capacity": size, "ExternalID": f"ext-{volume_id}"})
                return 200, {"Volumes": [self.volumes[volume_id]], "Warnings": ""}
            case "DELETE", ["volume", "csi", volume_id, "detach"]:
                return 200, ""
            case "DELETE", ["volume", "csi", volume_id, *_]:
                del self.volumes[volume_id]
                return 200, ""
            case "GET", ["plugins"]:
                known = {"ID": "local", "Provider": "p", "NodesHealthy": 1, "NodesExpected": 1}
                return 200, [known] if "local".startswith(query.get("prefix", "")) else []
            case "GET", ["plugin", "csi", "local"]:
                return 200, {"ID": "local", "Nodes": {NODE["ID"]: {"Healthy": True, "NodeInfo": {}}}}
            case "GET", ["volumes", "snapshot"]:
                return 200, {"Snapshots": [{"ID": "s1", "SizeBytes": 5, "CreateTime": 1, "IsReady": True}]}
            case "PUT", ["volumes", "snapshot"]:
                return 200, {"Snapshots": [{**body["Snapshots"][0], "ID": "s1", "SizeBytes": 2048, "IsReady": True}]}
            case "DELETE", ["volumes", "snapshot"]:
                return 200, ""
            case "GET", ["nodes"]:
                return 200, self.nodes
            case "GET", ["node", _, "allocations"]:
                return 200, list(self.allocations.values())
            case "GET", ["node", _]:
                return 200, NODE
            case _:
                return self._answer_allocation(method, parts, body)

    def _answer_allocation(self, method: str, parts: list[str], body: Any) -> tuple[int, Any]:
        match (method, parts):
            case "GET", ["allocations"]:
                return 200, list(self.allocations.values())
            case "PUT", ["allocations"]:
                made = body["Allocation"]
                mounts = [{"Volume": v["Source"], "Path": v["Target"], "Target": v["Target"]} for v in made["Volumes"]]
                self.allocations[made["ID"]] = {
                    **made,
                    "Mounts": mounts,
                    "DesiredStatus": "run",
                    "ClientStatus": "pending",
                }
                return 200, self.allocations[made["ID"]]
            case "GET", ["allocation", allocation_id]:
                self.polls += 1
                if self.polls % 2 == 0:
                    self.settle(self.allocations[allocation_id])
                return 200, self.allocations[allocation_id]
            case "PUT", ["allocation", allocation_id, "stop"]:
                self.allocations[allocation_id]["DesiredStatus"] = "stop"
                return 200, {"Index": 9}
        return 404, ""


@contextmanager
def running_stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running stand-in, found through MOORAGE_ADDR."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            query = dict(parse_qsl(parts.query, keep_blank_values=True))
            state.requests.append((self.command, parts.path, query, body, dict(self.headers)))
            status, answer = state.answer(self.command, parts.path, query, body)
            data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Nomad-Index", str(len(state.requests)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.address = f"http://127.0.0.1:{listener.server_address[1]}"
    for name in ("NOMAD_ADDR", "NOMAD_TOKEN", "NOMAD_NAMESPACE", "MOORAGE_TOKEN", "MOORAGE_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MOORAGE_ADDR", state.address)
    try:
        yield state
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


def last_write(server: Server) -> tuple[str, str, dict[str, str], Any, dict[str, str]]:
    """The last request that was no read."""
    return [request for request in server.requests if request[0] != "GET"][-1]
