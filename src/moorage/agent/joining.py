"""The agent's identity: a secret of its own, chosen once and kept before it is sent anywhere, and the join with it.

A crash between the server's commit and the answer costs nothing: the same secret joins again, and that is harmless.
"""

from __future__ import annotations

import re
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from moorage.agent.journal import write_whole
from moorage.client.api import AgentPages
from moorage.errors import BadRequest, Forbidden
from moorage.model.node import Node
from moorage.rules.identities import NODE_SECRET_PREFIX

log = structlog.get_logger()

SECRET_FILE = "node-secret"
TOKEN_BYTES_MAX = 4096
_SECRET = re.compile(rf"{NODE_SECRET_PREFIX}[A-Za-z0-9_-]{{32,128}}")


def make_secret() -> str:
    """A new node's secret: 256 random bits."""
    return f"{NODE_SECRET_PREFIX}{secrets.token_urlsafe(32)}"


def load_secret(state_dir: Path, *, new_secret: Callable[[], str] = make_secret) -> str:
    """The node's secret, made at the first start; its file is this user's alone. Blocks. Raises BadRequest."""
    path = state_dir / SECRET_FILE
    try:
        text = path.read_text(encoding="utf-8").strip()
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o600)
            log.warning("node.secret_was_readable", path=str(path))
    except FileNotFoundError:
        text = new_secret()
        write_whole(str(path), f"{text}\n".encode())
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"cannot read the node's secret in {path}: {error}") from error
    if not _SECRET.fullmatch(text):
        raise BadRequest(
            f"{path} holds no node's secret: remove the file, then let an operator run `moorage node reset-identity`"
        )
    return text


def read_join_token(path: str) -> str:
    """The join token in a file; empty where there is no file: it may be removed once the node has joined. Blocks.

    Raises BadRequest that names the file.
    """
    if not path:
        return ""
    try:
        with open(path, "rb") as file:
            content = file.read(TOKEN_BYTES_MAX)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise BadRequest(f"agent.join_token_file {path}: {error.strerror}") from error
    return content.decode("utf-8", "replace").strip()


class Joining:
    """Joins whenever the server does not know this node's secret. ``joined``: it was known once since the start."""

    def __init__(self, client: AgentPages, node: Node, find_join_token: Callable[[], str] | None) -> None:
        self._client = client
        self._node = node
        self._find_join_token = find_join_token
        self._refusal = ""
        self.joined = anyio.Event()
        if find_join_token is None:
            self.joined.set()

    async def join(self) -> None:
        """Make the server know the node's secret. Raises Unavailable, Forbidden; a refusal is logged when it is new."""
        if self._find_join_token is None:
            return
        token = await anyio.to_thread.run_sync(self._find_join_token)
        try:
            answer = await self._client.join(self._node.id, self._node.name, token)
        except Forbidden as error:
            if error.message != self._refusal:
                self._refusal = error.message
                log.error("node.join_refused", node=self._node.id, name=self._node.name, error=error.message)
            raise
        self._refusal = ""
        if not self.joined.is_set():
            log.info("node.joined", node=self._node.id, by=answer.joined_by)
        self.joined.set()
