"""Policy texts: what they mean, and what is said of bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moorage.errors import BadRequest
from moorage.model.acl import Policy, Token
from moorage.model.policy import NamespaceRule, PolicyRules
from moorage.rules import policies, tokens
from moorage.rules.policies import NAMESPACE_LEVELS, check_policy, parse_rules

CORPUS = Path(__file__).parents[1] / "conformance" / "corpus" / "acl.json"


def one(name: str = "default", policy: str = "", *capabilities: str) -> NamespaceRule:
    levels = NAMESPACE_LEVELS.get(policy, ())
    return NamespaceRule(name=name, policy=policy, capabilities=tuple(dict.fromkeys((*capabilities, *levels))))


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("", PolicyRules()),
        (" \n", PolicyRules()),
        ("# nothing\n", PolicyRules()),
        ('namespace "default" { policy = "read" }', PolicyRules(namespaces=(one("default", "read"),))),
        ('namespace "*" {}', PolicyRules(namespaces=(one("*"),))),
        (
            'namespace "a" { capabilities = ["csi-write-volume"] }',
            PolicyRules(namespaces=(one("a", "", "csi-write-volume"),)),
        ),
        (
            'namespace "a" { policy = "deny" capabilities = ["read-job"] }',
            PolicyRules(namespaces=(one("a", "deny", "read-job"),)),
        ),
        (
            'namespace "a" { policy = "scale" variables { path "*" { capabilities = ["read"] } } }',
            PolicyRules(namespaces=(one("a", "scale"),)),
        ),
        ('plugin { policy = "list" }', PolicyRules(plugin="list")),
        ('plugin { policy = "write" }', PolicyRules(plugin="write")),
        ('node { policy = "write" }\nagent { policy = "read" }', PolicyRules(node="write", agent="read")),
        ('operator { policy = "read" capabilities = ["snapshot-save"] }', PolicyRules(operator="read")),
        ('quota { policy = "read" }\nsentinel { policy = "write" }', PolicyRules(quota="read", sentinel="write")),
        (
            'host_volume "*" { policy = "write" }\nnode_pool "gpu*" { capabilities = ["read"] }',
            PolicyRules(
                host_volumes=(
                    NamespaceRule(name="*", policy="write", capabilities=("mount-readonly", "mount-readwrite")),
                ),
                node_pools=(NamespaceRule(name="gpu*", capabilities=("read",)),),
            ),
        ),
        (
            '{"namespace":{"default":{"policy":"read","capabilities":["csi-mount-volume"]}},"plugin":{"policy":"list"}}',
            PolicyRules(namespaces=(one("default", "read", "csi-mount-volume"),), plugin="list"),
        ),
        (
            '{"namespace":[{"a":{"policy":"read"}},{"b":[{"policy":"deny"}]}]}',
            PolicyRules(namespaces=(one("a", "read"), one("b", "deny"))),
        ),
        ('namespace = { a = { policy = "read" } }', PolicyRules(namespaces=(one("a", "read"),))),
    ],
)
def test_texts(text: str, rules: PolicyRules) -> None:
    assert parse_rules(text) == rules


def test_rules_of_one_name_add_up() -> None:
    text = 'namespace "a" { policy = "read" }\nnamespace "b" {}\nnamespace "a" { capabilities = ["csi-mount-volume"] }'
    rules = parse_rules(text).namespaces
    assert [r.name for r in rules] == ["a", "b"]
    assert set(rules[0].capabilities) == {*NAMESPACE_LEVELS["read"], "csi-mount-volume"}
    assert rules[0].policy == "read"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("namespace {", "Failed to parse ACL Policy: line 1, column 12: the text ends too early"),
        ('namespace { policy = "read" }', 'line 1, column 13: expected namespace "NAME" { … }'),
        ('namespace "a" "b" {}', 'line 1, column 1: expected namespace "NAME" { … }'),
        ('namespace "a" = 1', "Failed to parse ACL Policy: line 1"),
        ('namespace "x" { policy = "nope" }', "Invalid namespace policy: 'nope' of 'x' (line 1, column 17; there are"),
        ('namespace "x" { capabilities = ["nope"] }', "Invalid namespace capability 'nope' of 'x' (line 1, column 17"),
        ('namespace "a b" {}', "Invalid namespace name: 'a b' (line 1, column 1; 1 to 128 letters"),
        ('namespace "x" {\n  polcy = "deny"\n}', "Invalid or duplicate policy keys: polcy in namespace 'x' (line 2"),
        ('namespace "x" { policy = 1 }', "namespace.policy is not a text in quotes"),
        ('namespace "x" { capabilities = "read-job" }', "namespace.capabilities is not a list of texts"),
        ('namespace "x" { capabilities = [1] }', "namespace.capabilities is not a list of texts"),
        ('plugin { policy = "scale" }', "Invalid plugin policy: 'scale' (line 1, column 1; there are"),
        ("plugin {}", "Invalid plugin policy: ''"),
        ('node { policy = "list" }', "Invalid node policy: 'list'"),
        (
            'plugin { policy = "read" }\nplugin { policy = "deny" }',
            "Invalid or duplicate policy keys: plugin stands twice",
        ),
        ('plugin "x" { policy = "read" }', "expected plugin { policy = … }"),
        ('plugin = "read"', "expected plugin { policy = … }"),
        ('plugin { policy = "read" level = 1 }', "Invalid or duplicate policy keys: level in plugin"),
        ('nonsense { policy = "read" }', "Invalid or duplicate policy keys: nonsense (line 1, column 1;"),
        ('{"namespace": 1}', 'expected namespace "NAME"'),
        ('host_volume "x" { capabilities = ["read"] }', "Invalid host volume capability 'read' of 'x'"),
        ('node_pool "x" { policy = "list" }', "Invalid node pool policy: 'list' of 'x'"),
    ],
)
def test_bad_texts_are_refused_with_their_place(text: str, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_rules(text)
    assert says in caught.value.message


def test_every_finding_is_told() -> None:
    bad = Policy(name="bad name", description="x" * 257, rules="namespace {")
    with pytest.raises(BadRequest) as caught:
        check_policy(bad)
    text = caught.value.message
    assert text.startswith(
        "policy 0 invalid: 3 errors occurred:\n\t* invalid name 'bad name'\n\t* failed to parse rules: "
    )
    assert text.endswith("\t* description longer than 256\n\n")


def test_hashes_are_the_recorded_ones() -> None:
    corpus = json.loads(CORPUS.read_text())
    listed = next(r for r in corpus["acl"] if r["request"]["path"] == "/v1/acl/policies?prefix=plugin")
    for row in json.loads(listed["response"]["body"]):
        policy = Policy(name=row["Name"], description=row["Description"], rules=corpus["policies"][row["Name"]])
        assert policies.fingerprint(policy) == row["Hash"]
    listed = next(r for r in corpus["acl"] if r["request"]["path"] == "/v1/acl/tokens")
    for row in json.loads(listed["response"]["body"]):
        names = tuple(row["Policies"]) if row["Policies"] else None
        token = Token(
            accessor_id="",
            secret_hash="",
            name=row["Name"],
            kind=row["Type"],
            policies=names,
            is_global=row["Global"],
        )
        assert tokens.fingerprint(token) == row["Hash"]


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, ""),
        (1, "1ns"),
        (1_500, "1.5µs"),
        (300_000_000, "300ms"),
        (1_000_000_000, "1s"),
        (1_500_000_000, "1.5s"),
        (60_000_000_000, "1m0s"),
        (3_600_000_000_000, "1h0m0s"),
        (90_061_000_000_001, "25h1m1.000000001s"),
        (-1_000_000_000, "-1s"),
    ],
)
def test_durations_are_spelled_as_go_does(nanoseconds: int, text: str) -> None:
    assert tokens.format_duration(nanoseconds) == text
