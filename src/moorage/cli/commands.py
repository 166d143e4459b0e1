"""The table of commands: words, what they do, an example, and where the code is.

A command's module is imported when it is chosen, not before. It offers two functions for each of its commands:
``add_<name>(parser)`` and ``run_<name>(args, session) -> exit code``. Never: HTTP, printing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command that talks to a server."""

    words: tuple[str, ...]
    module: str
    name: str
    summary: str
    example: str
    more: str = ""


@dataclass(frozen=True)
class Program:
    """A command that asks no server: a program of its own, whose flags and code live in ``moorage.serve``, or one that
    only makes files, in ``module``."""

    words: tuple[str, ...]
    add_arguments: str
    run: str
    summary: str
    example: str
    module: str = "moorage.serve"


_CREATE_MORE = (
    "The argument is a specification file in HCL or JSON, or - for standard input. With -plugin it is a volume's name "
    "instead, and the flags say the rest. Doing it again with a bigger size makes the volume bigger; secrets it was "
    "created with must then be given again, because each request says all of them."
)

_ORPHANS_MORE = (
    "Backend volumes that nobody registered, registered ones that the driver lost, disks with several records, and "
    "attachments without a claim. An orphan that is deleted is registered first, so that nothing is lost on the way."
)

PROGRAMS = (
    Program(
        ("dev",),
        "add_dev_arguments",
        "run_dev",
        "all in one process for one host: server, agent, embedded driver",
        "moorage dev -data-dir /var/lib/moorage",
    ),
    Program(
        ("server",),
        "add_server_arguments",
        "run_server",
        "keep the records and serve the API, without an agent",
        "moorage server -bind 127.0.0.1:4646 -data-dir /var/lib/moorage/server",
    ),
    Program(
        ("agent",),
        "add_agent_arguments",
        "run_agent",
        "mount volumes on this host for a server",
        "moorage agent -server http://127.0.0.1:4646 -plugin nfs=unix:///run/csi/nfs/csi.sock",
    ),
    Program(
        ("driver", "local"),
        "add_driver_arguments",
        "run_driver",
        "the embedded CSI driver on its own, for any orchestrator",
        "moorage driver local -h",
    ),
    Program(
        ("tls", "ca"),
        "add_ca",
        "run_ca",
        "make a CA: what signs the certificates of servers, agents and clients",
        "moorage tls ca -dir /root/moorage-tls",
        "moorage.cli.tls",
    ),
    Program(
        ("tls", "server"),
        "add_server",
        "run_server",
        "make a server's certificate and key, signed by the CA in the same directory",
        "moorage tls server -host storage-1.example -host 192.0.2.10",
        "moorage.cli.tls",
    ),
    Program(
        ("tls", "agent"),
        "add_agent",
        "run_agent",
        "make a node's certificate and key, with which its agent may join",
        "moorage tls agent host-2",
        "moorage.cli.tls",
    ),
    Program(
        ("tls", "client"),
        "add_client",
        "run_client",
        "make a client's certificate and key, where the server asks everybody for one",
        "moorage tls client anna",
        "moorage.cli.tls",
    ),
)

COMMANDS = (
    Command(
        ("volume", "status"),
        "volumes",
        "status",
        "list volumes, or show one",
        "moorage volume status data",
        "Without an argument all volumes are listed. An ID may be cut short as long as it stays unique.",
    ),
    Command(
        ("volume", "create"),
        "volume_writes",
        "create",
        "make a volume at its driver, or make it bigger",
        "moorage volume create data -plugin local -size 10GiB",
        _CREATE_MORE,
    ),
    Command(
        ("volume", "register"),
        "volume_writes",
        "register",
        "take in a volume that the driver has already",
        "moorage volume register volume.hcl",
    ),
    Command(
        ("volume", "deregister"),
        "volumes",
        "deregister",
        "forget a volume; its data stay at the driver",
        "moorage volume deregister data",
    ),
    Command(
        ("volume", "delete"),
        "volumes",
        "delete",
        "delete a volume and its data",
        "moorage volume delete data",
    ),
    Command(
        ("volume", "detach"),
        "volumes",
        "detach",
        "detach a volume from a node",
        "moorage volume detach data worker1",
        "The node is given by ID, the beginning of an ID, or name.",
    ),
    Command(
        ("volume", "orphans"),
        "orphans",
        "orphans",
        "compare what drivers have with what is registered; adopt or delete what nobody registered",
        "moorage volume orphans -plugin local",
        _ORPHANS_MORE,
    ),
    Command(
        ("volume", "snapshot", "create"),
        "snapshots",
        "create",
        "make a snapshot of a volume",
        "moorage volume snapshot create data before-upgrade",
    ),
    Command(
        ("volume", "snapshot", "list"),
        "snapshots",
        "list",
        "list the snapshots that a driver has",
        "moorage volume snapshot list -plugin local",
        "Without -plugin the plugin must be the only one.",
    ),
    Command(
        ("volume", "snapshot", "delete"),
        "snapshots",
        "delete",
        "delete a snapshot",
        "moorage volume snapshot delete local snap-1",
    ),
    Command(
        ("why",),
        "why",
        "why",
        "say why a volume, a use, a plugin or a node is not ready, and what helps",
        "moorage why data",
        "NAME is the ID of a volume, an allocation, a plugin or a node, the beginning of one, or a node's name.",
    ),
    Command(("plugin", "status"), "plugins", "status", "list drivers, or show one", "moorage plugin status local"),
    Command(("node", "status"), "nodes", "status", "list nodes, or show one", "moorage node status"),
    Command(
        ("node", "drain"),
        "nodes",
        "drain",
        "take no new uses on a node and release the running ones",
        "moorage node drain host-2",
        "Uses are released one by one, the youngest first; nothing is unmounted under a process that still uses it.",
    ),
    Command(
        ("node", "fence"),
        "nodes",
        "fence",
        "say that a lost node can no longer write",
        'moorage node fence host-2 -reason "powered off at the switch"',
        "A volume that one node may write is freed from a lost node only on evidence. Your word is evidence: be sure.",
    ),
    Command(
        ("node", "join-token", "create"),
        "identities",
        "create",
        "make a token that lets a new node join",
        "moorage node join-token create -ttl 1h -uses 1",
        "The token is printed on standard output and shown nowhere again; name its file as agent.join_token_file.",
    ),
    Command(
        ("node", "join-token", "list"),
        "identities",
        "list",
        "list the join tokens, without the tokens themselves",
        "moorage node join-token list",
    ),
    Command(
        ("node", "join-token", "delete"),
        "identities",
        "delete",
        "make a join token useless; nodes that joined with it stay",
        "moorage node join-token delete 4f2c",
    ),
    Command(
        ("node", "reset-identity"),
        "identities",
        "reset",
        "take a node's secret away, so that its agent can join anew with another one",
        'moorage node reset-identity host-2 -reason "its disk was replaced"',
        "For a node that lost its secret, or whose secret others may know. The old secret never counts again.",
    ),
    Command(
        ("alloc", "status"),
        "allocations",
        "status",
        "list uses of volumes, or show one",
        "moorage alloc status 4f2c",
    ),
    Command(
        ("operator", "secrets", "status"),
        "operator",
        "secrets_status",
        "say which key seals the secrets on record, and which may go",
        "moorage operator secrets status",
    ),
    Command(
        ("operator", "secrets", "rotate"),
        "operator",
        "secrets_rotate",
        "seal all secrets on record anew with a new key, while everything works on",
        "moorage operator secrets rotate",
        "It waits until that is done and says which key may go. Interrupted, or with -detach, the server goes on.",
    ),
    Command(
        ("operator", "debug"),
        "operator",
        "debug",
        "gather what helps to find a fault into a file, without secrets",
        "moorage operator debug -output debug.tar.gz",
        "Records, explanations, settings, versions, recent driver calls and log lines; what the token may not read is "
        "left out and named. Look at it before you give it away: names of volumes, nodes and paths are in it.",
    ),
    Command(
        ("audit", "verify"),
        "audit",
        "verify",
        "check that an audit log is whole, or say where it was changed",
        "moorage audit verify /var/lib/moorage/server/audit.log",
        "No server is asked. Without FILE the logs below this user's state directory are read.",
    ),
    Command(
        ("acl", "bootstrap"),
        "acl",
        "bootstrap",
        "make the first management token",
        "moorage acl bootstrap",
        "It works once. When the token is lost, whoever owns the server's host writes the reset index that the refusal "
        "names into the file acl-bootstrap-reset in the server's data directory, and it works once more.",
    ),
    Command(
        ("acl", "policy", "apply"),
        "acl",
        "policy_apply",
        "write a policy, new or known",
        "moorage acl policy apply backup rules.hcl",
    ),
    Command(("acl", "policy", "list"), "acl", "policy_list", "list policies", "moorage acl policy list"),
    Command(("acl", "policy", "info"), "acl", "policy_info", "show a policy's rules", "moorage acl policy info backup"),
    Command(("acl", "policy", "delete"), "acl", "policy_delete", "delete a policy", "moorage acl policy delete backup"),
    Command(
        ("acl", "token", "create"),
        "acl",
        "token_create",
        "make a token; its secret is shown this once",
        "moorage acl token create -name ci -policy backup -ttl 8h",
    ),
    Command(("acl", "token", "list"), "acl", "token_list", "list tokens, without secrets", "moorage acl token list"),
    Command(
        ("acl", "token", "info"),
        "acl",
        "token_info",
        "show a token",
        "moorage acl token info 2d451016-dfa1-4887-b88b-e93319b4860d",
    ),
    Command(("acl", "token", "self"), "acl", "token_self", "show the token in use", "moorage acl token self"),
    Command(
        ("acl", "token", "delete"),
        "acl",
        "token_delete",
        "delete a token: it opens nothing any more",
        "moorage acl token delete 2d451016-dfa1-4887-b88b-e93319b4860d",
    ),
    Command(
        ("mount",),
        "mounts",
        "mount",
        "mount a volume at a path and wait until it is there",
        "moorage mount data /srv/data",
        "The mount stays until `moorage umount`; a restart of moorage does not disturb it.",
    ),
    Command(
        ("umount",),
        "mounts",
        "umount",
        "unmount by path, volume or allocation and wait until it is gone",
        "moorage umount /srv/data",
    ),
)
