"""``moorage tls ca|server|agent|client``: files for TLS, one command each. They need no server.

A key's file is its owner's alone. What is there is never overwritten without -force, and then each file is replaced
as a whole, so that a server that looks at them meanwhile finds the old or the new.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import re
import socket
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from moorage.errors import BadRequest

if TYPE_CHECKING:
    from moorage.cli.certificates import Pair, Role

CA_DAYS = 3650
SERVER_DAYS = 397
AGENT_DAYS = 397
CLIENT_DAYS = 90
DAYS_MAX = 7300
CA_FILE, CA_KEY_FILE = "ca.pem", "ca-key.pem"
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_HOST = re.compile(r"(?:\*\.)?[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


def add_ca(parser: argparse.ArgumentParser) -> None:
    """Flags of ``tls ca``."""
    parser.add_argument("--name", default="moorage CA", help="what it is called; default: moorage CA")
    _add_shared(parser, CA_DAYS, of_leaf=False)


def add_server(parser: argparse.ArgumentParser) -> None:
    """Flags of ``tls server``."""
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME|IP",
        help="a name or address by which the server is reached; may be repeated; this host's name and loopback are in",
    )
    _add_shared(parser, SERVER_DAYS)


def add_agent(parser: argparse.ArgumentParser) -> None:
    """Flags of ``tls agent``."""
    parser.add_argument("subject", nargs="?", metavar="NODE", help="the node's name or ID; default: this host's name")
    _add_shared(parser, AGENT_DAYS)


def add_client(parser: argparse.ArgumentParser) -> None:
    """Flags of ``tls client``."""
    parser.add_argument("subject", nargs="?", metavar="NAME", help="whose it is; default: this user's name")
    _add_shared(parser, CLIENT_DAYS)


def _add_shared(parser: argparse.ArgumentParser, days: int, *, of_leaf: bool = True) -> None:
    parser.add_argument("--dir", default=".", metavar="DIR", help="where the files are and go; default: here")
    parser.add_argument("--days", type=int, default=days, metavar="N", help=f"how long it counts; default {days}")
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    if of_leaf:
        parser.add_argument("--ca-cert", default="", metavar="FILE", help=f"the CA; default: {CA_FILE} in -dir")
        parser.add_argument("--ca-key", default="", metavar="FILE", help=f"its key; default: {CA_KEY_FILE} in -dir")


def run_ca(args: argparse.Namespace) -> int:
    """Make a CA."""
    from moorage.cli.certificates import make_ca

    if not args.name.strip() or len(args.name) > 64:
        raise BadRequest(f"-name {args.name[:80]!r}: 1 to 64 characters are possible")
    pair = make_ca(args.name, days=_check_days(args.days), now=datetime.now(UTC))
    place = _write(args, {CA_FILE: pair.certificate, CA_KEY_FILE: pair.key})
    _say(
        f"Made the CA {place / CA_FILE}, and its key {place / CA_KEY_FILE}: whoever has the key can be anybody here; "
        "keep it where no server and no agent runs.",
        "Next: `moorage tls server`, `moorage tls agent NODE` and `moorage tls client` in the same directory.",
    )
    return 0


def run_server(args: argparse.Namespace) -> int:
    """Make a server's certificate."""
    hosts = list(dict.fromkeys([*args.host, socket.gethostname(), "localhost", "127.0.0.1", "::1"]))
    for host in hosts:
        if not (_is_address(host) or _HOST.fullmatch(host)):
            raise BadRequest(f"-host {host[:80]!r} is neither a host name nor an IP address")
    place = _issue(args, "server", "server", hosts, stem="server")
    _say(
        f"Made {place / 'server.pem'} and {place / 'server-key.pem'} for {', '.join(hosts)}. On the server:",
        "",
        "[tls]",
        f'cert_file = "{place / "server.pem"}"',
        f'key_file = "{place / "server-key.pem"}"',
        f'ca_file = "{_ca_file(args)}"',
        'verify_client = "agents"',
    )
    return 0


def run_agent(args: argparse.Namespace) -> int:
    """Make an agent's certificate."""
    name = _check_name(args.subject or socket.gethostname())
    place = _issue(args, "agent", name, (), stem=f"agent-{name}")
    _say(
        f"Made {place / f'agent-{name}.pem'} and {place / f'agent-{name}-key.pem'}. With them the node {name} joins "
        f"without a join token. Bring both and {_ca_file(args)} to that node; there:",
        "",
        "[agent]",
        'server = "https://SERVER:4646"',
        f'ca_file = "{_ca_file(args)}"',
        f'cert_file = "{place / f"agent-{name}.pem"}"',
        f'key_file = "{place / f"agent-{name}-key.pem"}"',
    )
    return 0


def run_client(args: argparse.Namespace) -> int:
    """Make a client's certificate."""
    name = _check_name(args.subject or _find_user())
    place = _issue(args, "client", name, (), stem=f"client-{name}")
    _say(
        f"Made {place / f'client-{name}.pem'} and {place / f'client-{name}-key.pem'}. For the command line and others:",
        "",
        "export NOMAD_ADDR=https://SERVER:4646",
        f"export NOMAD_CACERT={_ca_file(args)}",
        f"export NOMAD_CLIENT_CERT={place / f'client-{name}.pem'}",
        f"export NOMAD_CLIENT_KEY={place / f'client-{name}-key.pem'}",
    )
    return 0


def _issue(args: argparse.Namespace, role: Role, name: str, hosts: list[str] | tuple[str, ...], *, stem: str) -> Path:
    from moorage.cli.certificates import issue

    ca = _read_ca(args)
    pair = issue(ca, role, name, hosts, days=_check_days(args.days), now=datetime.now(UTC))
    return _write(args, {f"{stem}-key.pem": pair.key, f"{stem}.pem": pair.certificate})


def _read_ca(args: argparse.Namespace) -> Pair:
    from moorage.cli.certificates import Pair

    found = []
    for path in (_ca_file(args), _ca_key_file(args)):
        try:
            found.append(path.read_bytes())
        except OSError as error:
            text = f"cannot read the CA: {path}: {error.strerror}; `moorage tls ca` makes one"
            raise BadRequest(text) from error
    return Pair(certificate=found[0], key=found[1])


def _ca_file(args: argparse.Namespace) -> Path:
    return Path(args.ca_cert).absolute() if args.ca_cert else Path(args.dir).absolute() / CA_FILE


def _ca_key_file(args: argparse.Namespace) -> Path:
    return Path(args.ca_key).absolute() if args.ca_key else Path(args.dir).absolute() / CA_KEY_FILE


def _check_days(days: int) -> int:
    if not 1 <= days <= DAYS_MAX:
        raise BadRequest(f"-days {days}: 1 to {DAYS_MAX} are possible")
    return days


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise BadRequest(f"{name[:80]!r} is no name: 1 to 64 letters, digits, dots, hyphens and underscores")
    return name


def _is_address(text: str) -> bool:
    import ipaddress

    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _find_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "client"


def _write(args: argparse.Namespace, files: Mapping[str, bytes]) -> Path:
    """Put the files in place, all or, where one is there already, none. Raises BadRequest."""
    place = Path(args.dir).absolute()
    if not args.force:
        for name in files:
            if os.path.lexists(place / name):
                raise BadRequest(f"{place / name} is there already: -force replaces it")
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _write_file(place / name, content, mode=0o600 if name.endswith("-key.pem") else 0o644)
    except OSError as error:
        raise BadRequest(f"cannot write {error.filename or place}: {error.strerror}") from error
    return place


def _write_file(path: Path, content: bytes, *, mode: int) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
