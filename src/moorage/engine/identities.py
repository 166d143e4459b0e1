"""Use cases for identities: a node joins and shows who it is; operators make join tokens and reset an identity.

A join is one transaction: the identity and the use of the join token, both at the revisions they were decided on. So a
token lets in as many nodes as it was made for, whatever happens at once, and no crash spends one in vain.
"""

from __future__ import annotations

import msgspec
import structlog

from moorage.engine.access import hash_secret
from moorage.engine.ports import Chance, Clock, EngineSettings
from moorage.engine.retrying import decide_again
from moorage.errors import Forbidden, NotFound
from moorage.model.identity import Identity, JoinedBy, JoinToken, Peer
from moorage.model.ids import NodeId
from moorage.rules import identities as rules
from moorage.state import keys
from moorage.state.repo import Repo, Write
from moorage.state.view import Record

log = structlog.get_logger()

STALE_AT_ONCE = 50


class NewJoinToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token's record and, this once, the token itself."""

    record: JoinToken
    secret: str
    revision: int


class Identities:
    """Who is which node."""

    def __init__(self, repo: Repo, *, clock: Clock, chance: Chance, settings: EngineSettings) -> None:
        self._repo = repo
        self._clock = clock
        self._chance = chance
        self._settings = settings.identity
        # A node may do more than an anonymous caller: with access control on, none is taken for nothing.
        self._is_join_needed = settings.identity.is_join_needed or settings.acl.enabled

    # -- an agent's own pages ----------------------------------------------------------------------------------------

    def find_node(self, secret: str) -> NodeId | None:
        """The node whose secret this is, or None. Found by its hash, so that no time tells anything of a secret."""
        if not secret:
            return None
        found = self._repo.view.identities.find_by_hash(hash_secret(secret))
        return found.value.node_id if found else None

    def find(self, node_id: NodeId) -> Record[Identity] | None:
        """The node's identity on record: while it is the same one, so is what ``check_own`` says of a secret."""
        return self._repo.view.identities.find(keys.identity_key(node_id))

    def check_own(self, node_id: str, secret: str, peer: Peer, *, name: str | None = None) -> None:
        """Whether the caller is the node's own agent. ``name``: as which it registers; None: as it joined.

        Raises Forbidden with what to do.
        """
        found = self._repo.view.identities.find_by_hash(hash_secret(secret)) if secret else None
        if found is None or found.value.node_id != node_id:
            text = f'this is not the token of node "{node_id}", which alone may use its pages: its agent joins first'
            raise Forbidden(text, code="node_not_own", node=node_id)
        self._check_certificate(node_id, found.value.name if name is None else name, peer)

    def _check_certificate(self, node_id: str, name: str, peer: Peer) -> None:
        if not self._settings.is_certificate_needed or peer.is_embedded:
            return
        if not peer.agents:
            text = "agents need a client certificate here: make one with `moorage tls agent` and name it in [agent]"
            raise Forbidden(text, code="certificate_missing", node=node_id)
        if not rules.is_certified(peer, node_id, name):
            text = f'the client certificate is of {", ".join(peer.agents)}, not of node "{node_id}" ({name})'
            raise Forbidden(text, code="certificate_wrong", node=node_id)

    async def join(self, node_id: NodeId, secret: str, *, name: str, join_token: str, peer: Peer) -> JoinedBy:
        """Bind the node's ID to the agent's secret; repeating it is harmless. Returns what let the node in.

        Raises Forbidden with what to do, Unavailable.
        """
        rules.check_node_secret(secret)
        self._check_certificate(node_id, name, peer)
        secret_hash = hash_secret(secret)

        async def decide() -> Identity:
            view = self._repo.view
            found = view.identities.find(keys.identity_key(node_id))
            known = found.value if found else None
            now_ns = self._clock.now_ns()
            token = None
            spent = view.join_tokens.find_by_hash(hash_secret(join_token)) if join_token else None
            # Where another credential will do, a token that is left in the settings neither helps nor hinders.
            is_free = peer.is_embedded or rules.is_certified(peer, node_id, name) or not self._is_join_needed
            if join_token and not is_free and not (known is not None and known.secret_hash):
                token = rules.check_join_token(spent.value if spent else None, node_id, secret_hash, now_ns=now_ns)
            identity = rules.bind(
                known, node_id, secret_hash, peer=peer, name=name, token=token,
                is_join_needed=self._is_join_needed, now_ns=now_ns,
            )  # fmt: skip
            if identity == known:
                return identity
            other = view.identities.find_by_hash(secret_hash)
            if other is not None and other.value.node_id != node_id:
                raise Forbidden("this secret is another node's: each node has its own", code="node_secret_taken")
            write = Write().put(keys.identity_key(node_id), identity, revision=found.modified if found else 0)
            if identity.joined_by == "token" and token is not None and spent is not None:
                used = rules.use_join_token(token, node_id, secret_hash, now_ns=now_ns)
                write.put(keys.join_token_key(token.id), used, revision=spent.modified)
            await self._repo.commit(write)
            log.info("node.joined", node=node_id, name=name, by=identity.joined_by, token=identity.join_token_id)
            return identity

        restless = f'the identity of node "{node_id}" keeps changing; try again'
        return (await decide_again(decide, restless, node=node_id)).joined_by

    # -- operators ---------------------------------------------------------------------------------------------------

    async def reset(self, node_id: str, *, reason: str, by: str) -> int:
        """Take the node's secret away, so that its agent can join anew with another one. Returns the revision.

        Raises NotFound, BadRequest without a reason, Unavailable.
        """
        key = keys.identity_key(NodeId(node_id))

        async def decide() -> int:
            found = self._repo.view.identities.find(key)
            if found is None:
                raise NotFound(f'node "{node_id}" has no identity yet', code="node_missing", node=node_id)
            after = rules.reset(found.value, reason=reason, by=by, now_ns=self._clock.now_ns())
            if after == found.value:
                return found.modified
            return await self._repo.commit(Write().put(key, after, revision=found.modified))

        return await decide_again(decide, f'the identity of node "{node_id}" keeps changing; try again', node=node_id)

    def list_tokens(self) -> list[JoinToken]:
        """Join tokens, the newest first."""
        return sorted((r.value for r in self._repo.view.join_tokens), key=lambda t: (-t.created_at_ns, t.id))

    @property
    def tokens_index(self) -> int:
        """The revision of the last change to any join token."""
        return self._repo.view.join_tokens.index

    async def create_token(self, *, ttl_s: float, uses: int, note: str) -> NewJoinToken:
        """Make a join token; those that have been of no use for a day go away with it. Raises BadRequest."""
        now_ns = self._clock.now_ns()
        secret = rules.JOIN_TOKEN_PREFIX + "".join(self._chance.new_id().replace("-", "") for _ in range(2))
        record = rules.make_join_token(
            self._chance.new_id(), hash_secret(secret), ttl_s=ttl_s, uses=uses, note=note, now_ns=now_ns
        )

        async def decide() -> int:
            write = Write().put(keys.join_token_key(record.id), record, revision=0)
            stale = [r for r in self._repo.view.join_tokens if rules.is_stale(r.value, now_ns=now_ns)]
            for old in stale[:STALE_AT_ONCE]:
                write.delete(keys.join_token_key(old.value.id), revision=old.modified)
            return await self._repo.commit(write)

        revision = await decide_again(decide, "the join tokens keep changing; try again")
        return NewJoinToken(record=record, secret=secret, revision=revision)

    async def delete_token(self, token_id: str) -> int:
        """Make a join token useless; nodes that joined with it stay. Returns the revision. Raises NotFound."""
        key = keys.join_token_key(token_id)

        async def decide() -> int:
            found = self._repo.view.join_tokens.find(key)
            if found is None:
                raise NotFound(f'no such join token "{token_id[:64]}"', code="join_token_missing")
            return await self._repo.commit(Write().delete(key, revision=found.modified))

        return await decide_again(decide, "the join token keeps changing; try again")
