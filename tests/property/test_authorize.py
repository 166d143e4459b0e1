"""Decisions of access control against a naive reading of the rules, and what holds whatever the policies are."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from moorage.model.policy import NamespaceRule, PolicyRules
from moorage.rules.authorize import ANYTHING, LIST, READ, WRITE, Access, Acl, measure_glob
from moorage.rules.policies import NAMESPACE_LEVELS

CAPABILITIES = (
    "csi-list-volume",
    "csi-read-volume",
    "csi-mount-volume",
    "csi-write-volume",
    "list-jobs",
    "read-job",
    "deny",
)
NAMES = st.sampled_from(("a", "b", "ab", "abc", "default", "a-1"))
PATTERNS = st.sampled_from(
    ("a", "b", "ab", "abc", "default", "*", "a*", "*b", "a*c", "ab*", "*a*", "def*", "**", "d*t")
)
LEVELS = st.sampled_from(("", "", "deny", "read", "list", "write"))


@st.composite
def namespace_rules(draw: st.DrawFn) -> NamespaceRule:
    policy = draw(st.sampled_from(("", "", "deny", "read", "write", "scale")))
    given_ones = draw(st.lists(st.sampled_from(CAPABILITIES), max_size=3))
    both = tuple(dict.fromkeys((*given_ones, *NAMESPACE_LEVELS.get(policy, ()))))
    return NamespaceRule(name=draw(PATTERNS), policy=policy, capabilities=both)


policies = st.builds(
    PolicyRules,
    namespaces=st.lists(namespace_rules(), max_size=4).map(tuple),
    plugin=LEVELS,
    node=LEVELS,
    agent=LEVELS,
    operator=LEVELS,
)
ALL = st.lists(policies, max_size=4)


def hold(found: Sequence[PolicyRules], name: str) -> set[str]:
    """The capabilities held in a namespace, read off the text of the rules as it stands in the contract."""
    said: dict[str, set[str]] = {}
    for rules in found:
        for rule in rules.namespaces:
            said.setdefault(rule.name, set()).update(rule.capabilities)
    for pattern, held in said.items():
        if "deny" in held:
            said[pattern] = set()
    if name in said:
        return said[name]
    fitting = [p for p in said if "*" in p and fnmatch.fnmatchcase(name, p)]
    if not fitting:
        return set()
    nearest = min(len(name) - len(p) + p.count("*") for p in fitting)
    chosen = [said[p] for p in fitting if len(name) - len(p) + p.count("*") == nearest]
    return set() if any(not held for held in chosen) else set().union(*chosen)


@given(ALL, NAMES)
def test_capabilities_agree_with_a_naive_reading(found: list[PolicyRules], name: str) -> None:
    acl = Acl(found)
    expected = hold(found, name)
    assert acl.find_capabilities(name) == expected
    for any_of in (LIST, READ, WRITE):
        assert acl.may(name, any_of) == bool(expected & any_of)
    assert acl.may(name, ANYTHING) == bool(expected)


@given(ALL, NAMES)
def test_the_order_of_policies_does_not_matter(found: list[PolicyRules], name: str) -> None:
    one, other = Acl(found), Acl(reversed(found))
    assert one.find_capabilities(name) == other.find_capabilities(name)
    assert (one.plugin, one.node, one.agent, one.operator) == (other.plugin, other.node, other.agent, other.operator)


@given(ALL, NAMES)
def test_a_denial_of_a_name_is_final(found: list[PolicyRules], name: str) -> None:
    denial = PolicyRules(namespaces=(NamespaceRule(name=name, policy="deny", capabilities=("deny",)),), plugin="deny")
    acl = Acl([*found, denial])
    assert acl.find_capabilities(name) == frozenset()
    access = Access(acl=acl)
    assert not access.may_list_plugins
    assert not access.may_read_plugins


@given(ALL, NAMES)
def test_what_is_held_somewhere_shows_in_the_question_for_all(found: list[PolicyRules], name: str) -> None:
    acl = Acl(found)
    for any_of in (LIST, READ, WRITE, ANYTHING):
        if acl.may(name, any_of):
            assert acl.may("*", any_of)
    assert acl.is_empty or not Acl().may(name, ANYTHING)


@given(ALL, NAMES)
def test_strict_never_allows_more(found: list[PolicyRules], name: str) -> None:
    acl = Acl(found)
    plain, strict = Access(acl=acl), Access(acl=acl, is_strict=True)
    assert plain.may_write(name) or not strict.may_write(name)
    assert plain.may_read_plugins or not strict.may_read_plugins
    assert plain.may_list_plugins or not strict.may_list_plugins


@given(ALL)
def test_levels_include_the_lower_ones(found: list[PolicyRules]) -> None:
    access = Access(acl=Acl(found))
    assert access.may_list_plugins or not access.may_read_plugins
    assert access.may_read_nodes or not access.may_write_nodes
    assert access.may_read_nodes == (
        "deny" not in {p.node for p in found} and bool({p.node for p in found} & {"read", "write"})
    )


@given(NAMES)
def test_management_may_everything_and_nobody_nothing(name: str) -> None:
    management, nobody = Access(acl=Acl(is_management=True)), Access()
    for any_of in (LIST, READ, WRITE, ANYTHING):
        assert management.may(name, any_of)
        assert not nobody.may(name, any_of)
        assert not nobody.may("*", any_of)
    assert management.may_write("*")
    assert nobody.acl.is_empty


def test_the_most_specific_pattern_is_the_recorded_one() -> None:
    assert measure_glob("*", "default") == 7
    assert measure_glob("def*", "default") == 4
    rules = [
        PolicyRules(
            namespaces=(
                NamespaceRule(name="*", capabilities=("csi-write-volume",)),
                NamespaceRule(name="d*", capabilities=("csi-list-volume",)),
            )
        )
    ]
    assert Acl(rules).find_capabilities("default") == {"csi-list-volume"}
    assert Acl(rules).find_capabilities("other") == {"csi-write-volume"}
