"""Who may be a node: the table of ``rules.identities``, cell by cell."""

from __future__ import annotations

import msgspec
import pytest

from moorage.errors import BadRequest, Forbidden
from moorage.model.identity import Identity, JoinToken, Peer
from moorage.model.ids import NodeId
from moorage.rules import identities as rules

replace = msgspec.structs.replace
NODE = NodeId("11111111-2222-3333-4444-555555555555")
OTHER = NodeId("22222222-2222-3333-4444-555555555555")
SECOND = 1_000_000_000
NOW_NS = 1_700_000_000 * SECOND
TOKEN = rules.make_join_token("t1", "hash", ttl_s=60, uses=1, note="", now_ns=NOW_NS)
CERTIFIED = Peer(has_certificate=True, agents=("host-1",))
EMBEDDED = Peer(is_embedded=True)


def bind(
    known: Identity | None = None,
    secret_hash: str = "mine",
    *,
    peer: Peer | None = None,
    token: JoinToken | None = None,
    is_join_needed: bool = True,
) -> Identity:
    return rules.bind(
        known,
        NODE,
        secret_hash,
        peer=peer or Peer(),
        name="host-1",
        token=token,
        is_join_needed=is_join_needed,
        now_ns=NOW_NS,
    )


BOUND = bind(token=TOKEN)
RESET = rules.reset(BOUND, reason="lost", by="root", now_ns=NOW_NS)


def test_a_credential_lets_a_new_node_in_and_is_on_record() -> None:
    assert (BOUND.secret_hash, BOUND.joined_by, BOUND.join_token_id) == ("mine", "token", "t1")
    assert bind(peer=CERTIFIED).joined_by == "certificate"
    assert bind(peer=EMBEDDED).joined_by == "embedded"
    assert bind(is_join_needed=False).joined_by == "first_use"
    with pytest.raises(Forbidden, match="join-token create") as caught:
        bind()
    assert caught.value.code == "join_refused"
    with pytest.raises(Forbidden):
        bind(peer=Peer(has_certificate=True, agents=("host-2",)))


def test_the_same_secret_joins_again_without_any_credential() -> None:
    assert bind(BOUND) is BOUND


@pytest.mark.parametrize("peer", [Peer(), CERTIFIED, EMBEDDED])
def test_another_secret_never_takes_a_bound_node(peer: Peer) -> None:
    with pytest.raises(Forbidden, match=f"reset-identity {NODE}"):
        bind(BOUND, "another", peer=peer, token=TOKEN, is_join_needed=False)


def test_a_reset_node_takes_a_new_secret_and_never_the_old_one() -> None:
    assert RESET.secret_hash == ""
    assert (RESET.withdrawn[0].reason, RESET.withdrawn[0].by) == ("lost", "root")
    with pytest.raises(Forbidden, match="withdrawn"):
        bind(RESET, "mine", token=TOKEN, is_join_needed=False)
    with pytest.raises(Forbidden):
        bind(RESET, "another")
    again = bind(RESET, "another", token=TOKEN)
    assert (again.secret_hash, again.withdrawn) == ("another", RESET.withdrawn)
    assert rules.reset(RESET, reason="twice", by="", now_ns=NOW_NS) == RESET
    with pytest.raises(BadRequest, match="Reason"):
        rules.reset(BOUND, reason="  ", by="", now_ns=NOW_NS)


def test_no_more_withdrawn_secrets_are_kept_than_the_limit() -> None:
    identity = BOUND
    for number in range(rules.WITHDRAWN_MAX + 5):
        identity = rules.reset(replace(identity, secret_hash=f"s{number}"), reason="r", by="", now_ns=NOW_NS)
    assert len(identity.withdrawn) == rules.WITHDRAWN_MAX
    assert identity.withdrawn[-1].secret_hash == f"s{rules.WITHDRAWN_MAX + 4}"


def check(token: JoinToken | None, node_id: NodeId = NODE, secret_hash: str = "mine", *, after_s: float = 0) -> str:
    try:
        rules.check_join_token(token, node_id, secret_hash, now_ns=NOW_NS + int(after_s * SECOND))
    except Forbidden as error:
        return error.code if "join-token create" in error.message else error.message
    return "counts"


def test_a_join_token_counts_so_often_and_so_long() -> None:
    assert check(TOKEN, after_s=59.9) == "counts"
    assert check(TOKEN, after_s=60) == "join_token_expired"
    assert check(None) == "join_token_unknown"
    used = rules.use_join_token(TOKEN, NODE, "mine", now_ns=NOW_NS)
    assert check(used, OTHER, "other") == "join_token_used"
    assert check(used, OTHER, "mine") == "join_token_used"
    assert check(used, NODE, "other") == "join_token_used"
    assert check(replace(used, uses_max=2), OTHER, "other") == "counts"
    # The node that used it may come again with the same secret: it may not have heard the answer.
    assert check(used, after_s=3600) == "counts"
    assert rules.use_join_token(used, NODE, "mine", now_ns=NOW_NS) is used


@pytest.mark.parametrize(
    ("ttl_s", "uses", "note", "member"),
    [(0, 1, "", "TTL"), (-5, 1, "", "TTL"), (1e9, 1, "", "TTL"), (60, 0, "", "Uses"), (60, 1001, "", "Uses"),
     (60, 1, "x" * 201, "Note")],
)  # fmt: skip
def test_a_bad_wish_names_the_member(ttl_s: float, uses: int, note: str, member: str) -> None:
    with pytest.raises(BadRequest, match=member):
        rules.make_join_token("t", "h", ttl_s=ttl_s, uses=uses, note=note, now_ns=NOW_NS)


def test_a_token_is_stale_a_day_after_its_last_good() -> None:
    used = rules.use_join_token(TOKEN, NODE, "mine", now_ns=NOW_NS + SECOND)
    day_ns = 86400 * SECOND
    assert not rules.is_stale(TOKEN, now_ns=NOW_NS + 60 * SECOND + day_ns)
    assert rules.is_stale(TOKEN, now_ns=NOW_NS + 61 * SECOND + day_ns)
    assert not rules.is_stale(used, now_ns=NOW_NS + 2 * SECOND)
    assert rules.is_stale(used, now_ns=NOW_NS + 61 * SECOND + day_ns)
    assert not rules.is_stale(replace(TOKEN, expires_at_ns=NOW_NS + 9 * day_ns), now_ns=NOW_NS + 8 * day_ns)


@pytest.mark.parametrize("secret", ["", "x", "moorage-node-short", "moorage-node-" + "ä" * 40, "node-" + "a" * 50])
def test_what_could_be_guessed_is_no_secret(secret: str) -> None:
    with pytest.raises(Forbidden):
        rules.check_node_secret(secret)
