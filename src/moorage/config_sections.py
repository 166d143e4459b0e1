"""Sections and tables of the settings file: a setting is a field here and a paragraph of its section's docstring.

Units: a name that ends in ``_s`` holds seconds, one with ``bytes`` in it bytes.
Never: reads anything (``moorage.config`` does).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e9)]
Count = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Amount = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
OwnCount = Annotated[int, msgspec.Meta(ge=-1, le=10_000)]
CountOrNone = Annotated[int, msgspec.Meta(ge=0, le=10_000)]
LogLevel = Literal["debug", "info", "warning", "error"]
Role = Literal["detected", "controller", "node", "monolith"]
Takeover = Literal["evidence", "timeout"]
Reboot = Literal["resume", "free"]
Join = Literal["auto", "open", "token"]
VerifyClient = Literal["no", "agents", "all"]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of the file. ``has_own_flags``: its flags are ``--section-key``, not ``--key``."""

    has_own_flags: ClassVar[bool] = False


class ServerSettings(Section, frozen=True, kw_only=True):
    """``[server]``: the records and the API; ``moorage server`` and ``moorage dev`` read it.

    bind: where the API is served, as HOST:PORT or unix:///PATH; port 0 takes a free one.

    allow_plain_http: serve without TLS where others than this host can reach it. Tokens and secrets are then read by
    whoever can listen in; better are certificates in [tls].

    data_dir: the directory of the records, which belongs to this user alone; empty: below $XDG_STATE_HOME.

    join: what a new node needs: token, a join token or a client certificate that names it; open, nothing; auto, nothing
    as long as the API is served on loopback or a unix socket only. With access control or client certificates on, a
    credential is needed whatever is said here.

    log_level: which events are logged to stderr: this level and those above it.
    """

    bind: str = "127.0.0.1:4646"
    allow_plain_http: bool = False
    data_dir: str = ""
    join: Join = "auto"
    log_level: LogLevel = "info"


class AgentSettings(Section, frozen=True, kw_only=True):
    """``[agent]``: mounting on this host; ``moorage agent`` and ``moorage dev`` read it.

    server: the server's address, as URL. Where it is not set, MOORAGE_ADDR and NOMAD_ADDR are asked too.

    data_dir: the directory of the journal and of the mounts that drivers make; a short path, because drivers get
    paths below it that may have 127 bytes; empty: below $XDG_STATE_HOME.

    log_level: which events are logged to stderr: this level and those above it.

    ca_file: the CA that the server's certificate is signed by; empty: those that this host trusts. Where it is not set,
    MOORAGE_CACERT and NOMAD_CACERT are asked too.

    cert_file: the client certificate that this node shows, made by `moorage tls agent`; or MOORAGE_CLIENT_CERT,
    NOMAD_CLIENT_CERT.

    key_file: its key; or MOORAGE_CLIENT_KEY, NOMAD_CLIENT_KEY.

    tls_server_name: the name in the server's certificate, where the address has another; or MOORAGE_TLS_SERVER_NAME,
    NOMAD_TLS_SERVER_NAME.

    join_token_file: a file with a join token, read when this node joins; it may be removed afterwards.

    plugin_id: the plugin ID under which the embedded driver runs here; empty: it does not run (except that `moorage
    dev` then calls it local).

    plugin_dirs: directories in which drivers' sockets are found: DIR/NAME.sock and DIR/NAME/csi.sock are the plugin
    NAME. In the environment, separated by colons; among the flags, one --plugin-dir each.

    plugin_gone_s: for how long a socket file may be missing from its directory until the plugin is forgotten; it is
    sick from the first second on, and it is kept as long as something of it is mounted here.

    self_fence: end the writers and unmount everything when the lease cannot be renewed in time, so that the server may
    give this node's volumes to others after the grace without asking anybody.

    clean_first_s: how long a start waits for mounts to go that are not this node's own any more; then it registers
    all the same, and is refused only if the server had lost the node. Nothing is mounted before that.

    retry_cap_s: the longest pause before a failed step, or a release that somebody's use holds up, is tried again.

    mount_probe_s: the pause between looks for mounts whose server died.

    mount_hang_s: how long a good mount may take to answer such a look.

    secret_dirs: directories whose files secrets may refer to as file:/PATH; without any, no file of this host is read.

    secret_env: environment variables that secrets may refer to as env:NAME.

    secret_credentials: credentials of this service ($CREDENTIALS_DIRECTORY) that secrets may refer to as
    credential:NAME.

    secret_read_s: how long reading all secrets of one driver call may take.

    controller_calls_max: how many calls a driver's controller service gets at a time.

    node_calls_max: how many calls a driver's node service gets at a time.

    slow_calls_max: how many calls more a service may have at a time that have gone on for slow_after_s, so that calls
    that hang do not keep others waiting; 0: the numbers above are hard limits.

    slow_after_s: after how long a call counts as slow.
    """

    server: str = "http://127.0.0.1:4646"
    data_dir: str = ""
    log_level: LogLevel = "info"
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    tls_server_name: str = ""
    join_token_file: str = ""
    plugin_id: str = ""
    plugin_dirs: tuple[str, ...] = ()
    plugin_gone_s: Positive = 30.0
    self_fence: bool = False
    clean_first_s: Positive = 5.0
    retry_cap_s: Positive = 30.0
    mount_probe_s: Positive = 1.0
    mount_hang_s: Positive = 2.5
    secret_dirs: tuple[str, ...] = ()
    secret_env: tuple[str, ...] = ()
    secret_credentials: tuple[str, ...] = ()
    secret_read_s: Positive = 5.0
    controller_calls_max: Count = 32
    node_calls_max: Count = 32
    slow_calls_max: CountOrNone = 256
    slow_after_s: Positive = 5.0


class TlsSettings(Section, frozen=True, kw_only=True):
    """``[tls]``: certificates of the API; ``moorage server`` and ``moorage dev`` read it. Files that change are taken
    within seconds, without a restart.

    cert_file: the server's certificate in PEM, its own first, then those between it and the CA; empty: no TLS.

    key_file: its key in PEM, without a password, in a file that not everybody may read.

    ca_file: the CA that client certificates must be signed by.

    verify_client: who must show a client certificate: no, nobody; agents, agents on their pages, while other clients
    come without; all, everybody.
    """

    has_own_flags: ClassVar[bool] = True

    cert_file: str = ""
    key_file: str = ""
    ca_file: str = ""
    verify_client: VerifyClient = "no"


class FencingSettings(Section, frozen=True, kw_only=True):
    """``[fencing]``: lost nodes; ``moorage server`` and ``moorage dev`` read it.

    lease_s: how long a node may be silent until it counts as lost.

    grace_s: how long after that until its readers are freed, and until a self-fencing agent has let go of everything.

    takeover: what frees the writers of a lost node: evidence that it can write no more, or, with timeout, the end of
    the grace alone, which risks two writers at once.

    reboot: what becomes of the uses of a lost node that comes back from a reboot: with resume they are mounted again
    at the same paths, with free they end as lost and their volumes are free for others.

    hook: a program with its arguments that cuts a lost node off, and exits with 0 when that node can write no more; see
    docs/node-loss.md. In the environment and as a flag: words as a shell would part them.

    hook_timeout_s: how long the hook may take until it is killed with its children.

    hook_retry_cap_s: the longest pause before a failed hook is tried again.

    hook_runs_max: for how many nodes the hook runs at a time.
    """

    lease_s: Positive = 10.0
    grace_s: Positive = 30.0
    takeover: Takeover = "evidence"
    reboot: Reboot = "resume"
    hook: tuple[str, ...] = ()
    hook_timeout_s: Positive = 60.0
    hook_retry_cap_s: Positive = 300.0
    hook_runs_max: Count = 4


class SecretsSettings(Section, frozen=True, kw_only=True):
    """``[secrets]``: the keys that seal secrets in the records; ``moorage server`` and ``moorage dev`` read it.

    key: where the key is: file:/PATH, credential:NAME (of the service's $CREDENTIALS_DIRECTORY) or env:NAME. A place
    may hold several keys, one a line: the first one seals, the others only open. Empty: the file secret.key in
    data_dir, which is made at the first start.

    old_keys: further places of keys that only open, in the same spelling.

    lost_keys: IDs of keys that nobody has any more. What they sealed is given up; the records are kept without it.
    """

    has_own_flags = True

    key: str = ""
    old_keys: tuple[str, ...] = ()
    lost_keys: tuple[str, ...] = ()


class AclSettings(Section, frozen=True, kw_only=True):
    """``[acl]``: access control; ``moorage server`` and ``moorage dev`` read it.

    enabled: nobody gets more than their token allows; `moorage acl bootstrap` makes the first one.

    strict: writes of volumes and snapshots also need a policy that lets their plugin be read, as Nomad's own servers
    demand; without it csi-write-volume suffices, as their documentation has it.
    """

    has_own_flags = True

    enabled: bool = False
    strict: bool = False


class LimitsSettings(Section, frozen=True, kw_only=True):
    """``[limits]``: what clients may take of the server; ``moorage server`` and ``moorage dev`` read it.

    body_bytes_max: the size of a request's body.

    body_s: the time that a request's body may take to arrive.

    body_rate_min: the bytes a second that a body must come at; 0: any.

    json_depth_max: how deep a JSON body may be nested.

    target_bytes_max: the length of a request's path and query.

    headers_max: how many headers a request may have.

    header_bytes_max: the size of a request's headers.

    head_s: the time that a request's head may take to arrive, and that a new connection may say nothing.

    pipelined_max: requests that a connection may send before the first of them is answered.

    idle_s: how long a connection may stay open between two requests.

    write_s: how long an answer waits for its reader to take some of it.

    write_rate_min: the bytes a second that a reader must take of an answer that waits for it.

    unsent_bytes_max: what all long answers together may hold that their readers have not taken yet.

    connections_max: open connections of all clients; never more than the process may have open files.

    connections_per_client_max: open connections of one address (of one /64 network with IPv6).

    waiters_per_client_max: blocking queries and event streams of one address.

    filter_bytes_max: the length of a filter.

    filter_terms_max: how many comparisons a filter may have.
    """

    has_own_flags: ClassVar[bool] = True

    body_bytes_max: Amount = 16 << 20
    body_s: Positive = 60.0
    body_rate_min: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 512
    json_depth_max: Annotated[int, msgspec.Meta(ge=8, le=256)] = 64
    target_bytes_max: Annotated[int, msgspec.Meta(ge=256, le=65535)] = 65535
    headers_max: Annotated[int, msgspec.Meta(ge=16, le=4096)] = 128
    header_bytes_max: Annotated[int, msgspec.Meta(ge=1024, le=4 << 20)] = 64 << 10
    head_s: Positive = 10.0
    pipelined_max: Amount = 64
    idle_s: Positive = 75.0
    write_s: Positive = 60.0
    write_rate_min: Annotated[int, msgspec.Meta(ge=1, le=1 << 30)] = 512
    unsent_bytes_max: Amount = 512 << 20
    connections_max: Amount = 16384
    connections_per_client_max: Amount = 2048
    waiters_per_client_max: Amount = 1024
    filter_bytes_max: Annotated[int, msgspec.Meta(ge=1, le=64 << 10)] = 16 << 10
    filter_terms_max: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 512


class AuditSettings(Section, frozen=True, kw_only=True):
    """``[audit]``: the audit log; ``moorage server`` and ``moorage dev`` read it.

    enabled: write one line for each write request, each refused request and each read of access control.

    file: where, as a path; empty: audit.log in data_dir. Older files are beside it.

    rotate_mb: the size in megabytes after which a file is put aside.

    keep: how many files that were put aside stay.

    queue: how many lines may wait for the disk.

    wait_s: how long a request may wait for a place among them until its line is dropped, and counted.

    sync_s: how long a line may be in the kernel's hands only, which a power cut would lose.
    """

    has_own_flags = True

    enabled: bool = True
    file: str = ""
    rotate_mb: Positive = 64.0
    keep: Count = 8
    queue: Count = 4096
    wait_s: Positive = 0.1
    sync_s: Positive = 1.0


class DriverTable(Section, frozen=True, kw_only=True):
    """``[[driver]]``: a driver that the agent runs and starts again; ``moorage agent`` and ``moorage dev`` read it.

    name: its plugin ID.

    command: the program and its arguments. CSI_ENDPOINT names the socket in its environment.

    environment: variables beside those of the agent.

    socket: where it listens; an absolute path.

    socket_dir: the directory in which it listens at csi.sock, instead of socket; without either, one below data_dir.

    role: what it is to serve: detected takes whatever it answers to; controller and node only that; monolith both.

    restart_first_s: the pause before it is started again; it doubles with each end.

    restart_cap_s: the longest such pause.

    steady_s: after how long a run the pause begins anew with the first.

    stop_s: how long it may take to end after SIGTERM until it gets SIGKILL.

    controller_calls_max: instead of the agent's; -1: as there.

    node_calls_max: instead of the agent's; -1: as there.

    slow_calls_max: instead of the agent's; -1: as there.
    """

    name: str
    command: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    environment: dict[str, str] = {}
    socket: str = ""
    socket_dir: str = ""
    role: Role = "detected"
    restart_first_s: Positive = 0.2
    restart_cap_s: Positive = 10.0
    steady_s: Positive = 30.0
    stop_s: Positive = 5.0
    controller_calls_max: OwnCount = -1
    node_calls_max: OwnCount = -1
    slow_calls_max: OwnCount = -1


class PluginTable(Section, frozen=True, kw_only=True):
    """``[[plugin]]``: a driver that somebody else runs; ``moorage agent`` and ``moorage dev`` read it. The flag is
    --plugin NAME=unix:///SOCKET.

    name: its plugin ID.

    socket: where it listens; an absolute path.

    role: what it is to serve: detected takes whatever it answers to; controller and node only that; monolith both.

    controller_calls_max: instead of the agent's; -1: as there.

    node_calls_max: instead of the agent's; -1: as there.

    slow_calls_max: instead of the agent's; -1: as there.
    """

    name: str
    socket: str
    role: Role = "detected"
    controller_calls_max: OwnCount = -1
    node_calls_max: OwnCount = -1
    slow_calls_max: OwnCount = -1


class Settings(Section, frozen=True, kw_only=True):
    """All settings; the tables by their position in the file."""

    server: ServerSettings = ServerSettings()
    agent: AgentSettings = AgentSettings()
    tls: TlsSettings = TlsSettings()
    fencing: FencingSettings = FencingSettings()
    secrets: SecretsSettings = SecretsSettings()
    audit: AuditSettings = AuditSettings()
    acl: AclSettings = AclSettings()
    limits: LimitsSettings = LimitsSettings()
    driver: tuple[DriverTable, ...] = ()
    plugin: tuple[PluginTable, ...] = ()


SECTIONS: dict[str, type[Section]] = {
    "server": ServerSettings,
    "agent": AgentSettings,
    "tls": TlsSettings,
    "fencing": FencingSettings,
    "secrets": SecretsSettings,
    "audit": AuditSettings,
    "acl": AclSettings,
    "limits": LimitsSettings,
}
TABLES: dict[str, type[Section]] = {"driver": DriverTable, "plugin": PluginTable}
# Which sections are flags of which program. Where two sections have a key, a program has the flag of one of them.
PROGRAMS: dict[str, tuple[str, ...]] = {
    "server": ("server", "tls", "fencing", "acl", "secrets", "limits", "audit"),
    "agent": ("agent",),
    "dev": ("server", "tls", "fencing", "acl", "agent", "secrets", "limits", "audit"),
}
