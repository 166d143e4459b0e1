"""Recorded answers of a server with access control on: ask a server the same, as the same callers, and compare.

``corpus/acl.json``: ``policies`` by name with their rules; ``answers``, 20 callers on 31 routes; ``acl``, what the
pages of access control themselves say. ``compare`` is a pure decision over (row, answer).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from asking import Reply, ask

Row = Mapping[str, Any]

DENIED = "Permission denied"
# Callers that may list in every namespace, and those that may write volumes somewhere.
EVERYWHERE = frozenset(("management", "bearer-management", "glob"))
WRITERS = frozenset(("write", "ns-write", "all")) | EVERYWHERE
# Decided by the moment: such a member must be there and of the recorded kind.
OF_THE_MOMENT = frozenset(
    ("AccessorID", "SecretID", "CreateIndex", "ModifyIndex", "CreateTime", "ExpirationTime", "Topologies", "ExternalID")
)
# What a list of policies or tokens shows is what the rows before it made.
SELF = "/v1/acl/token/self"
CAPABILITY = {"AccessMode": "single-node-writer", "AttachmentMode": "file-system"}


def read_rows(file: Path) -> dict[str, Any]:
    """The corpus."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def prepare(url: str, secret: str, corpus: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Make the policies, tokens, namespace and volumes of the recording; returns each caller's headers."""
    management = {"X-Nomad-Token": secret}

    def must(method: str, path: str, body: object) -> Reply:
        reply = ask(url, method, path, body=body, headers=management)
        assert reply.status == 200, f"{method} {path}: {reply.status} {reply.text[:300]}"
        return reply

    callers = {
        "management": management,
        "bearer-management": {"Authorization": f"Bearer {secret}"},
        "anonymous": {},
        "unknown": {"X-Nomad-Token": "00000000-0000-0000-0000-000000000000"},
        "malformed": {"X-Nomad-Token": "nonsense"},
    }
    for name, rules in corpus["policies"].items():
        must("PUT", f"/v1/acl/policy/{name}", {"Name": name, "Description": name, "Rules": rules})
    must("PUT", "/v1/namespace/other", {"Name": "other"})
    for name in corpus["policies"]:
        made = must("PUT", "/v1/acl/token", {"Name": name, "Type": "client", "Policies": [name]}).json()
        callers[name] = {"X-Nomad-Token": made["SecretID"]}
    for volume_id, namespace in (("a1", "default"), ("o1", "other")):
        volume = {
            "ID": volume_id,
            "Name": volume_id,
            "Namespace": namespace,
            "PluginID": "hostpath",
            "RequestedCapacityMin": 10 << 20,
            "RequestedCapabilities": [CAPABILITY],
        }
        must("PUT", f"/v1/volume/csi/{volume_id}/create", {"Volumes": [volume]})
    return callers


def replay(url: str, corpus: Mapping[str, Any], callers: Mapping[str, Mapping[str, str]], *, strict: bool) -> list[str]:
    """Every disagreement, as a line that names the row."""
    found = []
    for group in ("answers", "acl"):
        for row in corpus[group]:
            request = row["request"]
            reply = ask(url, request["method"], request["path"], body=request["body"], headers=callers[row["as"]])
            for what in compare(group, row, reply, strict=strict):
                found.append(f"{group} {row['as']}: {request['method']} {request['path']}: {what}")
    return found


# -- comparing: pure -------------------------------------------------------------------------------------------------


def compare(group: str, row: Row, reply: Reply, *, strict: bool) -> list[str]:
    """Every disagreement between a reply and what its row makes us expect."""
    request, want = row["request"], row["response"]
    statuses, size = expect(row, strict=strict)
    if reply.status not in statuses:
        return [f"status {reply.status}, none of {sorted(statuses)}: {reply.text[:120]!r} for {want['body'][:120]!r}"]
    if reply.status == 403:
        return [] if reply.text == DENIED else [f"says {reply.text[:120]!r}"]
    if size is not None and count(reply.text) != size:
        return [f"{count(reply.text)} entries, not {size}"]
    if reply.status != want["status"]:
        return []
    if group == "acl":
        return list(_compare_pages(request["path"], want, reply))
    if want["status"] != 200 and request["method"] == "GET" and reply.text != want["body"]:
        return [f"says {reply.text[:120]!r}, not {want['body'][:120]!r}"]
    return []


def count(text: str) -> int | None:
    """How many entries a JSON list has; None for anything else."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return len(found) if isinstance(found, list) else None


def expect(row: Row, *, strict: bool) -> tuple[set[int], int | None]:
    """The statuses that will do, and how many entries a list has (None: it is not looked at).

    Each branch is a difference on purpose, with its row in docs/compatibility.md.
    """
    who, request, want = row["as"], row["request"], row["response"]
    method, path, status = request["method"], request["path"], want["status"]
    size = count(want["body"]) if status == 200 else None
    if who == "malformed" and status == 500:
        return {403}, None
    if path == "/v1/metrics":
        return ({200}, None) if "management" in who else ({403}, None)
    if who == "anonymous" and status == 200 and path.startswith(("/v1/acl/policies", "/v1/namespaces")):
        return {403}, None
    if "namespace=*" in path and status == 200:
        return {200}, 2 if who in EVERYWHERE else 1
    if not strict and who in WRITERS and status == 403:
        if path.startswith("/v1/volumes/external"):
            return {200}, None
        if method in ("PUT", "DELETE") and path.startswith("/v1/volume"):
            # The documented page asks for csi-write-volume alone. What then comes is not the recorded refusal.
            return {200, 500}, None
    return {status}, size


def _compare_pages(path: str, want: Mapping[str, Any], reply: Reply) -> Iterator[str]:
    """The pages of access control, whole: members, values, and the headers that a client looks for."""
    if "X-Nomad-Index" in want["headers"] and reply.index < 1:
        yield "no index"
    if want["status"] != 200:
        if _is_own_wording(want["body"]):
            if not reply.text.startswith(want["body"][: len("policy 0 invalid: 1 error occurred:\n\t* failed to pa")]):
                yield f"says {reply.text[:160]!r}, not {want['body'][:160]!r}"
        elif _without_index(reply.text) != _without_index(want["body"]):
            yield f"says {reply.text[:160]!r}, not {want['body'][:160]!r}"
        return
    if not want["body"]:
        if reply.body:
            yield f"has a body: {reply.text[:80]!r}"
        return
    if not path.startswith("/v1/volumes"):
        yield from _compare_values(path, json.loads(want["body"]), reply.json())


def _is_own_wording(text: str) -> bool:
    """What is wrong with rules is said in words of ours, after the recorded beginning."""
    return "failed to parse rules" in text


def _without_index(text: str) -> str:
    return text.partition("(reset index")[0]


def _compare_values(where: str, want: Any, got: Any) -> Iterator[str]:
    if isinstance(want, dict) and isinstance(got, dict):
        for name, value in want.items():
            if name not in got:
                yield f"{where}.{name} is missing"
            elif name in OF_THE_MOMENT:
                if type(value) is not type(got[name]):
                    yield f"{where}.{name} is {got[name]!r}, recorded {value!r}"
            else:
                yield from _compare_values(f"{where}.{name}", value, got[name])
    elif isinstance(want, list) and isinstance(got, list):
        if len(want) != len(got):
            yield f"{where} has {len(got)} entries, not {len(want)}"
        for position, (value, other) in enumerate(zip(want, got, strict=False)):
            yield from _compare_values(f"{where}[{position}]", value, other)
    elif want != got:
        yield f"{where} is {got!r}, recorded {want!r}"
