"""Sections and tables of the settings file: a setting is a field here and a paragraph of its section's docstring.

Units: a name that ends in ``_s`` holds seconds, one with ``bytes`` in it bytes.
Never: reads anything (``moorage.config`` does).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from moorage.config_security import AclSettings, AuditSettings, LimitsSettings, SecretsSettings, TlsSettings
from moorage.config_types import Count, CountOrNone, Join, LogLevel, OwnCount, Positive, Reboot, Role, Section, Takeover


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
    environment: dict[str, str] = {}  # noqa: RUF012 (msgspec copies it)
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
