"""Use cases for tokens and policies: bootstrap, write, delete; and the loop that removes expired tokens.

Who may call them is the route table's; here nobody is asked.
"""

from __future__ import annotations

import anyio
import structlog

from moorage.engine.access import Accesses, hash_secret
from moorage.engine.ports import Chance, Clock, ResetIndex
from moorage.engine.retrying import decide_again
from moorage.errors import BadRequest, MoorageError, StateConflict
from moorage.model.acl import BOOTSTRAP_NAME, Bootstrap, Policy, Token
from moorage.rules import policies as policy_rules
from moorage.rules import tokens as token_rules
from moorage.rules.authorize import Access
from moorage.rules.tokens import SentToken, is_expired
from moorage.state import keys
from moorage.state.repo import Repo, Write
from moorage.state.view import Record

log = structlog.get_logger()

LOOK_S = 60.0
REMOVED_AT_ONCE = 100
_SECOND = 1_000_000_000


class AccessControl:
    """Find, write, delete; bootstrap; remove what has expired."""

    def __init__(self, repo: Repo, clock: Clock, chance: Chance, *, accesses: Accesses, reset: ResetIndex) -> None:
        self._repo = repo
        self._clock = clock
        self._chance = chance
        self._accesses = accesses
        self._reset = reset

    @property
    def is_enabled(self) -> bool:
        """Whether access control is on."""
        return self._accesses.settings.enabled

    # -- bootstrap ---------------------------------------------------------------------------------------------------

    async def bootstrap(self, secret: str = "") -> tuple[Record[Token], str]:
        """Make the first management token, with the secret given (a UUID) or a fresh one; returns it with its secret.

        Raises BadRequest when it was done before, unless the operator's reset names the index of that time.
        """
        if secret and not token_rules.is_uuid(secret):
            raise BadRequest("invalid acl token")
        reset_index = await self._reset.read_index()

        async def decide() -> tuple[Record[Token], str]:
            done = self._repo.view.acl_bootstrap.find(keys.ACL_BOOTSTRAP_KEY)
            if done is not None and done.modified != reset_index:
                text = f"ACL bootstrap already done (reset index: {done.modified})"
                raise BadRequest(text, code="acl_bootstrap_done", index=str(done.modified))
            sent = SentToken(name=BOOTSTRAP_NAME, kind="management", is_global=True)
            token, chosen = self._make(sent, secret)
            record = Bootstrap(accessor_id=token.accessor_id, at_ns=self._clock.now_ns())
            write = Write().put(keys.ACL_BOOTSTRAP_KEY, record, revision=done.modified if done else 0)
            write.put(keys.acl_token_key(token.accessor_id), token, revision=0)
            revision = await self._repo.commit(write)
            return Record(token, revision, revision), chosen

        return await decide_again(decide, "the bootstrap is under way elsewhere; try again")

    def _make(self, sent: SentToken, secret: str = "") -> tuple[Token, str]:
        chosen = secret or self._chance.new_id()
        if self._repo.view.acl_tokens.find_by_hash(hash_secret(chosen)) is not None:
            raise BadRequest("invalid acl token")
        token = token_rules.make_token(
            sent, accessor_id=self._chance.new_id(), secret_hash=hash_secret(chosen), now_ns=self._clock.now_ns()
        )
        return token, chosen

    # -- policies ----------------------------------------------------------------------------------------------------

    def find_policy(self, name: str) -> Record[Policy] | None:
        """The policy, or None."""
        return self._repo.view.acl_policies.find(keys.acl_policy_key(name))

    def list_policies(self, prefix: str = "") -> list[Record[Policy]]:
        """Policies by name."""
        found = (r for r in self._repo.view.acl_policies if r.value.name.startswith(prefix))
        return sorted(found, key=lambda r: r.value.name)

    def find_policy_names(self, access: Access) -> tuple[str, ...]:
        """The names of the policies that a caller has, whether they exist or not."""
        if access.caller.kind == "anonymous":
            return ("anonymous",)
        token = self._repo.view.acl_tokens.find(keys.acl_token_key(access.caller.accessor_id))
        return (token.value.policies or ()) if token is not None else ()

    async def put_policy(self, policy: Policy) -> int:
        """Write a policy, new or known; returns the revision. Raises BadRequest, Unavailable."""
        policy_rules.check_policy(policy)
        key = keys.acl_policy_key(policy.name)

        async def decide() -> int:
            found = self.find_policy(policy.name)
            return await self._repo.commit(Write().put(key, policy, revision=found.modified if found else 0))

        return await decide_again(decide, f"policy {policy.name} keeps changing; try again")

    async def delete_policy(self, name: str) -> int:
        """Remove a policy; one that is not there is success. Returns the revision. Raises Unavailable."""

        async def decide() -> int:
            found = self.find_policy(name)
            if found is None:
                return self._repo.view.revision
            return await self._repo.commit(Write().delete(keys.acl_policy_key(name), revision=found.modified))

        return await decide_again(decide, "the policy keeps changing; try again")

    # -- tokens ------------------------------------------------------------------------------------------------------

    def find_token(self, accessor_id: str) -> Record[Token] | None:
        """The token, or None; one that has expired is not there any more."""
        found = self._repo.view.acl_tokens.find(keys.acl_token_key(accessor_id))
        return None if found is None or is_expired(found.value, now_ns=self._clock.now_ns()) else found

    def find_own_token(self, secret: str) -> Record[Token] | None:
        """The token of a secret, or None."""
        return self._accesses.find_token(secret)

    def list_tokens(self, prefix: str = "") -> list[Record[Token]]:
        """Tokens in the order of their creation, by the beginning of their accessor ID."""
        now_ns = self._clock.now_ns()
        found = (
            r
            for r in self._repo.view.acl_tokens
            if r.value.accessor_id.startswith(prefix) and not is_expired(r.value, now_ns=now_ns)
        )
        return sorted(found, key=lambda r: (r.created, r.value.accessor_id))

    async def create_token(self, sent: SentToken) -> tuple[Record[Token], str]:
        """Make a token; returns it with its secret, which nobody can ask for again. Raises BadRequest, Unavailable."""
        token, secret = self._make(sent)
        key = keys.acl_token_key(token.accessor_id)
        revision = await self._repo.commit(Write().put(key, token, revision=0))
        return Record(token, revision, revision), secret

    async def update_token(self, accessor_id: str, sent: SentToken) -> Record[Token]:
        """Change a token; its secret stays. Raises BadRequest, Unavailable."""

        async def decide() -> Record[Token]:
            found = self.find_token(accessor_id)
            if found is None:
                text = f"cannot find token {accessor_id[:64]}"
                raise BadRequest(text, code="token_invalid", accessor=accessor_id[:64])
            changed = token_rules.change_token(found.value, sent)
            key = keys.acl_token_key(accessor_id)
            revision = await self._repo.commit(Write().put(key, changed, revision=found.modified))
            return Record(changed, found.created, revision)

        return await decide_again(decide, "the token keeps changing; try again")

    async def delete_token(self, accessor_id: str) -> int:
        """Remove a token: from the next request on it is unknown. Returns the revision. Raises BadRequest."""

        async def decide() -> int:
            found = self.find_token(accessor_id)
            if found is None:
                text = f"Cannot delete nonexistent tokens: {accessor_id[:64]}"
                raise BadRequest(text, code="token_invalid", accessor=accessor_id[:64])
            return await self._repo.commit(Write().delete(keys.acl_token_key(accessor_id), revision=found.modified))

        return await decide_again(decide, "the token keeps changing; try again")

    # -- expiry ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Remove tokens whose time is up, until cancelled. They are refused from that moment on, removed or not."""
        while True:
            try:
                await self._remove_expired()
            except StateConflict:
                continue
            except MoorageError as error:
                log.warning("acl.expiry_failed", code=error.code, error=error.message)
                await anyio.sleep(LOOK_S)
                continue
            await self._repo.feed.signals.wait((keys.ACL_TOKENS,), lambda change: True, timeout_s=self._find_pause_s())

    async def _remove_expired(self) -> None:
        now_ns = self._clock.now_ns()
        while True:
            due = [r for r in self._repo.view.acl_tokens if is_expired(r.value, now_ns=now_ns)][:REMOVED_AT_ONCE]
            if not due:
                return
            write = Write()
            for record in due:
                write.delete(keys.acl_token_key(record.value.accessor_id), revision=record.modified)
            await self._repo.commit(write)
            log.info("acl.tokens_expired", accessors=[r.value.accessor_id for r in due])

    def _find_pause_s(self) -> float:
        """Seconds until the next token expires, at most LOOK_S: the host's clock may be set meanwhile."""
        expiries = [r.value.expires_at_ns for r in self._repo.view.acl_tokens if r.value.expires_at_ns]
        left_ns = min(expiries, default=0) - self._clock.now_ns() if expiries else LOOK_S * _SECOND
        return min(max(left_ns / _SECOND, 0.0), LOOK_S)
