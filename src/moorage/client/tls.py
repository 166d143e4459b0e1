"""TLS as clients use it, and what its faults mean to whoever runs them. Only the standard library, imported late."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moorage.errors import BadRequest

if TYPE_CHECKING:
    import ssl

Stamp = tuple[tuple[int, int, int], ...]

# With TLS 1.3 a server may find fault with a client's certificate after the client has sent its request.
CUT = "; it may want a client certificate, or not trust the CA of the one it was given"

# OpenSSL's numbers of what is wrong with a certificate. Source: OpenSSL x509_vfy.h.
_EXPIRED, _NOT_YET = 10, 9
_UNTRUSTED = frozenset({2, 18, 19, 20, 21})
_WRONG_NAME = frozenset({62, 64})
_WRONG_PURPOSE = 26
# (part of OpenSSL's text, what it means), first match wins: what the other side, or the bytes, said.
_TEXTS = (
    (
        "CERTIFICATE_REQUIRED",
        "the server wants a client certificate: give -client-cert and -client-key (an agent: agent.cert_file and "
        "agent.key_file); `moorage tls client` and `moorage tls agent` make them",
    ),
    (
        "UNKNOWN_CA",
        "the server does not trust the CA of our client certificate: tls.ca_file on the server names its CA",
    ),
    ("CERTIFICATE_EXPIRED", "our client certificate has expired: make another one"),
    ("BAD_CERTIFICATE", "the server does not accept our client certificate"),
    ("UNSUPPORTED_CERTIFICATE", "the server does not accept our certificate as a client's"),
    ("WRONG_VERSION_NUMBER", "the server does not speak TLS there: use http:// instead of https://"),
    ("RECORD_LAYER_FAILURE", "the server does not speak TLS there: use http:// instead of https://"),
    ("UNEXPECTED_EOF", "the server ended the connection in the middle of the TLS handshake"),
)


@dataclass(frozen=True, kw_only=True)
class Tls:
    """How to trust the server and how to show who we are; empty texts mean "not given"."""

    ca_file: str = ""
    ca_path: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""
    skip_verify: bool = False


NO_TLS = Tls()


def stamp_files(paths: Iterable[str]) -> Stamp:
    """What tells that a file is another one than before; zeros for one that is not there."""
    found = []
    for path in paths:
        try:
            seen = os.stat(path) if path else None
        except OSError:
            seen = None
        found.append((seen.st_mtime_ns, seen.st_size, seen.st_ino) if seen else (0, 0, 0))
    return tuple(found)


def make_context(tls: Tls) -> ssl.SSLContext:
    """A client's context. Raises BadRequest that names what cannot be used."""
    import ssl

    if bool(tls.cert_file) != bool(tls.key_file):
        raise BadRequest("a client certificate and its key are only of use together: give both or neither")
    try:
        context = ssl.create_default_context(cafile=tls.ca_file or None, capath=tls.ca_path or None)
    except OSError as error:
        raise BadRequest(f"cannot use the CA in {tls.ca_file or tls.ca_path}: {error.strerror or error}") from error
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.cert_file:
        try:
            context.load_cert_chain(tls.cert_file, tls.key_file)
        except OSError as error:
            text = "the key is not the certificate's" if "MISMATCH" in str(error) else error.strerror or error
            raise BadRequest(f"cannot use the certificate {tls.cert_file} with {tls.key_file}: {text}") from error
    return context


def explain_fault(error: BaseException, host: str) -> str:
    """What a fault of TLS means and what helps, or an empty text for one that has nothing to do with it.

    The error itself or anything that caused it may be TLS's.
    """
    import ssl

    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            return ""
        # aiohttp's errors are of these classes too, and have what happened inside.
        inner = getattr(seen, "certificate_error", None) or getattr(seen, "os_error", None)
        if isinstance(inner, BaseException):
            seen = inner
        elif isinstance(seen, ssl.SSLCertVerificationError):
            return _explain_certificate(seen.verify_code, host) or str(seen.verify_message)
        elif isinstance(seen, ssl.SSLError):
            found = str(seen).upper().replace(" ", "_")
            return next((meaning for part, meaning in _TEXTS if part in found), str(seen.reason or seen))
        else:
            seen = seen.__cause__ or seen.__context__
    return ""


def _explain_certificate(code: int, host: str) -> str:
    if code in _UNTRUSTED:
        return (
            "its certificate is not signed by a CA that is trusted here: name its CA file with -ca-cert or "
            "MOORAGE_CACERT (an agent: agent.ca_file)"
        )
    if code in _WRONG_NAME:
        return (
            f"its certificate does not bear the name {host}: use a name it bears, say which with -tls-server-name (an "
            "agent: agent.tls_server_name), or make one with that name (`moorage tls server -host`)"
        )
    return {
        _EXPIRED: "its certificate has expired: on the server, `moorage tls server -force` makes another one",
        _NOT_YET: "its certificate does not count yet: is one of the clocks wrong?",
        _WRONG_PURPOSE: "its certificate is not a server's: `moorage tls server` makes one",
    }.get(code, "")
