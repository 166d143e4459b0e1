"""Recorded exchanges: read them, ask a server the same, and say where its answers differ.

A corpus file is a line a step. ``compare`` is a pure decision over (step, answer) and yields every disagreement it
finds; ``replay`` asks and collects them. What is compared and what is not: tests/conformance/corpus/README.md.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode

from asking import Reply, ask

SERVER = "nomad-2.0"

# Decided by the moment, the host or the storage provider: such a value must be of the recorded kind.
OF_THE_MOMENT = frozenset(
    (
        "CreateIndex",
        "ModifyIndex",
        "Index",
        "CreateTime",
        "ModifyTime",
        "UpdateTime",
        "KnownLeader",
        "LastContact",
        "Hash",
        "Version",
    )
)
OF_THE_HOST = frozenset(("NodeID", "NodeName", "AllocID", "HealthDescription"))
OF_THE_PROVIDER = frozenset(
    (
        "ExternalID",
        "ExternalSourceVolumeID",
        "Provider",
        "ProviderVersion",
        "Context",
        "Topologies",
        "AccessibleTopology",
        "Segments",
        "SourceVolumeID",
        "SnapshotID",
        "CloneID",
        "PublishedExternalNodeIDs",
        "MaxVolumes",
    )
)
MASKED = OF_THE_MOMENT | OF_THE_HOST | OF_THE_PROVIDER

# The answer to a write shows no health in the recording; here it shows the plugin's.
HEALTH = frozenset(
    (
        "ControllerRequired",
        "ControllersExpected",
        "ControllersHealthy",
        "NodesExpected",
        "NodesHealthy",
        "Schedulable",
        "ResourceExhausted",
    )
)
# The newest recorded server leaves these of a new snapshot empty or says them differently per version.
OF_NEW_SNAPSHOT = frozenset(("ID", "Name", "PluginID"))
# What a plugin's answer holds of the workloads that run it is not ours: our drivers are no workloads.
OF_PLUGIN = frozenset(
    (
        "ID",
        "Provider",
        "Version",
        "ControllerRequired",
        "ControllersHealthy",
        "ControllersExpected",
        "NodesHealthy",
        "NodesExpected",
        "CreateIndex",
        "ModifyIndex",
    )
)
# Endpoints around the volumes API, where clients only look at the status.
STATUS_ONLY = frozenset(("around",))

# Go's own words for JSON and filters that it cannot read. Ours say it better, so any wording will do.
_FOREIGN_WORDS = re.compile(
    r"json: |invalid character|unexpected EOF|failed to create result paginator|failed to read result page"
)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_GO_STRUCT = re.compile(r"&\{[^}]*\}")
_PLACE = re.compile(r"\$\{(\w+)\}")
PAGES = frozenset(("next", "extnext"))

Step = Mapping[str, Any]
Variables = dict[str, str]
Asking = Callable[..., Reply]


def read_steps(file: Path) -> list[Step]:
    """The steps of a corpus file, in order."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


# -- comparing: pure -------------------------------------------------------------------------------------------------


def compare(step: Step, reply: Reply, *, scenario: str = "") -> list[str]:
    """Every disagreement between a reply and what the step expects of it."""
    if "instead" in step:
        return list(_compare_instead(step["instead"], reply))
    want = step[SERVER]
    if reply.status != want["status"]:
        return [f"status {reply.status} instead of {want['status']}: {reply.text[:160]!r} for {want['body'][:160]!r}"]
    if scenario in STATUS_ONLY:
        return []
    headers = {name.lower(): value for name, value in want["headers"].items()}
    if 300 <= reply.status < 400:
        location = reply.headers.get("location")
        return [] if location == headers.get("location") else [f"redirects to {location}, not {headers['location']}"]
    if want["status"] == 400 and _FOREIGN_WORDS.match(want["body"]):
        return [] if len(reply.text.strip()) > 8 else ["the refusal does not say what is wrong"]
    return [*_compare_headers(headers, reply), *_compare_bodies(step["request"], want["body"], reply)]


def _compare_instead(instead: Mapping[str, Any], reply: Reply) -> Iterator[str]:
    why = f" ({instead['why']})"
    wanted = instead["status"] if isinstance(instead["status"], list) else [instead["status"]]
    if reply.status not in wanted:
        yield f"status {reply.status} is none of {wanted}{why}: {reply.text[:160]!r}"
    if instead.get("contains", "") not in reply.text:
        yield f"{instead['contains']!r} is not in the answer {reply.text[:160]!r}{why}"
    if "ids" in instead or "count" in instead:
        rows = _parse(reply.text)
        ids = [row.get("ID") for row in rows] if isinstance(rows, list) else None
        if ids is None or ids != instead.get("ids", ids) or len(ids) != instead.get("count", len(ids)):
            yield f"volumes {ids}, expected {instead.get('ids', instead.get('count'))}{why}"


def _compare_headers(want: Mapping[str, str], reply: Reply) -> Iterator[str]:
    if want.get("content-type") != reply.headers.get("content-type") and (reply.body or "content-type" in want):
        yield f"content type {reply.headers.get('content-type')}, not {want.get('content-type')}"
    if "x-nomad-index" in want and not re.fullmatch(r"\d+", reply.headers.get("x-nomad-index", "")):
        yield f"X-Nomad-Index is {reply.headers.get('x-nomad-index')!r}"
    for name in ("x-nomad-knownleader", "x-nomad-lastcontact"):
        if name in want and name not in reply.headers:
            yield f"no {name}"
    if want.get("x-nomad-nexttoken") != reply.headers.get("x-nomad-nexttoken"):
        yield f"next token {reply.headers.get('x-nomad-nexttoken')}, not {want.get('x-nomad-nexttoken')}"


def _compare_bodies(request: Mapping[str, Any], want_text: str, reply: Reply) -> Iterator[str]:
    want, got = _parse(want_text), _parse(reply.text)
    if want is None or got is None:
        if _plain(want_text) != _plain(reply.text):
            yield f"text {_plain(reply.text)[:200]!r}, not {_plain(want_text)[:200]!r}"
        return
    path, method = request["path"], request["method"]
    if "/external" in path or ("/snapshot" in path and method == "GET"):
        yield from _compare_listing(want, got)
        return
    if isinstance(want, dict):
        if "/plugin/" in path and "Allocations" in want:
            want = {name: value for name, value in want.items() if name in OF_PLUGIN}
        if method in ("PUT", "POST"):
            want = _without(want, "Volumes", HEALTH)
        want = _without(want, "Snapshots", OF_NEW_SNAPSHOT)
    yield from _differences(want, got, "")


def _compare_listing(want: Any, got: Any) -> Iterator[str]:
    """What a driver lists: whether there is something, its fields, and a next page where one was recorded.

    How many there are is the storage's matter: the recorded one still had things of scenarios before.
    """
    if _kind(got) != "object":
        yield f"a {_kind(got)} instead of an object"
        return
    for name, rows in want.items():
        found = got.get(name)
        if _kind(found) != _kind(rows):
            yield f".{name} is a {_kind(found)}, not a {_kind(rows)}"
        elif isinstance(rows, list):
            if bool(rows) != bool(found):
                yield f".{name} has {len(found)} entries, not {len(rows)}"
            for position, other in enumerate(found if rows else ()):
                missing = sorted(set(rows[0]) - set(other)) if isinstance(other, dict) else sorted(rows[0])
                if missing:
                    yield f".{name}[{position}] lacks {missing}"
        elif name == "NextToken" and rows and not found:
            yield f".{name} is missing: there is a next page"


def _differences(want: Any, got: Any, where: str) -> Iterator[str]:
    """Each place where JSON values differ. The answer may have more keys than the recording."""
    if isinstance(want, dict) and isinstance(got, dict):
        for name, value in want.items():
            if name not in got:
                yield f"{where}.{name} is missing"
            elif name not in MASKED:
                yield from _differences(value, got[name], f"{where}.{name}")
            elif _kind(value) != _kind(got[name]) and "null" not in (_kind(value), _kind(got[name])):
                yield f"{where}.{name} is a {_kind(got[name])}, not a {_kind(value)}"
    elif isinstance(want, list) and isinstance(got, list):
        if len(want) != len(got):
            yield f"{where or 'the answer'} has {len(got)} entries, not {len(want)}"
        for position, (value, other) in enumerate(zip(want, got, strict=False)):
            yield from _differences(value, other, f"{where}[{position}]")
    elif _kind(want) != _kind(got) or want != got:
        yield f"{where or 'the answer'} is {json.dumps(got)[:120]}, not {json.dumps(want)[:120]}"


def _without(body: Mapping[str, Any], name: str, fields: frozenset[str]) -> dict[str, Any]:
    rows = body.get(name)
    if not isinstance(rows, list):
        return dict(body)
    cut = [{k: v for k, v in row.items() if k not in fields} if isinstance(row, dict) else row for row in rows]
    return {**body, name: cut}


def _plain(text: str) -> str:
    """A text without what a driver wrote itself, identifiers and the layout of its spaces."""
    ours = text.split("rpc error")[0]
    return " ".join(_GO_STRUCT.sub("&{*}", _PLACE.sub("*", _UUID.sub("*", ours))).split())


def _parse(text: str) -> Any:
    """JSON, or None when it is none (no recorded answer is ``null``)."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _kind(value: object) -> str:
    """The JSON kind of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    kinds: dict[type, str] = {int: "number", float: "number", str: "string", list: "list", dict: "object"}
    return kinds[type(value)]


# -- asking ----------------------------------------------------------------------------------------------------------


def replay(url: str, file: Path, *, asking: Asking = ask) -> list[str]:
    """Ask a fresh server every step of a file, in order; the disagreements, each with the step that has it."""
    variables: Variables = {}
    then: Variables = {}
    nodes = asking(url, "GET", "/v1/nodes").json()
    if nodes:
        variables |= {"node": nodes[0]["ID"], "nodename": nodes[0]["Name"]}
    found = []
    for step in read_steps(file):
        request = step["request"]
        method, path, headers = request["method"], make_path(request, variables), request.get("headers")
        named = f"{file.stem} {step['n']} {method} {unquote(path)[:120]}"
        try:
            reply = asking(url, method, path, body=make_body(request, variables), headers=headers)
        except (OSError, http.client.HTTPException) as error:
            found.append(f"{named}: no answer: {error!r}")
            continue
        if _is_beyond(request, variables, then):
            differences = [] if reply.status == 200 else [f"status {reply.status} for a token that was given"]
        else:
            differences = compare(step, reply, scenario=file.stem)
        found += [f"{named}: {difference}" for difference in differences]
        learn(step, reply, variables)
        learn(step, recorded_reply(step), then)
    return found


def recorded_reply(step: Step) -> Reply:
    """The recorded answer of a step."""
    want = step[SERVER]
    headers = {name.lower(): value for name, value in want["headers"].items()}
    return Reply(status=want["status"], headers=headers, body=want["body"].encode())


def _is_beyond(request: Mapping[str, Any], variables: Variables, then: Variables) -> bool:
    """Whether it asks for a page that the recorded server never offered: what was recorded is then no measure."""
    names = {found[1] for found in _PLACE.finditer(request["path"])} & PAGES
    return any(name in variables and name not in then for name in names)


def make_path(request: Mapping[str, Any], variables: Variables) -> str:
    """The path with its query: variables filled in, each percent-encoded."""
    path = _PLACE.sub(lambda found: quote(variables.get(found[1], found[0])), request["path"])
    if request.get("query"):
        path += ("&" if "?" in path else "?") + urlencode(request["query"], quote_via=quote)
    return path


def make_body(request: Mapping[str, Any], variables: Variables) -> bytes | None:
    """The body to send, or None: ``raw`` goes as it is, ``body`` as JSON with variables filled in."""
    if request.get("raw") is not None:
        return str(request["raw"]).encode()
    if request.get("body") is None:
        return None
    return json.dumps(_fill(request["body"], variables)).encode()


def _fill(value: Any, variables: Variables) -> Any:
    if isinstance(value, str):
        return _PLACE.sub(lambda found: variables.get(found[1], found[0]), value)
    if isinstance(value, dict):
        return {name: _fill(inner, variables) for name, inner in value.items()}
    return [_fill(inner, variables) for inner in value] if isinstance(value, list) else value


def learn(step: Step, reply: Reply, variables: Variables) -> None:
    """Keep what later steps refer to: page tokens, external IDs by volume ID, and what the step captures."""
    if "x-nomad-nexttoken" in reply.headers:
        variables["next"] = reply.headers["x-nomad-nexttoken"]
    body = _parse(reply.text)
    if not isinstance(body, dict):
        return
    if body.get("NextToken"):
        variables["extnext"] = str(body["NextToken"])
    if step["request"]["method"] != "GET":
        for volume in body.get("Volumes") or ():
            if volume.get("ID") and volume.get("ExternalID"):
                variables[volume["ID"]] = volume["ExternalID"]
    for name, way in step.get("capture", {}).items():
        value: Any = body
        for part in way:
            inside = isinstance(value, dict) and part in value
            inside = inside or (isinstance(value, list) and isinstance(part, int) and part < len(value))
            value = value[part] if inside else None
        if value is not None:
            variables[name] = str(value)
