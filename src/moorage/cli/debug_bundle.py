"""The bundle for finding faults: pages of the API as they were answered, and a manifest, in a tar.gz.

Only what the API shows is in it, and the API shows no secret; what is sensitive all the same in a text of a page is
covered once more here. Never: reads a file of the host.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moorage import __version__
from moorage.client.sync import Client, path_of
from moorage.errors import MoorageError

DETAILS_MAX = 500
TEXT_BYTES_MAX = 32 << 20
FIXED: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("server/agent-self.json", "/v1/agent/self", {}),
    ("server/health.json", "/v1/agent/health", {}),
    ("server/settings.json", "/v1/operator/settings", {}),
    ("server/log.json", "/v1/operator/log", {}),
    ("server/calls.json", "/v1/operator/calls", {}),
    ("server/sealing.json", "/v1/operator/secrets", {}),
    ("server/metrics.txt", "/v1/metrics", {"format": "prometheus"}),
    ("records/volumes.json", "/v1/volumes", {"type": "csi", "namespace": "*"}),
    ("records/plugins.json", "/v1/plugins", {"type": "csi"}),
    ("records/nodes.json", "/v1/nodes", {}),
    ("records/allocations.json", "/v1/allocations", {"namespace": "*"}),
    ("records/namespaces.json", "/v1/namespaces", {}),
)
_SENSITIVE = re.compile(rb'("[^"]*(?:SecretID|password|passwd|X-Nomad-Token)[^"]*"\s*:\s*)"[^"]+"', re.IGNORECASE)


@dataclass(kw_only=True)
class Page:
    """One page: its place in the bundle, where it came from, and the answer or why there is none."""

    name: str
    path: str
    body: bytes = b""
    error: str = ""


@dataclass(kw_only=True)
class Bundle:
    """All pages."""

    address: str
    pages: list[Page] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def gather(client: Client) -> Bundle:
    """Ask for every page; one that is refused is kept with its reason."""
    bundle = Bundle(address=client.endpoint.address)
    for name, path, query in FIXED:
        bundle.pages.append(_ask(client, name, path, query))
    for row in _rows(bundle, "records/volumes.json"):
        query = {"namespace": str(row.get("Namespace", ""))}
        stem = f"{row.get('Namespace')}/{row.get('ID')}"
        path = path_of("volume", "csi", str(row.get("ID")))
        bundle.pages.append(_ask(client, f"volumes/{_clean(stem)}.json", path, query))
        bundle.pages.append(_ask(client, f"volumes/{_clean(stem)}.why.json", f"{path}/why", query))
    for row in _rows(bundle, "records/plugins.json"):
        path = path_of("plugin", "csi", str(row.get("ID")))
        bundle.pages.append(_ask(client, f"plugins/{_clean(str(row.get('ID')))}.json", path, {}))
    for kind in ("node", "allocation"):
        for row in _rows(bundle, f"records/{kind}s.json"):
            path = path_of(kind, str(row.get("ID")))
            name = f"{kind}s/{_clean(str(row.get('ID')))}"
            bundle.pages.append(_ask(client, f"{name}.json", path, {}))
            bundle.pages.append(_ask(client, f"{name}.why.json", f"{path}/why", {}))
    return bundle


def _ask(client: Client, name: str, path: str, query: dict[str, str]) -> Page:
    try:
        answer = client.get(path, query)
    except MoorageError as error:
        return Page(name=name, path=path, error=error.message)
    return Page(name=name, path=path, body=_SENSITIVE.sub(rb'\1"[REDACTED]"', answer.body[:TEXT_BYTES_MAX]))


def _rows(bundle: Bundle, name: str) -> list[dict[str, Any]]:
    page = next(page for page in bundle.pages if page.name == name)
    try:
        found = json.loads(page.body) if page.body else []
    except ValueError:
        return []
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    if len(rows) > DETAILS_MAX:
        bundle.notes.append(f"{name}: details of the first {DETAILS_MAX} of {len(rows)} only")
    return rows[:DETAILS_MAX]


def _clean(text: str) -> str:
    """A file name of an ID: no way out of the bundle."""
    return re.sub(r"[^A-Za-z0-9._/-]|(?<![^/])\.+(?=/|$)", "_", text).strip("/") or "_"


def write_bundle(path: Path, bundle: Bundle, stamp: str) -> None:
    """Write the bundle, for its owner only. Raises OSError."""
    manifest = {
        "Made": stamp,
        "Address": bundle.address,
        "Client": f"moorage {__version__}",
        "Python": platform.python_version(),
        "Platform": f"{sys.platform} {platform.release()} {platform.machine()}",
        "Notes": bundle.notes,
        "Pages": [{"Name": p.name, "Path": p.path, "Bytes": len(p.body), "Error": p.error} for p in bundle.pages],
    }
    root = f"moorage-debug-{stamp}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        _add(archive, f"{root}/manifest.json", json.dumps(manifest, indent=2).encode())
        for page in bundle.pages:
            if not page.error:
                _add(archive, f"{root}/{page.name}", page.body)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    entry.mode = 0o600
    entry.mtime = int(time.time())
    archive.addfile(entry, io.BytesIO(content))
