"""The marks of this test process, the places that take a secret, and the answers that may show one.

``MARKED`` and ``LEARNT`` have the kinds of secrets. Those with a mark go into every fleet's traffic: by ``asking``,
by the programs' environment and by ``parting``. ``FIELDS`` says which kind stands for a field of the model or of the
settings: ``tests/unit/test_canary_watch.py`` walks both and fails for a field that is not here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from moorage.testing.canaries import Canaries

MARKS = Canaries()
VOLUME_SECRET = "volume secret"
HEADER_SECRET = "secret in a header"
MOUNT_FLAG = "mount flag"
PUBLISH_CONTEXT = "publish context"
TOKEN = "token in a header"
BEARER = "bearer token"
JOIN_TOKEN = "join token tried"
REFERRED_VARIABLE = "variable referred to"
REFERRED_FILE = "file referred to"
REFERRED_CREDENTIAL = "credential referred to"
DRIVER_ENVIRONMENT = "driver environment"
# Of our own making, in every fleet that still answers at its end.
MARKED = {
    VOLUME_SECRET: MARKS.make(VOLUME_SECRET),
    HEADER_SECRET: MARKS.make_plain(HEADER_SECRET),
    MOUNT_FLAG: MARKS.make(MOUNT_FLAG),
    TOKEN: MARKS.make_plain(TOKEN),
    BEARER: MARKS.make_plain(BEARER),
    JOIN_TOKEN: MARKS.make_plain(JOIN_TOKEN),
}
# Of our own making, by the environment, a file or a driver: they go in where those do, and pass no server's socket.
MARKS.make_plain(REFERRED_VARIABLE)
MARKS.make_plain(REFERRED_FILE)
MARKS.make_plain(REFERRED_CREDENTIAL)
MARKS.make_plain(DRIVER_ENVIRONMENT)
MARKS.make_plain(PUBLISH_CONTEXT)
# Made by the programs, and learnt from the answer or the file that is to hold them.
ACL_TOKEN, MADE_JOIN_TOKEN, NODE_SECRET = "SecretID of a token", "join token", "node's secret"
SEALING_KEY, TLS_KEY = "sealing key", "TLS private key"
LEARNT = (ACL_TOKEN, MADE_JOIN_TOKEN, NODE_SECRET, SEALING_KEY, TLS_KEY)
REFERRED_NAME = "MOORING_REFERRED"
# What programs find in their environment, and hand on to their drivers: of all kinds these alone may be there.
IN_ENVIRONMENTS = frozenset((REFERRED_VARIABLE, DRIVER_ENVIRONMENT))

# Where a secret may be in the model (module.Class.field), in the settings and in bodies: the kind that stands for it.
FIELDS: dict[str, str] = {
    "volume.MountOptions.mount_flags": MOUNT_FLAG,
    "volume.Volume.secrets": VOLUME_SECRET,
    "volume.Volume.delete_secrets": HEADER_SECRET,
    "claim.*.publish_context": PUBLISH_CONTEXT,
    "steps.*.secrets": VOLUME_SECRET,
    "steps.*.publish_context": PUBLISH_CONTEXT,
    "assignment.ClaimAssignment.secrets": VOLUME_SECRET,
    "assignment.NodeJoin.join_token": JOIN_TOKEN,
    "identity.JoinToken.secret_hash": MADE_JOIN_TOKEN,
    "identity.*.secret_hash": NODE_SECRET,
    "acl.Token.secret_hash": ACL_TOKEN,
    "bodies.*.secrets": VOLUME_SECRET,
    "bodies.*.mount_flags": MOUNT_FLAG,
    "config_sections.DriverTable.environment": DRIVER_ENVIRONMENT,
    "config_sections.AgentSettings.secret_dirs": REFERRED_FILE,
    "config_sections.AgentSettings.secret_env": REFERRED_VARIABLE,
    "config_sections.AgentSettings.secret_credentials": REFERRED_CREDENTIAL,
    "config_sections.AgentSettings.join_token_file": MADE_JOIN_TOKEN,
    "config_sections.AgentSettings.key_file": TLS_KEY,
    "config_security.TlsSettings.key_file": TLS_KEY,
    "config_security.SecretsSettings.key": SEALING_KEY,
    "config_security.SecretsSettings.old_keys": SEALING_KEY,
}
# Fields that sound like one, and why they are none.
NO_SECRETS: dict[str, str] = {
    "*.*.context": "volume contexts are shown by the API",
    "steps.*.starting_token": "a place in a driver's list",
    "steps.*.next_token": "a place in a driver's list",
    "assignment.*.key": "the name of a record",
    "assignment.*.serial_key": "the name of a volume",
    "operation.*.serial_key": "the name of a volume",
    "hcl.Item.key": "a word of a specification; its value is in the volume made of it",
    "identity.Identity.join_token_id": "the token's public name",
    "config_sections.AgentSettings.secret_read_s": "a time",
    "config_sections.Settings.secrets": "a section; its fields are here",
    "config_security.SecretsSettings.lost_keys": "the public names of keys",
}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An answer that shows a secret on purpose: at this route, in these members of its JSON, and for that reason.

    ``kind``: what is learnt from them and searched for everywhere else; empty: nothing.
    """

    methods: tuple[str, ...]
    path: re.Pattern[str]
    members: frozenset[str]
    why: str
    kind: str = ""

    def fits(self, method: str, path: str) -> bool:
        """Whether this is the answer's route."""
        return method in self.methods and self.path.fullmatch(path.partition("?")[0]) is not None


_WRITES = ("PUT", "POST")
SHOWN = (
    Shown(
        methods=_WRITES,
        path=re.compile("/v1/acl/(bootstrap|token)"),
        members=frozenset(("SecretID",)),
        why="a token's secret is told once, to who made it",
        kind=ACL_TOKEN,
    ),
    Shown(
        methods=("GET",),
        path=re.compile("/v1/acl/token/[^/]+"),
        members=frozenset(("SecretID",)),
        why="who shows a token may see it: the recorded API does that",
    ),
    Shown(
        methods=_WRITES,
        path=re.compile("/v1/acl/token/[^/]+"),
        members=frozenset(("SecretID",)),
        why="a token that its own bearer changes",
    ),
    Shown(
        methods=_WRITES,
        path=re.compile("/v1/nodes/join-tokens"),
        members=frozenset(("Token",)),
        why="a join token is told once, to who made it",
        kind=MADE_JOIN_TOKEN,
    ),
    Shown(
        methods=("GET",),
        path=re.compile("/v1/node/[^/]+/claims"),
        members=frozenset(("secrets", "mount_flags", "publish_context")),
        why="the node's own agent needs them to mount; nobody else may read the page",
    ),
    Shown(
        methods=("GET",),
        path=re.compile("/v1/node/[^/]+/steps"),
        members=frozenset(("secrets", "mount_flags")),
        why="the controller's own agent needs them to call its driver; nobody else may read the page",
    ),
)
