"""TLS of the API: one context that always shows the newest good certificate, without a restart.

Files are looked at every second and on SIGHUP. What cannot be used is refused with a line in the log, and what was
there stays. Connections that are open go on with what they began with.
Source: RFC 8446; RFC 9325 (what to offer); OpenSSL SSL_set_SSL_CTX.
"""

from __future__ import annotations

import os
import signal
import ssl
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.to_thread
import msgspec
import structlog
from anyio.abc import TaskStatus

from moorage.client.tls import Stamp, stamp_files
from moorage.errors import BadRequest
from moorage.model.identity import Peer

log = structlog.get_logger()

LOOK_S = 1.0
SOON_S = 30 * 86400.0
AGENT_URI = "moorage://agent/"
# Forward secrecy and authenticated encryption only; TLS 1.3 has nothing else.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
VerifyClient = Literal["no", "agents", "all"]


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Paths. ``ca_file``: the CA of client certificates, needed where any is asked for (``verify_client``)."""

    cert_file: str
    key_file: str
    ca_file: str = ""
    verify_client: VerifyClient = "no"


class Loaded(msgspec.Struct, frozen=True):
    """A context, and until when its certificate counts, in seconds since the epoch."""

    context: ssl.SSLContext
    expires_s: float


def make_context(files: TlsFiles) -> Loaded:
    """A server's context from files. Blocks. Raises BadRequest that names the file and what is wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    # A session that is taken up again would not look at the client's certificate anew.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    _check_key_file(files.key_file)
    expires_s = _read_expiry(files.cert_file)
    try:
        context.load_cert_chain(files.cert_file, files.key_file, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        found = str(error)
        text = "the key is not the certificate's" if "MISMATCH" in found else found
        text = "one of them is not in PEM" if "PEM lib" in found else text
        raise BadRequest(f"tls.cert_file {files.cert_file} with tls.key_file {files.key_file}: {text}") from error
    if files.ca_file:
        try:
            context.load_verify_locations(cafile=files.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise BadRequest(f"tls.ca_file {files.ca_file}: {_reason(error)}") from error
    if files.verify_client != "no":
        if not files.ca_file:
            raise BadRequest("tls.verify_client needs tls.ca_file, the CA that client certificates are signed by")
        context.verify_mode = ssl.CERT_REQUIRED if files.verify_client == "all" else ssl.CERT_OPTIONAL
    return Loaded(context, expires_s)


def _no_password() -> str:
    raise ssl.SSLError("the key is encrypted with a password; one without is needed, in a file of mode 0600")


def _check_key_file(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise BadRequest(f"tls.key_file {path}: {_reason(error)}") from error
    if mode & 0o007:
        raise BadRequest(f"tls.key_file {path}: everybody on this host may read it; `chmod 600 {path}`")


def _read_expiry(path: str) -> float:
    """Until when a certificate counts. Raises BadRequest."""
    from cryptography import x509  # late: it takes 40 ms, and not every server has TLS

    try:
        certificate = x509.load_pem_x509_certificate(Path(path).read_bytes())
    except OSError as error:
        raise BadRequest(f"tls.cert_file {path}: {_reason(error)}") from error
    except ValueError as error:
        raise BadRequest(f"tls.cert_file {path}: it holds no certificate in PEM ({error})") from error
    return certificate.not_valid_after_utc.timestamp()


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def find_peer(certificate: Mapping[str, Any] | None) -> Peer:
    """Whose verified certificate it is, from ``getpeercert()``: an agent's names its node in a URI."""
    if not certificate:
        return Peer()
    uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    names = tuple(uri.removeprefix(AGENT_URI) for uri in uris if uri.startswith(AGENT_URI))
    return Peer(has_certificate=True, agents=tuple(name for name in names if name))


class Certificates:
    """The certificate that is shown to whoever connects now. ``context`` is for the listener; ``run`` must be running
    for changes to be noticed. Raises BadRequest for files that cannot be used."""

    def __init__(self, files: TlsFiles, *, clock: Callable[[], float] = time.time) -> None:
        self._files = files
        self._clock = clock
        self._stamp = self._look()
        loaded = make_context(files)
        self._tell(loaded)
        self._newest = loaded.context
        # The listener keeps its context for ever: its handshakes take the newest one's certificate and CA.
        self.context = make_context(files).context
        self.context.sni_callback = self._choose

    def _choose(self, connection: Any, server_name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._newest

    def _look(self) -> Stamp:
        return stamp_files((self._files.cert_file, self._files.key_file, self._files.ca_file))

    def _tell(self, loaded: Loaded) -> None:
        left_s = loaded.expires_s - self._clock()
        until = datetime.fromtimestamp(loaded.expires_s, UTC).isoformat()
        if left_s <= 0:
            log.error("tls.expired", cert_file=self._files.cert_file, until=until)
        elif left_s < SOON_S:
            log.warning("tls.expires_soon", cert_file=self._files.cert_file, until=until)
        else:
            log.info("tls.loaded", cert_file=self._files.cert_file, until=until)

    def reload(self, *, is_forced: bool = False) -> bool:
        """Take what the files hold now, if it is new (or ``is_forced``) and good. Blocks. Returns whether it did."""
        stamp = self._look()
        if stamp == self._stamp and not is_forced:
            return False
        self._stamp = stamp
        try:
            loaded = make_context(self._files)
            if loaded.expires_s <= self._clock():
                raise BadRequest(f"tls.cert_file {self._files.cert_file}: the certificate has expired")
        except BadRequest as error:
            log.error("tls.reload_refused", error=error.message, kept="the certificate that was there")
            return False
        self._newest = loaded.context
        self._tell(loaded)
        return True

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Look at the files every second, and at once on SIGHUP, until cancelled."""
        with anyio.open_signal_receiver(signal.SIGHUP) as signals:
            async with anyio.create_task_group() as group:

                async def look_on_signal() -> None:
                    async for _ in signals:
                        await anyio.to_thread.run_sync(lambda: self.reload(is_forced=True))

                group.start_soon(look_on_signal)
                task_status.started()
                while True:
                    await anyio.sleep(LOOK_S)
                    await anyio.to_thread.run_sync(self.reload)
