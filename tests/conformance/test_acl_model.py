"""10,000 random (token, route, namespace) triples: what the server says agrees with a naive model of its own.

A "yes" of the model is any answer but 403; a "no" is 403; "hidden" is the answer that what is not there gets.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from acl_kit import AclKit, running_acl
from acl_model import EXPECTED, FREE, Rules, Who, judge
from app_asking import a_body
from engine_kit import NODE

from moorage.api.routes import ROUTES
from moorage.model.identity import Peer

pytestmark = pytest.mark.anyio

TRIPLES = 5000
POLICIES = 40
TOKENS = 80
NAMESPACES = ("default", "dev", "other", "nowhere", "*")
ALLOCATION = "00000000-0000-4000-8000-00000000000a"
UUID = "11111111-2222-4333-8444-555555555555"
PATTERNS = ("default", "dev", "other", "*", "d*", "de*", "*e*", "oth*", "now*")
CAPABILITIES = (
    "csi-list-volume",
    "csi-read-volume",
    "csi-mount-volume",
    "csi-write-volume",
    "list-jobs",
    "read-job",
    "alloc-lifecycle",
    "submit-job",
    "deny",
)
LEVELS = ("", "", "", "read", "write", "deny")
ROWS = [(method, route.pattern) for route in ROUTES for method in route.handlers]


def test_the_model_knows_every_row() -> None:
    rows = {("PUT" if method == "POST" else method, pattern) for method, pattern in ROWS}
    assert rows - EXPECTED.keys() == set(), "a new row of the route table needs its line in tests/support/acl_model.py"
    assert {pattern for _, pattern in rows} >= FREE


def make_rules(chance: random.Random) -> Rules:
    namespaces = []
    for pattern in chance.sample(PATTERNS, chance.randrange(4)):
        level = chance.choice(("", "", "deny", "read", "write", "scale"))
        capabilities = tuple(chance.sample(CAPABILITIES[:-1], chance.randrange(3)))
        namespaces.append((pattern, level, capabilities if chance.random() < 0.9 else ("deny",)))
    return Rules(
        namespaces=tuple(namespaces),
        plugin=chance.choice((*LEVELS, "list")),
        node=chance.choice(LEVELS),
        agent=chance.choice(LEVELS),
        operator=chance.choice(LEVELS),
    )


async def make_callers(acl: AclKit, chance: random.Random, *, strict: bool) -> list[tuple[str, Who]]:
    """Secrets with who bears them."""
    rules = [make_rules(chance) for _ in range(POLICIES)]
    for number, one in enumerate(rules):
        await acl.apply(f"p{number}", one.text())
    anonymous = Rules(namespaces=(("other", "", ("csi-list-volume",)),))
    await acl.apply("anonymous", anonymous.text())
    node = f"moorage-node-{NODE}"
    await acl.kit.service.identities.join(NODE, node, name="n1", join_token="", peer=Peer(is_embedded=True))
    callers = [
        (acl.management, Who("management", strict=strict)),
        (node, Who("node", strict=strict)),
        ("", Who("anonymous", (anonymous,), strict=strict)),
        (UUID, Who("bad")),
    ]
    for _ in range(TOKENS):
        chosen = chance.sample(range(POLICIES), chance.choice((1, 1, 1, 2, 3)))
        made = await acl.make_token(*(f"p{n}" for n in chosen))
        names = frozenset(f"p{n}" for n in chosen)
        callers.append((made["SecretID"], Who("client", tuple(rules[n] for n in chosen), strict, names)))
    return callers


def make_request(method: str, pattern: str, namespace: str) -> tuple[str, object]:
    """A request of the row about the namespace, which does no harm where it is allowed: the target, and the body."""
    path = pattern.replace(":part", "x")
    named = "none" if method != "GET" else "p0" if "/acl/" in pattern else namespace
    path = path.replace(":name", named)
    path = path.replace("/node/:id", f"/node/{NODE}" if method == "GET" or "plugins" in pattern else "/node/none")
    if pattern.endswith(("/register", "/reports", "/plugins")) and "/node/" in pattern:
        path = path.replace("/node/none", f"/node/{NODE}")
    path = path.replace("/allocation/:id", f"/allocation/{ALLOCATION}").replace(":id", "none")
    query = f"namespace={namespace}&type=csi&plugin_id=none&snapshot_id=x&node=none"
    body: object = {}
    if pattern in ("/v1/volumes", "/v1/volume/csi/:id", "/v1/volume/csi/:id/create"):
        body = {"Volumes": [{"ID": "x", "Namespace": namespace}]}
        query = "type=csi" if method != "GET" else query
        query = query if method != "DELETE" else f"namespace={namespace}"
    elif pattern == "/v1/allocations":
        body = {"Allocation": {"Name": "x", "Namespace": namespace}}
    elif pattern.startswith("/v1/search"):
        body = {"Prefix": "x", "Text": "xx", "Context": "volumes"}
    elif "/acl/" in pattern:
        body = {"Name": "no", "Type": "nope", "AccessorID": "no"}
    elif pattern.startswith("/v1/namespace"):
        body = {"Name": "bad name"}
    elif pattern == "/v1/nodes/join-tokens":
        body = []
    return f"{path}?{query}", body


def read_verdict(status: int, body: bytes, *, is_allocation: bool) -> str:
    if status == 403:
        assert body == b"Permission denied", body
        return "no"
    if b"nonexistent namespace" in body or (is_allocation and status == 404):
        return "hidden"
    return "yes"


@pytest.mark.parametrize("strict", [False, True], ids=["page", "strict"])
@pytest.mark.timeout(60)
async def test_triples_agree_with_the_model(strict: bool) -> None:
    chance = random.Random(6 if strict else 5)
    async with running_acl(strict=strict) as acl:
        for name in ("dev", "other"):
            await acl.read("PUT", "/v1/namespace", {"Name": name})
        await acl.read("PUT", "/v1/volume/csi/tools/create", a_body("tools", Namespace="dev"))
        use = {"ID": ALLOCATION, "Namespace": "dev", "Volumes": [{"Name": "d", "Source": "tools"}]}
        await acl.read("PUT", "/v1/allocations", {"Allocation": use})
        callers = await make_callers(acl, chance, strict=strict)
        seen: Counter[tuple[str, str]] = Counter()
        wrong: list[Any] = []
        for _ in range(TRIPLES):
            secret, who = chance.choice(callers)
            method, pattern = chance.choice(ROWS)
            namespace = chance.choice(NAMESPACES)
            target, body = make_request(method, pattern, namespace)
            expected = judge(who, method, pattern, namespace)
            answer = await acl.ask(method, target, body, secret=secret)
            is_allocation = pattern.startswith("/v1/allocation/")
            found = read_verdict(answer.status, answer.body, is_allocation=is_allocation)
            seen[who.kind, found] += 1
            # Where the namespace is not there for anybody, that is the answer to who may write there, too.
            if expected == "yes" and found == "hidden" and namespace in ("nowhere", "*"):
                continue
            if found != expected:
                wrong.append((method, target, namespace, who, expected, answer.status, answer.body[:120]))
        assert not wrong, f"{len(wrong)} disagree; the first: {wrong[:3]}"
        assert sum(seen.values()) == TRIPLES
        for verdict in ("yes", "no"):
            assert seen["client", verdict] > 500, seen
        assert strict or seen["client", "hidden"] > 20, seen
