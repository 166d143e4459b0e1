"""What to do about an error, in one line. Never: HTTP, printing."""

from __future__ import annotations

from moorage.errors import DeadlineExceeded, Forbidden, MoorageError

# (part of the text, hint), first match wins; texts are the recorded server's, which programs match on as well.
_BY_TEXT = (
    ("no CSI plugin named", "`moorage plugin status` lists the plugins that are known"),
    ("no such plugin", "`moorage plugin status` lists the plugins that are known"),
    ("plugin not found", "`moorage plugin status` lists the plugins that are known"),
    ("no healthy controllers", "`moorage plugin status ID` tells how the plugin's instances are"),
    ("volume in use", "`moorage volume status ID` shows who uses it; `moorage umount ID` ends the use"),
    ("max claims reached", "`moorage volume status ID` shows who holds it; `moorage umount ID` ends that use"),
    ("cannot be updated", "what a volume is made of cannot change: create another one, e.g. with -clone or -snapshot"),
    ("nonexistent namespace", "-namespace names one that exists"),
    ("ACL support disabled", "a server that is started with --acl has access control"),
    (
        "ACL bootstrap already done",
        "is the token lost? write the reset index into the file acl-bootstrap-reset in the server's data directory, "
        "then bootstrap again",
    ),
    ("ACL policy not found", "`moorage acl policy list` lists the policies"),
    ("ACL token not found", "`moorage acl token list` lists the tokens"),
    ("volume not found", "`moorage volume status` lists the volumes of a namespace"),
    ("no such volume", "`moorage volume status` lists the volumes of a namespace"),
)


def find_hint(error: MoorageError, address: str) -> str:
    """The line that helps with ``error``, or an empty text."""
    if error.code == "unreachable":
        return (
            f"is the server running at {address}? start one with `moorage dev`, or name another with -address "
            "or MOORAGE_ADDR"
        )
    for part, hint in _BY_TEXT:
        if part in error.message:
            return hint
    if isinstance(error, Forbidden):
        return "a token is given with MOORAGE_TOKEN or -token; `moorage acl token self` shows what it is"
    if isinstance(error, DeadlineExceeded):
        return "the server goes on with the work; the same command again is safe"
    if error.code == "volume_not_found":
        return "`moorage volume status` lists the volumes of a namespace"
    return ""
