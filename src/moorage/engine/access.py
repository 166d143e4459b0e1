"""Who asks: from a secret to a caller and what it may do. Reads only, from memory; waits for nothing.

What was worked out for a token is kept until the token or any policy changes, so that a request costs two look-ups.
Never: writes; logs or keeps a secret.
"""

from __future__ import annotations

import hashlib

import structlog

from moorage.engine.ports import AclSettings, Clock, NodeIdentities
from moorage.errors import BadRequest
from moorage.model.acl import ANONYMOUS, Caller, Token
from moorage.model.policy import PolicyRules
from moorage.rules.authorize import OPEN, Access, Acl, refuse
from moorage.rules.policies import parse_rules
from moorage.rules.tokens import is_expired
from moorage.state import keys
from moorage.state.repo import Repo
from moorage.state.view import Record

log = structlog.get_logger()

KEPT_MAX = 4096


def hash_secret(secret: str) -> str:
    """What a record keeps of a secret. Secrets are random, so that one round of a fast hash hides them."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


class Accesses:
    """Resolves secrets. ``settings``: whether access control is on, and strict."""

    def __init__(self, repo: Repo, clock: Clock, settings: AclSettings, *, identities: NodeIdentities) -> None:
        self.settings = settings
        self._repo = repo
        self._clock = clock
        self._identities = identities
        self._kept: dict[str, tuple[tuple[int, int], Access]] = {}
        self._rules: dict[str, tuple[int, PolicyRules | None]] = {}

    def resolve(self, secret: str) -> Access:
        """What the bearer of a secret may do; empty: the anonymous caller.

        Raises Forbidden for a secret that is unknown, malformed or expired: all alike.
        """
        if not self.settings.enabled:
            return OPEN
        if not secret:
            return self._find(ANONYMOUS, 0, (ANONYMOUS,), Caller())
        node_id = self._identities.find_node(secret)
        if node_id is not None:
            return Access(caller=Caller(kind="node", node_id=node_id))
        return self._resolve_hash(hash_secret(secret))

    def renew(self, access: Access, secret: str) -> Access:
        """The access as it is now; the same object when nothing changed. Raises Forbidden when it is no more."""
        renewed = self.resolve(secret)
        return access if renewed == access else renewed

    def find_token(self, secret: str) -> Record[Token] | None:
        """The token of a secret, unless it has expired."""
        return self._find_live(hash_secret(secret)) if secret else None

    def _find_live(self, secret_hash: str) -> Record[Token] | None:
        found = self._repo.view.acl_tokens.find_by_hash(secret_hash)
        if found is None or is_expired(found.value, now_ns=self._clock.now_ns()):
            return None
        return found

    def _resolve_hash(self, secret_hash: str) -> Access:
        found = self._find_live(secret_hash)
        if found is None:
            raise refuse()
        token = found.value
        caller = Caller(kind=token.kind, accessor_id=token.accessor_id, name=token.name)
        return self._find(token.accessor_id, found.modified, token.policies or (), caller)

    def _find(self, key: str, modified: int, policies: tuple[str, ...], caller: Caller) -> Access:
        """The access kept for a key, made anew when the token or a policy has changed."""
        stamp = (modified, self._repo.view.acl_policies.index)
        kept = self._kept.get(key)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        if len(self._kept) >= KEPT_MAX:
            self._kept.clear()
        access = Access(caller=caller, acl=self._merge(policies, caller), is_strict=self.settings.strict)
        self._kept[key] = (stamp, access)
        return access

    def _merge(self, names: tuple[str, ...], caller: Caller) -> Acl:
        if caller.kind == "management":
            return Acl(is_management=True)
        found = [self._find_rules(name) for name in names]
        # One that cannot be read may have denied something: without it nothing is certain.
        return Acl() if None in found else Acl([rules for rules in found if rules is not None])

    def _find_rules(self, name: str) -> PolicyRules | None:
        """A policy's rules; none for one that is not there; None for one that this version cannot read."""
        record = self._repo.view.acl_policies.find(keys.acl_policy_key(name))
        if record is None:
            return PolicyRules()
        kept = self._rules.get(name)
        if kept is not None and kept[0] == record.modified:
            return kept[1]
        try:
            rules: PolicyRules | None = parse_rules(record.value.rules)
        except BadRequest as error:
            log.error("acl.policy_unreadable", policy=name, error=error.message)
            rules = None
        if len(self._rules) >= KEPT_MAX:
            self._rules.clear()
        self._rules[name] = (record.modified, rules)
        return rules
