"""The sections of the settings file about who may do what, and what is kept from whom; see ``config_sections``."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from moorage.config_types import Amount, Count, Positive, Section, VerifyClient


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


class AclSettings(Section, frozen=True, kw_only=True):
    """``[acl]``: access control; ``moorage server`` and ``moorage dev`` read it.

    enabled: nobody gets more than their token allows; `moorage acl bootstrap` makes the first one.

    strict: writes of volumes and snapshots also need a policy that lets their plugin be read, as Nomad's own servers
    demand; without it csi-write-volume suffices, as their documentation has it.
    """

    has_own_flags = True

    enabled: bool = False
    strict: bool = False


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


class LimitsSettings(Section, frozen=True, kw_only=True):
    """``[limits]``: what clients may take of the server; ``moorage server`` and ``moorage dev`` read it.

    body_bytes_max: the size of a request's body.

    body_s: the time that a request's body may take to arrive.

    body_rate_min: the bytes a second that a body must come at; 0: any.

    json_depth_max: how deep a JSON body may be nested.

    target_bytes_max: the length of a request's path and query.

    headers_max: how many headers a request may have.

    header_bytes_max: the size of a request's headers.

    handshake_s: the time that a handshake of TLS may take.

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
    handshake_s: Positive = 10.0
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
