"""The files of TLS: what the commands make, what a server refuses, and how it takes new ones."""

from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from tls_kit import client_of, files_of, issue_at, make, make_set, shake_hands

from moorage import config
from moorage.cli.main import main
from moorage.client.tls import Tls, explain_fault, make_context
from moorage.config_sections import ServerSettings, TlsSettings
from moorage.errors import BadRequest
from moorage.model.identity import Peer
from moorage.serve import tls
from moorage.serve.server import choose_identity, open_certificates
from moorage.serve.tls import Certificates, find_peer

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("tls"), "host-1")


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


# -- the commands ------------------------------------------------------------------------------------------------------


def test_keys_are_their_owners_alone(place: Path) -> None:
    names = {"ca", "server", "agent-host-1", "client-anna"}
    assert {p.name for p in place.iterdir()} == {f"{n}{end}" for n in names for end in (".pem", "-key.pem")}
    for name in names:
        assert stat.S_IMODE((place / f"{name}-key.pem").stat().st_mode) == 0o600
        key = serialization.load_pem_private_key((place / f"{name}-key.pem").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert key.curve.name == "secp256r1"
        assert key.public_key() == read(place / f"{name}.pem").public_key()


def test_a_leaf_says_what_it_stands_for_and_signs_nothing(place: Path) -> None:
    ca = read(place / "ca.pem")
    wanted = {
        "server": (ExtendedKeyUsageOID.SERVER_AUTH, "moorage://server", 397),
        "agent-host-1": (ExtendedKeyUsageOID.CLIENT_AUTH, "moorage://agent/host-1", 397),
        "client-anna": (ExtendedKeyUsageOID.CLIENT_AUTH, "moorage://client/anna", 90),
    }
    for name, (purpose, uri, days) in wanted.items():
        leaf = read(place / f"{name}.pem")
        leaf.verify_directly_issued_by(ca)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [purpose]
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [uri]
        assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert timedelta(days=days) <= leaf.not_valid_after_utc - leaf.not_valid_before_utc < timedelta(days=days + 1)
    basics = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basics.critical, basics.value.ca, basics.value.path_length) == (True, True, 0)


def test_a_server_bears_what_it_is_reached_by(place: Path, tmp_path: Path) -> None:
    words = ("-ca-cert", str(place / "ca.pem"), "-ca-key", str(place / "ca-key.pem"), "-host", "a.example")
    out = make(tmp_path, "server", *words, "-host", "192.0.2.7", "-days", "3")
    names = read(tmp_path / "server.pem").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"a.example", "localhost"} <= set(names.get_values_for_type(x509.DNSName))
    found = {str(ip) for ip in names.get_values_for_type(x509.IPAddress)}
    assert found == {"192.0.2.7", "127.0.0.1", "::1"}
    assert f'cert_file = "{tmp_path}/server.pem"' in out
    assert read(tmp_path / "server.pem").not_valid_after_utc < datetime.now(UTC) + timedelta(days=3, minutes=5)


def test_nothing_is_overwritten_without_force(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in place.iterdir()}
    for words in (("ca",), ("server",), ("agent", "host-1"), ("client", "anna")):
        assert main(["tls", *words, "-dir", str(place)]) == 2
        assert "is there already: -force replaces it" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in place.iterdir()} == before


def test_force_makes_another_one_that_the_same_ca_signed(tmp_path: Path) -> None:
    make_set(tmp_path)
    before = read(tmp_path / "server.pem")
    make(tmp_path, "server", "-force")
    after = read(tmp_path / "server.pem")
    assert after.serial_number != before.serial_number
    after.verify_directly_issued_by(read(tmp_path / "ca.pem"))
    assert stat.S_IMODE((tmp_path / "server-key.pem").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("server", "-host", "a b"), "-host 'a b'"),
        (("agent", "../x"), "is no name"),
        (("agent", "host/1"), "is no name"),
        (("client", "-days", "0"), "-days 0"),
        (("ca", "-name", " ", "-force"), "-name"),
        (("agent", "a", "-ca-cert", "/nowhere"), "moorage tls ca"),
    ],
)
def test_a_bad_wish_is_named(
    place: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert main(["tls", *words, "-dir", str(place)]) == 2
    assert said in capsys.readouterr().err


def test_what_is_no_ca_signs_nothing(place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    issue_at(tmp_path, NOW)
    pairs = {
        (place / "server.pem", place / "server-key.pem"): "may not sign",
        (place / "ca.pem", place / "server-key.pem"): "is not the CA's",
        (tmp_path / "server-key.pem", place / "ca-key.pem"): "not PEM",
    }
    for (cert, key), said in pairs.items():
        words = ["tls", "agent", "b", "-dir", str(tmp_path), "-ca-cert", str(cert), "-ca-key", str(key)]
        assert main(words) == 2
        assert said in capsys.readouterr().err


# -- the server's files ------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_used_are_named(place: Path, tmp_path: Path) -> None:
    replace = msgspec.structs.replace
    good = files_of(place)
    key = tmp_path / "key.pem"
    key.write_bytes((place / "server-key.pem").read_bytes())
    key.chmod(0o644)
    locked = tmp_path / "locked.pem"
    private = serialization.load_pem_private_key((place / "server-key.pem").read_bytes(), None)
    sealed = serialization.BestAvailableEncryption(b"hunter2")
    locked.touch(0o600)
    locked.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed))
    cases = [
        (replace(good, key_file=str(place / "ca-key.pem")), "the key is not the certificate's"),
        (replace(good, key_file=str(key)), "everybody on this host may read it"),
        (replace(good, key_file=str(locked)), "encrypted with a password"),
        (replace(good, cert_file="/nowhere"), "tls.cert_file /nowhere: No such file"),
        (replace(good, key_file="/nowhere"), "tls.key_file /nowhere: No such file"),
        (replace(good, cert_file=good.key_file), "holds no certificate"),
        (replace(good, ca_file="/nowhere"), "tls.ca_file /nowhere: No such file"),
        (replace(good, ca_file="", verify_client="agents"), "tls.verify_client needs tls.ca_file"),
    ]
    for files, said in cases:
        with pytest.raises(BadRequest) as caught:
            tls.make_context(files)
        assert said in caught.value.message


def test_old_protocols_and_weak_ciphers_are_not_spoken(place: Path) -> None:
    context = tls.make_context(files_of(place)).context
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    names = {cipher["name"] for cipher in context.get_ciphers()}
    assert all("GCM" in name or "CHACHA20" in name for name in names)
    assert all(name.startswith(("ECDHE-", "TLS_")) for name in names)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        client = make_context(client_of(place))
        client.minimum_version = client.maximum_version = version
        shake_hands(context, client, "127.0.0.1")


def test_a_certificate_says_which_node_it_is_of() -> None:
    shown = {"subjectAltName": (("DNS", "x"), ("URI", "moorage://agent/host-1"), ("URI", "moorage://agent/"))}
    assert find_peer(shown) == Peer(has_certificate=True, agents=("host-1",))
    assert find_peer({"subjectAltName": (("URI", "moorage://client/host-1"),)}) == Peer(has_certificate=True)
    assert find_peer({"subject": ((("commonName", "host-1"),),)}) == Peer(has_certificate=True)
    assert find_peer({}) == find_peer(None) == Peer()


# -- taking new ones ---------------------------------------------------------------------------------------------------


def serial_shown(certificates: Certificates, place: Path) -> int:
    """The serial number that a client meets."""
    seen: list[bytes] = []
    client = make_context(Tls(skip_verify=True))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = certificates.context.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    for side in (theirs, ours, theirs, ours):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    seen.append(theirs.getpeercert(binary_form=True) or b"")
    return x509.load_der_x509_certificate(seen[0]).serial_number


def test_new_files_are_taken_and_broken_ones_refused(tmp_path: Path) -> None:
    make_set(tmp_path)
    certificates = Certificates(files_of(tmp_path))
    cert, key = tmp_path / "server.pem", tmp_path / "server-key.pem"
    first = read(cert).serial_number
    assert serial_shown(certificates, tmp_path) == first
    assert not certificates.reload()
    make(tmp_path, "server", "-force")
    second = read(cert).serial_number
    assert serial_shown(certificates, tmp_path) == first
    assert certificates.reload()
    assert serial_shown(certificates, tmp_path) == second
    good_key = key.read_bytes()
    with structlog.testing.capture_logs() as logs:
        key.write_bytes((tmp_path / "ca-key.pem").read_bytes())
        assert not certificates.reload()
        assert not certificates.reload(), "the same broken files are refused once"
        cert.write_bytes(b"rubbish")
        assert not certificates.reload()
        cert.unlink()
        assert not certificates.reload()
    assert [log["event"] for log in logs] == ["tls.reload_refused"] * 3
    assert serial_shown(certificates, tmp_path) == second
    make(tmp_path, "server", "-force")
    assert key.read_bytes() != good_key
    assert certificates.reload()
    assert serial_shown(certificates, tmp_path) == read(cert).serial_number


def test_an_expired_certificate_is_not_taken_and_one_that_ends_soon_is_told(tmp_path: Path) -> None:
    make_set(tmp_path)
    certificates = Certificates(files_of(tmp_path))
    before = serial_shown(certificates, tmp_path)
    with structlog.testing.capture_logs() as logs:
        issue_at(tmp_path, NOW - timedelta(days=10))
        assert not certificates.reload()
        issue_at(tmp_path, NOW, days=20)
        assert certificates.reload()
    assert [log["event"] for log in logs] == ["tls.reload_refused", "tls.expires_soon"]
    assert "expired" in logs[0]["error"]
    assert serial_shown(certificates, tmp_path) != before


def test_a_new_ca_counts_for_those_who_come_now(tmp_path: Path) -> None:
    ours, theirs = make_set(tmp_path / "ours"), make_set(tmp_path / "theirs")
    certificates = Certificates(files_of(ours, verify_client="all"))
    of_ours, of_theirs = (make_context(client_of(ours, "client-anna")), make_context(client_of(ours)))
    of_theirs.load_cert_chain(theirs / "client-anna.pem", theirs / "client-anna-key.pem")
    shake_hands(certificates.context, of_ours, "localhost")
    with pytest.raises(ssl.SSLError):
        shake_hands(certificates.context, of_theirs, "localhost")
    server_ca = (ours / "ca.pem").read_bytes()
    (ours / "ca.pem").write_bytes((theirs / "ca.pem").read_bytes())
    assert certificates.reload()
    (ours / "trusted.pem").write_bytes(server_ca)
    shake_hands(certificates.context, of_theirs, "localhost")
    with pytest.raises(ssl.SSLError):
        shake_hands(certificates.context, of_ours, "localhost")


# -- what clients are told ---------------------------------------------------------------------------------------------


def fault(server: Path, client: Tls, name: str = "127.0.0.1", *, stem: str = "server") -> str:
    try:
        shake_hands(tls.make_context(files_of(server, stem=stem)).context, make_context(client), name)
    except ssl.SSLError as error:
        return explain_fault(error, name)
    return "no fault"


def test_faults_say_what_helps(place: Path, tmp_path: Path) -> None:
    assert fault(place, client_of(place)) == "no fault"
    assert "-ca-cert" in fault(place, Tls())
    assert "does not bear the name 192.0.2.1" in fault(place, client_of(place), "192.0.2.1")
    assert "does not bear the name b.example" in fault(place, client_of(place), "b.example")
    issue_at(tmp_path / "old", NOW - timedelta(days=9))
    assert "has expired" in fault(tmp_path / "old", client_of(tmp_path / "old"))
    issue_at(tmp_path / "young", NOW + timedelta(days=9))
    assert "is one of the clocks wrong" in fault(tmp_path / "young", client_of(tmp_path / "young"))
    issue_at(tmp_path / "odd", NOW, role="client", stem="odd")
    assert "is not a server's" in fault(tmp_path / "odd", client_of(tmp_path / "odd"), stem="odd")
    assert fault(place, Tls(skip_verify=True)) == "no fault"
    assert explain_fault(OSError("x"), "h") == ""


def test_a_clients_own_files_are_named(place: Path) -> None:
    cases = [
        (Tls(cert_file="x"), "only of use together"),
        (Tls(ca_file="/nowhere"), "the CA in /nowhere"),
        (client_of(place, cert_file=str(place / "server.pem"), key_file=str(place / "ca-key.pem")), "is not the cert"),
    ]
    for client, said in cases:
        with pytest.raises(BadRequest, match=said):
            make_context(client)


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bind", ["0.0.0.0:1", ":::1", "[::]:1", "192.0.2.1:1", "host.example:1"])
def test_plain_http_to_the_network_needs_a_word(bind: str) -> None:
    with pytest.raises(BadRequest, match=r"moorage tls ca.*allow_plain_http = true"):
        open_certificates(config.Settings(), bind)
    allowed = config.Settings(server=ServerSettings(bind=bind, allow_plain_http=True))
    assert open_certificates(allowed, bind) is None
    assert choose_identity(allowed).is_join_needed


@pytest.mark.parametrize("bind", ["127.0.0.1:1", "[::1]:1", "localhost:1", ":1", "unix:///x"])
def test_loopback_and_unix_sockets_are_free(bind: str) -> None:
    settings = config.Settings(server=ServerSettings(bind=bind))
    assert open_certificates(settings, bind) is None
    assert not choose_identity(settings).is_join_needed
    asked = config.Settings(server=ServerSettings(bind=bind, join="token"))
    assert choose_identity(asked).is_join_needed


def test_half_of_tls_is_refused(place: Path) -> None:
    files = files_of(place)
    halves = [
        TlsSettings(cert_file=files.cert_file),
        TlsSettings(key_file=files.key_file),
        TlsSettings(verify_client="agents"),
        TlsSettings(ca_file=files.ca_file),
    ]
    for half in halves:
        with pytest.raises(BadRequest):
            open_certificates(config.Settings(tls=half), "127.0.0.1:0")
    whole = TlsSettings(cert_file=files.cert_file, key_file=files.key_file, ca_file=files.ca_file, verify_client="all")
    with pytest.raises(BadRequest, match="unix socket"):
        open_certificates(config.Settings(tls=whole), "unix:///x")
    settings = config.Settings(tls=whole)
    assert open_certificates(settings, "0.0.0.0:0") is not None
    assert choose_identity(settings).is_certificate_needed
    assert choose_identity(settings).is_join_needed
