"""Reading what secrets refer to, on the host that makes the driver call, at the moment of the call.

Only what this host's settings allow is read, so that who may write to the API cannot read the host through a driver.
What was read lives as long as the call. Never: content in a text or a log; waits longer than the deadline.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping

import anyio
import anyio.to_thread
import msgspec
import structlog

from moorage.agent.calls import failed
from moorage.agent.ports import AgentSettings, Driver, DriverFacts
from moorage.errors import BadRequest, Rejected
from moorage.model.secret_refs import Reference, parse_reference, read_literal
from moorage.model.steps import ListSnapshots, Outcome, Step, ValidateVolume
from moorage.model.volume import Secrets

log = structlog.get_logger()
VALUE_BYTES_MAX = 64 << 10
STATUS = "secret_unavailable"
# Reads that hang on a dead filesystem keep their thread; others are read beside them until so many hang.
READS_MAX = 16


class SecretReader:
    """What this host lets secrets refer to."""

    def __init__(self, settings: AgentSettings, environ: Mapping[str, str] = os.environ) -> None:
        self._dirs = settings.secret_dirs
        self._env = frozenset(settings.secret_env)
        self._credentials = frozenset(settings.secret_credentials)
        self._timeout_s = settings.secret_read_s
        self._environ = environ
        self._reads = anyio.CapacityLimiter(READS_MAX)

    async def resolve(self, secrets: Secrets) -> Secrets:
        """The secrets with what they refer to. Raises Rejected that names the reference and what to do."""
        references = {key: ref for key, value in secrets.values.items() if (ref := _parse(key, value)) is not None}
        values = {k: read_literal(v) for k, v in secrets.values.items() if k not in references}
        if not references:
            return Secrets(values)
        found: dict[str, str] | None = None
        with anyio.move_on_after(self._timeout_s):
            found = await anyio.to_thread.run_sync(
                self._read_all, references, limiter=self._reads, abandon_on_cancel=True
            )
        if found is None:
            names = ", ".join(sorted(map(str, references.values())))
            raise Rejected(f"reading {names} took longer than {self._timeout_s:g} s (agent.secret_read_s)", code=STATUS)
        return Secrets(values | found)

    def _read_all(self, references: Mapping[str, Reference]) -> dict[str, str]:
        return {key: self._read(key, reference) for key, reference in references.items()}

    def _read(self, key: str, reference: Reference) -> str:
        try:
            data = self._read_bytes(reference)
            if len(data) > VALUE_BYTES_MAX:
                raise Rejected(f"it is larger than {VALUE_BYTES_MAX} bytes")
            return data.removesuffix(b"\n").decode()
        except UnicodeDecodeError:
            reason = "it is not UTF-8"
        except OSError as error:
            reason = f"{error.strerror}"
        except Rejected as error:
            reason = error.message
        raise Rejected(f'secret "{key}" ({reference}) cannot be read on this host: {reason}', code=STATUS)

    def _read_bytes(self, reference: Reference) -> bytes:
        name = reference.name
        if reference.kind == "file":
            return self._read_file(name, self._dirs, "agent.secret_dirs")
        if reference.kind == "env":
            if name not in self._env:
                raise Rejected("the variable is not in this host's agent.secret_env")
            if name not in self._environ:
                raise Rejected("the variable is not set")
            return os.fsencode(self._environ[name])
        if name not in self._credentials:
            raise Rejected("the credential is not in this host's agent.secret_credentials")
        directory = self._environ.get("CREDENTIALS_DIRECTORY", "")
        if not directory:
            raise Rejected(f"the agent runs without credentials: start it by systemd with LoadCredential={name}:/PATH")
        return self._read_file(f"{directory}/{name}", (directory,), "$CREDENTIALS_DIRECTORY")

    def _read_file(self, path: str, dirs: tuple[str, ...], where: str) -> bytes:
        # What is opened is what is checked, so that a link changed in between leads nowhere else. Nothing waits for a
        # pipe's other end.
        bases = [os.path.realpath(base) for base in dirs]
        if not _is_below(os.path.normpath(path), (*bases, *map(os.path.normpath, dirs))):
            raise Rejected(f"the file is in none of this host's {where}")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb") as file:
            real = os.readlink(f"/proc/self/fd/{descriptor}")
            if not _is_below(real, bases):
                raise Rejected(f"it leads out of this host's {where}")
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Rejected("it is not a plain file")
            return file.read(VALUE_BYTES_MAX + 1)


def _is_below(path: str, bases: Iterable[str]) -> bool:
    return any(os.path.commonpath((path, base)) == base for base in bases)


def _parse(key: str, value: str) -> Reference | None:
    try:
        return parse_reference(value)
    except BadRequest as error:
        raise Rejected(f'secret "{key}": {error.message}', code=STATUS) from error


class ReadingDriver:
    """A driver that gets its secrets read. A ``Driver``."""

    def __init__(self, driver: Driver, reader: SecretReader) -> None:
        self._driver = driver
        self._reader = reader

    async def open(self) -> None:
        """See ``Driver.open``."""
        await self._driver.open()

    async def close(self) -> None:
        """See ``Driver.close``."""
        await self._driver.close()

    def is_connected(self) -> bool:
        """See ``Driver.is_connected``."""
        return self._driver.is_connected()

    async def probe(self, *, timeout_s: float) -> DriverFacts:
        """See ``Driver.probe``."""
        return await self._driver.probe(timeout_s=timeout_s)

    async def run(self, step: Step, *, timeout_s: float) -> Outcome:
        """See ``Driver.run``. A secret that cannot be read is Failed, and the driver is not called.

        Not for good, because an earlier call of the step may have had an effect; but for one that only asks it is.
        """
        secrets: Secrets | None = getattr(step, "secrets", None)
        if secrets is not None and secrets.values:
            try:
                resolved = await self._reader.resolve(secrets)
            except Rejected as error:
                log.warning("secret.unavailable", step=type(step).__name__, error=error.message)
                is_final = isinstance(step, (ListSnapshots, ValidateVolume))
                return failed(step, STATUS, error.message, at_ns=0, is_final=is_final)
            if resolved != secrets:
                step = msgspec.structs.replace(step, secrets=resolved)
        return await self._driver.run(step, timeout_s=timeout_s)
