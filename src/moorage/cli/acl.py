"""``moorage acl …``: bootstrap, policies, tokens. Never: decisions that are the server's.

A secret is printed once, by the command that made its token or whose own it is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from moorage.cli.session import Row, Session
from moorage.client.sync import path_of
from moorage.errors import BadRequest

_RULES_BYTES_MAX = 1024 * 1024
_KINDS = ("client", "management")


def add_bootstrap(parser: argparse.ArgumentParser) -> None:
    """Flags of ``acl bootstrap``."""
    parser.add_argument(
        "file", nargs="?", metavar="FILE|-", help="a file with the secret that the token shall have, a UUID"
    )


def run_bootstrap(args: argparse.Namespace, session: Session) -> int:
    """Make the first management token."""
    body = {"BootstrapSecret": _read(args.file).strip()} if args.file else {}
    return _print_token(session, "PUT", path_of("acl", "bootstrap"), body)


# -- policies --------------------------------------------------------------------------------------------------------


def add_policy_apply(parser: argparse.ArgumentParser) -> None:
    """Flags of ``acl policy apply``."""
    parser.add_argument("subject", metavar="NAME", help="letters, digits and hyphens")
    parser.add_argument("file", metavar="FILE|-", help="its rules in HCL or JSON, or - for standard input")
    parser.add_argument("--description", default="", metavar="TEXT", help="a text for people")


def run_policy_apply(args: argparse.Namespace, session: Session) -> int:
    """Write a policy."""
    body = {"Name": args.subject, "Description": args.description, "Rules": _read(args.file)}
    session.client.write("PUT", path_of("acl", "policy", args.subject), body=body)
    if session.wants_json:
        session.output.json(session.client.get(path_of("acl", "policy", args.subject)))
        return 0
    session.output.line(f"Policy {args.subject} is written")
    return 0


def add_policy_list(parser: argparse.ArgumentParser) -> None:
    """Flags of ``acl policy list``: none."""


def run_policy_list(args: argparse.Namespace, session: Session) -> int:
    """List policies."""
    answer = session.client.get(path_of("acl", "policies"))
    if session.wants_json:
        session.output.json(answer)
        return 0
    rows: list[Row] = answer.json() or []
    if not rows:
        session.output.note("No policies")
        return 0
    session.output.table(("Name", "Description"), [(row.get("Name"), row.get("Description")) for row in rows])
    return 0


def add_policy_info(parser: argparse.ArgumentParser) -> None:
    """Flags of ``acl policy info``."""
    parser.add_argument("subject", metavar="NAME", help="the policy's name")


def run_policy_info(args: argparse.Namespace, session: Session) -> int:
    """Show a policy with its rules."""
    answer = session.client.get(path_of("acl", "policy", args.subject))
    if session.wants_json:
        session.output.json(answer)
        return 0
    policy: Row = answer.json()
    session.output.details([(name, policy.get(name)) for name in ("Name", "Description", "CreateIndex", "ModifyIndex")])
    session.output.section("Rules")
    for line in str(policy.get("Rules") or "").rstrip("\n").split("\n"):
        session.output.line(line)
    return 0


def add_policy_delete(parser: argparse.ArgumentParser) -> None:
    """Flags of ``acl policy delete``."""
    parser.add_argument("subject", metavar="NAME", help="the policy's name")


def run_policy_delete(args: argparse.Namespace, session: Session) -> int:
    """Delete a policy."""
    session.client.write("DELETE", path_of("acl", "policy", args.subject))
    if not session.wants_json:
        session.output.line(f"Policy {args.subject} is deleted")
    return 0


# -- tokens ----------------------------------------------------------------------------------------------------------


def add_token_create(parser: argparse.ArgumentParser) -> None:
    """Flags of ``acl token create``."""
    parser.add_argument("--name", default="", metavar="TEXT", help="a name for people")
    parser.add_argument("--type", choices=_KINDS, default="client", help="management tokens may do everything; client")
    parser.add_argument("--policy", action="append", metavar="NAME", help="a policy of a client token; repeatable")
    parser.add_argument("--ttl", default="", metavar="DURATION", help="until it expires, such as 8h; never")
    parser.add_argument("--global", dest="is_global", action="store_true", help="kept for clients that ask for it")


def run_token_create(args: argparse.Namespace, session: Session) -> int:
    """Make a token and print its secret, this once."""
    body: Row = {"Name": args.name, "Type": args.type, "Policies": args.policy, "Global": args.is_global}
    if args.ttl:
        body["ExpirationTTL"] = args.ttl
    return _print_token(session, "PUT", path_of("acl", "token"), body)


def add_token_list(parser: argparse.ArgumentParser) -> None:
    """Flags of ``acl token list``: none."""


def run_token_list(args: argparse.Namespace, session: Session) -> int:
    """List tokens, without secrets."""
    answer = session.client.get(path_of("acl", "tokens"))
    if session.wants_json:
        session.output.json(answer)
        return 0
    rows: list[Row] = answer.json() or []
    if not rows:
        session.output.note("No tokens")
        return 0
    session.output.table(
        ("Accessor ID", "Name", "Type", "Policies", "Expires"),
        [
            (row.get("AccessorID"), row.get("Name"), row.get("Type"), _list_policies(row), row.get("ExpirationTime"))
            for row in rows
        ],
    )
    return 0


def add_token_info(parser: argparse.ArgumentParser) -> None:
    """Flags of ``acl token info``."""
    parser.add_argument("subject", metavar="ACCESSOR", help="the token's accessor ID")


def run_token_info(args: argparse.Namespace, session: Session) -> int:
    """Show a token."""
    return _print_token(session, "GET", path_of("acl", "token", args.subject))


def add_token_self(parser: argparse.ArgumentParser) -> None:
    """Flags of ``acl token self``: none."""


def run_token_self(args: argparse.Namespace, session: Session) -> int:
    """Show the token that the command line uses."""
    return _print_token(session, "GET", path_of("acl", "token", "self"))


def add_token_delete(parser: argparse.ArgumentParser) -> None:
    """Flags of ``acl token delete``."""
    parser.add_argument("subject", metavar="ACCESSOR", help="the token's accessor ID")


def run_token_delete(args: argparse.Namespace, session: Session) -> int:
    """Delete a token: from now on it opens nothing."""
    session.client.write("DELETE", path_of("acl", "token", args.subject))
    if not session.wants_json:
        session.output.line(f"Token {args.subject} is deleted")
    return 0


def _print_token(session: Session, method: str, path: str, body: Row | None = None) -> int:
    """Ask for a token and show it."""
    client = session.client
    answer = client.get(path) if method == "GET" else client.write(method, path, body=body)
    if session.wants_json:
        session.output.json(answer)
        return 0
    token: Row = answer.json()
    pairs = [
        ("Accessor ID", token.get("AccessorID")),
        ("Secret ID", token.get("SecretID") or "not kept; only its bearer knows it"),
        ("Name", token.get("Name")),
        ("Type", token.get("Type")),
        ("Policies", _list_policies(token)),
        ("Created", token.get("CreateTime")),
        ("Expires", token.get("ExpirationTime") or "never"),
    ]
    session.output.details(pairs)
    return 0


def _list_policies(token: Row) -> str:
    return ", ".join(str(name) for name in token.get("Policies") or ())


def _read(name: str) -> str:
    """A file's text, or that of standard input. Raises BadRequest that names it."""
    try:
        data = sys.stdin.buffer.read(_RULES_BYTES_MAX + 1) if name == "-" else Path(name).read_bytes()
        if len(data) > _RULES_BYTES_MAX:
            raise BadRequest(f"{name} is larger than {_RULES_BYTES_MAX} bytes")
        return data.decode()
    except OSError as error:
        raise BadRequest(f"cannot read {name}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BadRequest(f"{name} is not UTF-8: byte {error.start} is no text") from error
