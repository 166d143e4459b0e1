"""Flags: those that every command has, the two spellings, and what the environment says.

Never: HTTP, printing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence

from moorage.client.sync import DEFAULT_ADDRESS, Endpoint
from moorage.client.tls import Tls
from moorage.errors import BadRequest

# Flags that take a value; needed to find the command behind flags that stand in front of it.
_GLOBAL_WITH_VALUE = frozenset(
    {"address", "namespace", "token", "region", "ca-cert", "ca-path", "client-cert", "client-key", "tls-server-name"}
)
_TRUE = frozenset({"1", "t", "true", "y", "yes", "on"})


def normalize_flags(argv: Sequence[str]) -> list[str]:
    """``-flag`` as ``--flag``; ``-``, ``-h``, negative numbers and all after ``--`` stay as they are."""
    result: list[str] = []
    for position, word in enumerate(argv):
        if word == "--":
            return result + list(argv[position:])
        is_single = len(word) > 2 and word[0] == "-" and word[1].isalpha()
        result.append(f"-{word}" if is_single else word)
    return result


def split_leading_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Global flags in front of the command, and the rest: ``moorage -address URL volume status``."""
    position = 0
    while position < len(argv) and argv[position].startswith("--") and argv[position] != "--":
        name, equals, _ = argv[position][2:].partition("=")
        if name == "help":
            break
        position += 2 if name in _GLOBAL_WITH_VALUE and not equals else 1
    return list(argv[:position]), list(argv[position:])


def add_global_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every command which talks to a server has."""
    group = parser.add_argument_group("flags of every command (-flag and --flag are the same)")
    group.add_argument("--address", metavar="URL", help=f"the server; MOORAGE_ADDR, NOMAD_ADDR; {DEFAULT_ADDRESS}")
    group.add_argument("--namespace", metavar="NAME", help="MOORAGE_NAMESPACE, NOMAD_NAMESPACE; default")
    group.add_argument("--token", metavar="SECRET", help="MOORAGE_TOKEN, NOMAD_TOKEN (better: it stays out of ps)")
    group.add_argument("--region", metavar="NAME", help="MOORAGE_REGION, NOMAD_REGION")
    group.add_argument("--json", action="store_true", help="print the API's own JSON, for programs")
    for name, meaning in (
        ("ca-cert", "CA file; NOMAD_CACERT"),
        ("ca-path", "CA directory; NOMAD_CAPATH"),
        ("client-cert", "client certificate; NOMAD_CLIENT_CERT"),
        ("client-key", "its key; NOMAD_CLIENT_KEY"),
        ("tls-server-name", "name in the server's certificate; NOMAD_TLS_SERVER_NAME"),
    ):
        group.add_argument(f"--{name}", metavar="NAME" if name.endswith("name") else "PATH", help=meaning)
    group.add_argument("--tls-skip-verify", action="store_true", help="trust any server; NOMAD_SKIP_VERIFY")


def _find(environment: Mapping[str, str], name: str) -> str:
    return environment.get(f"MOORAGE_{name}") or environment.get(f"NOMAD_{name}") or ""


def make_endpoint(args: argparse.Namespace, environment: Mapping[str, str] | None = None) -> Endpoint:
    """The endpoint that flags and environment name: a flag wins over MOORAGE_…, that over NOMAD_…."""
    found = os.environ if environment is None else environment
    tls = Tls(
        ca_file=args.ca_cert or _find(found, "CACERT"),
        ca_path=args.ca_path or _find(found, "CAPATH"),
        cert_file=args.client_cert or _find(found, "CLIENT_CERT"),
        key_file=args.client_key or _find(found, "CLIENT_KEY"),
        server_name=args.tls_server_name or _find(found, "TLS_SERVER_NAME"),
        skip_verify=args.tls_skip_verify or _find(found, "SKIP_VERIFY").lower() in _TRUE,
    )
    return Endpoint(
        address=args.address or _find(found, "ADDR") or DEFAULT_ADDRESS,
        token=args.token or _find(found, "TOKEN"),
        namespace=args.namespace or _find(found, "NAMESPACE"),
        region=args.region or _find(found, "REGION"),
        tls=tls,
    )


def read_pairs(flag: str, words: Sequence[str] | None) -> dict[str, str]:
    """``["k=v", …]`` as a dict; the value may hold ``=``. The text of a secret is never repeated in the error."""
    pairs: dict[str, str] = {}
    for number, word in enumerate(words or (), start=1):
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise BadRequest(f"-{flag} number {number} is not of the form KEY=VALUE")
        pairs[key] = value
    return pairs


def secrets_header(pairs: Mapping[str, str]) -> dict[str, str]:
    """The header that carries secrets of a delete or a snapshot call; {} when there are none.

    Raises BadRequest for a comma, which the header cannot express.
    """
    for key, value in pairs.items():
        if "," in key or "," in value:
            raise BadRequest(f"the secret {key.partition(',')[0]!r} holds a comma, which cannot be sent with this call")
    return {"X-Nomad-CSI-Secrets": ",".join(f"{key}={value}" for key, value in pairs.items())} if pairs else {}
