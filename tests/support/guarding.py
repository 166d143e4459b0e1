"""How tests reach a server: as it is, or over TLS and with a token where the fleet is guarded.

Fleets note their servers here by URL; whoever asks (``asking``, commands) looks them up. A guarded server has access
control and TLS on; its bearer is the bootstrap token, and its agents join with a join token.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import shutil
import ssl
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from moorage.cli.main import main
from moorage.client.sync import Client, Endpoint
from moorage.client.tls import Tls


@dataclass(kw_only=True)
class Door:
    """How to ask a server. ``is_marked``: requests to it bear marks that it does not look at."""

    url: str
    is_marked: bool = False
    ca_file: str = ""
    token: str = ""
    context: ssl.SSLContext | None = None

    def variables(self) -> dict[str, str]:
        """What commands need in their environment."""
        found = {"MOORAGE_ADDR": self.url}
        if self.ca_file:
            found["MOORAGE_CACERT"] = self.ca_file
        if self.token:
            found["MOORAGE_TOKEN"] = self.token
        return found

    def client(self) -> Client:
        """A client of it."""
        return Client(Endpoint(address=self.url, token=self.token, tls=Tls(ca_file=self.ca_file)))


_doors: dict[str, Door] = {}


def note_door(door: Door) -> None:
    """From now on the server at this URL is asked so."""
    _doors[door.url] = door


def find_door(url: str) -> Door:
    """How to ask the server at a URL; a stranger is asked plainly."""
    return _doors.get(url) or Door(url=url)


@cache
def _make_set() -> Path:
    place = Path(tempfile.mkdtemp(prefix="moor-tls-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    with contextlib.redirect_stdout(io.StringIO()):
        for word in ("ca", "server"):
            assert main(["tls", word, "-dir", str(place)]) == 0
    return place


def copy_certificates(to: Path) -> Path:
    """A CA and a server's certificate; the same ones for the whole run."""
    shutil.copytree(_make_set(), to)
    return to


def server_variables(tls: Path) -> dict[str, str]:
    """The environment that guards a server: TLS and access control."""
    return {
        "MOORAGE_TLS_CERT_FILE": f"{tls}/server.pem",
        "MOORAGE_TLS_KEY_FILE": f"{tls}/server-key.pem",
        "MOORAGE_ACL_ENABLED": "true",
    }


def open_door(url: str, tls: Path, join_token_file: Path) -> Door:
    """Bootstrap a guarded server: the way to ask it; and a join token for its agents in a file."""
    door = Door(url=url, ca_file=str(tls / "ca.pem"))
    door.context = ssl.create_default_context(cafile=door.ca_file)
    with door.client() as client:
        door.token = client.write("PUT", "/v1/acl/bootstrap").json()["SecretID"]
    with door.client() as client:
        made = client.write("PUT", "/v1/nodes/join-tokens", body={"Uses": 100, "TTL": "1h"}).json()
    join_token_file.write_text(made["Token"])
    join_token_file.chmod(0o600)
    note_door(door)
    return door
