"""The agent's side of its identity: the secret is kept before it is sent; whatever is lost, the same join repeats."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

import pytest
import structlog
from engine_kit import NODE
from identity_kit import bare

from moorage.agent import joining
from moorage.agent.joining import Joining, load_secret, read_join_token
from moorage.api.http import Request
from moorage.client.api import Client
from moorage.client.transport import Answer, CallTransport
from moorage.errors import BadRequest, Forbidden, Unavailable
from moorage.model.node import Node

pytestmark = pytest.mark.anyio
THIS = Node(id=NODE, name="n1", boot_id="b1")


def test_the_secret_is_made_once_and_is_this_users_alone(tmp_path: Path) -> None:
    secret = load_secret(tmp_path)
    file = tmp_path / joining.SECRET_FILE
    assert file.read_text() == f"{secret}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_secret(tmp_path) == secret
    assert load_secret(tmp_path, new_secret=lambda: "never") == secret
    file.chmod(0o644)
    assert load_secret(tmp_path) == secret
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert joining.make_secret() != joining.make_secret()


@pytest.mark.parametrize("content", [b"", b"hunter2", b"\xff\xfe", b"moorage-node-short"])
def test_a_damaged_secret_is_named_and_not_shown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / joining.SECRET_FILE).write_bytes(content)
    with pytest.raises(BadRequest, match=joining.SECRET_FILE) as caught:
        load_secret(tmp_path)
    assert "hunter2" not in caught.value.message


def test_a_join_token_may_be_gone(tmp_path: Path) -> None:
    file = tmp_path / "token"
    assert read_join_token("") == read_join_token(str(file)) == ""
    file.write_text("moorage-join-x\n")
    assert read_join_token(str(file)) == "moorage-join-x"
    with pytest.raises(BadRequest, match="join_token_file"):
        read_join_token(str(tmp_path))


async def test_an_agent_that_died_before_it_heard_joins_again_with_the_same_token(tmp_path: Path) -> None:
    async with bare(is_join_needed=True) as kit:
        token = await kit.make_token()
        file = tmp_path / "token"
        file.write_text(token)

        def start(is_losing: bool) -> Joining:
            secret = load_secret(tmp_path)

            async def carry(method: str, path: str, query: Mapping[str, str], body: bytes | None) -> Answer:
                parts = tuple(path.split("/")[1:])
                headers = {"x-nomad-token": secret}
                request = Request(method=method, path=path, parts=parts, headers=headers, body=body or b"")
                answer = await kit.app.answer(request)
                if is_losing:
                    raise Unavailable("the answer is lost")
                return Answer(answer.status, {}, answer.body)

            return Joining(Client(CallTransport(carry)), THIS, lambda: read_join_token(str(file)))

        with pytest.raises(Unavailable):
            await start(True).join()
        first = kit.service.identities.find_node(load_secret(tmp_path))
        assert first == NODE, "the server has committed"
        again = start(False)
        await again.join()
        assert again.joined.is_set()
        file.unlink()
        await start(False).join()
        # The secret lost, an operator's word and a new token are needed.
        (tmp_path / joining.SECRET_FILE).unlink()
        file.write_text(await kit.make_token())
        with structlog.testing.capture_logs() as logs:
            stranger = start(False)
            for _ in range(2):
                with pytest.raises(Forbidden, match="reset-identity"):
                    await stranger.join()
        assert [log["event"] for log in logs] == ["node.join_refused"], "told once"
        await kit.service.identities.reset(NODE, reason="lost", by="")
        await start(False).join()
        assert kit.service.identities.find_node(load_secret(tmp_path)) == NODE
