"""Certificates for ``moorage tls``: a CA of one's own and what it signs. EC P-256 with SHA-256.

What a certificate stands for is a URI in it: ``moorage://server``, ``moorage://agent/NAME``, ``moorage://client/NAME``.
Shapes: keys and certificates go in and out as PEM. Never: files, the clock.
Source: RFC 5280 §4.2; CA/Browser Forum baseline 7.1 for what a name may be in.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from moorage.errors import BadRequest

Role = Literal["server", "agent", "client"]
# Clocks of two hosts may differ by so much.
BACKDATED = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A certificate and its key, in PEM. ``repr`` leaves the key out."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"Pair({len(self.certificate)} bytes)"


def make_ca(name: str, *, days: int, now: datetime) -> Pair:
    """A CA that may sign leaves and no further CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _begin(subject, subject, key.public_key(), days=days, now=now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pack(builder.sign(key, hashes.SHA256()), key)


def issue(ca: Pair, role: Role, name: str, hosts: Sequence[str], *, days: int, now: datetime) -> Pair:
    """A certificate signed by the CA. ``hosts`` are names and IP addresses that a server is reached by.

    It ends no later than its CA. Raises BadRequest for a CA that cannot sign.
    """
    ca_certificate, ca_key = read_ca(ca, now=now)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH if role == "server" else ExtendedKeyUsageOID.CLIENT_AUTH]
    uri = "moorage://server" if role == "server" else f"moorage://{role}/{name}"
    names: list[x509.GeneralName] = [_name_of(host) for host in hosts]
    builder = (
        _begin(subject, ca_certificate.subject, key.public_key(), days=days, now=now, end=ca_certificate)
        .add_extension(x509.SubjectAlternativeName([*names, x509.UniformResourceIdentifier(uri)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    return _pack(builder.sign(ca_key, hashes.SHA256()), key)


def read_ca(ca: Pair, *, now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The CA as it signs. Raises BadRequest where it cannot: not PEM, no CA, another's key, or its time is up."""
    try:
        certificate = x509.load_pem_x509_certificate(ca.certificate)
        key = serialization.load_pem_private_key(ca.key, password=None)
    except (ValueError, TypeError) as error:
        raise BadRequest(f"the CA or its key is not PEM without a password: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise BadRequest("the CA's key is not the CA's: give the two files that `moorage tls ca` made together")
    try:
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_ca = False
    if not is_ca:
        raise BadRequest("the certificate given as CA is none: it may not sign others")
    if certificate.not_valid_after_utc <= now:
        raise BadRequest(f"the CA expired at {certificate.not_valid_after_utc:%Y-%m-%d}: make another one")
    return certificate, key


def _begin(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    *,
    days: int,
    now: datetime,
    end: x509.Certificate | None = None,
) -> x509.CertificateBuilder:
    until = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(min(until, end.not_valid_after_utc) if end else until)
    )


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def _name_of(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pack(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
