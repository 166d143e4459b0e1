"""The key layout. A key is a table's name and an id, parted by ``/``.

``volumes/<namespace>/<id>``, ``claims/<allocation>/<name>``, ``allocations/<id>``, ``plugins/<id>``, ``nodes/<id>``,
``operations/<id>``, ``namespaces/<name>``, ``acl-tokens/<accessor>``, ``acl-policies/<name>``, ``acl-bootstrap/once``,
``identities/<node>``, ``join-tokens/<id>``, ``turnstiles/<node>/<plugin>``. Volume IDs and namespaces hold no
``/``; other ids may.
"""

from __future__ import annotations

from moorage.model.ids import AllocationId, ClaimId, NamespaceName, NodeId, OperationId, PluginId, VolumeId

VOLUMES = "volumes/"
CLAIMS = "claims/"
ALLOCATIONS = "allocations/"
PLUGINS = "plugins/"
NODES = "nodes/"
OPERATIONS = "operations/"
NAMESPACES = "namespaces/"
ACL_TOKENS = "acl-tokens/"
ACL_POLICIES = "acl-policies/"
ACL_BOOTSTRAP = "acl-bootstrap/"
IDENTITIES = "identities/"
JOIN_TOKENS = "join-tokens/"
TURNSTILES = "turnstiles/"
_RESOURCES = (VOLUMES, CLAIMS, ALLOCATIONS, PLUGINS, NODES, OPERATIONS, NAMESPACES)
TABLES = (*_RESOURCES, ACL_TOKENS, ACL_POLICIES, ACL_BOOTSTRAP, IDENTITIES, JOIN_TOKENS, TURNSTILES)


def volume_key(namespace: NamespaceName, volume_id: VolumeId) -> str:
    """The key of a volume's record."""
    return f"{VOLUMES}{namespace}/{volume_id}"


def claim_key(claim_id: ClaimId) -> str:
    """The key of a claim's record."""
    return f"{CLAIMS}{claim_id}"


def allocation_key(allocation_id: AllocationId) -> str:
    """The key of an allocation's record."""
    return f"{ALLOCATIONS}{allocation_id}"


def plugin_key(plugin_id: PluginId) -> str:
    """The key of a plugin's record."""
    return f"{PLUGINS}{plugin_id}"


def node_key(node_id: NodeId) -> str:
    """The key of a node's record."""
    return f"{NODES}{node_id}"


def operation_key(operation_id: OperationId) -> str:
    """The key of an operation's record."""
    return f"{OPERATIONS}{operation_id}"


def namespace_key(name: NamespaceName) -> str:
    """The key of a namespace's record."""
    return f"{NAMESPACES}{name}"


def acl_token_key(accessor_id: str) -> str:
    """The key of a token's record."""
    return f"{ACL_TOKENS}{accessor_id}"


def acl_policy_key(name: str) -> str:
    """The key of a policy's record."""
    return f"{ACL_POLICIES}{name}"


# There is one such record.
ACL_BOOTSTRAP_KEY = f"{ACL_BOOTSTRAP}once"


def identity_key(node_id: NodeId) -> str:
    """The key of a node's identity."""
    return f"{IDENTITIES}{node_id}"


def join_token_key(token_id: str) -> str:
    """The key of a join token's record."""
    return f"{JOIN_TOKENS}{token_id}"


def turnstile_key(node_id: NodeId, plugin_id: PluginId) -> str:
    """The key of what serializes admissions to a node whose driver has a limit."""
    return f"{TURNSTILES}{node_id}/{plugin_id}"


def table_of(key: str) -> str:
    """The table a key belongs to: its part up to and with the first ``/``."""
    return key[: key.index("/") + 1]
