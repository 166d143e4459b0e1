"""Where the keys of the seal are read from and written to: files, credentials of the service, the environment.

Never: shows a key; makes a key where sealed records wait for another one.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from moorage.config import SecretsSettings
from moorage.errors import BadRequest, StoreUnavailable
from moorage.state.keyring import KEY_BYTES, Keyring, SealKey, join_keys, make_key, parse_keys, write_key
from moorage.state.resealing import find_sealed
from moorage.state.store import Store
from moorage.syncing import sync_directory

KEY_FILE = "secret.key"
FILE_BYTES_MAX = 64 << 10
_HEAD = (
    "# Keys that seal the secrets in moorage's records. The first one seals, the others only open. Back this file up\n"
)
_HEAD += "# apart from the records: who has both can read every secret, who has lost it can read none.\n"


class KeyPlace:
    """One place of keys, in the spelling of the settings. Raises BadRequest for one that is none."""

    def __init__(self, text: str, setting: str, environ: Mapping[str, str]) -> None:
        kind, _, name = text.partition(":")
        self.text = text
        self._setting = setting
        self._environ = environ
        self.path: Path | None = None
        self.is_ours = False
        if kind == "file" and name.startswith("/"):
            self.path, self.is_ours = Path(name), True
        elif kind == "credential" and name and "/" not in name:
            directory = environ.get("CREDENTIALS_DIRECTORY", "")
            if not directory:
                raise BadRequest(
                    f"{setting} {text}: $CREDENTIALS_DIRECTORY is not set: start the service by systemd with "
                    f"LoadCredential={name}:/PATH"
                )
            self.path = Path(directory) / name
        elif not (kind == "env" and name):
            raise BadRequest(f"{setting} {text!r} is none of file:/PATH, credential:NAME, env:NAME")

    def read(self) -> tuple[SealKey, ...]:
        """The keys there. Raises BadRequest."""
        if self.path is None:
            name = self.text.partition(":")[2]
            text = self._environ.get(name, "")
            if not text:
                raise BadRequest(f"{self._setting} {self.text}: the variable is not set")
            return parse_keys(text, f"{self._setting} {self.text}")
        try:
            with self.path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                data = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise BadRequest(f"{self._setting} {self.text}: {error.strerror}") from error
        if self.is_ours and stat.S_IMODE(mode) & 0o077:
            raise BadRequest(f"{self._setting} {self.text}: others than its owner may read it: `chmod 600 {self.path}`")
        if len(data) > FILE_BYTES_MAX:
            raise BadRequest(f"{self._setting} {self.text}: larger than {FILE_BYTES_MAX} bytes, so it is no key file")
        return parse_keys(data.decode("utf-8", "replace"), f"{self._setting} {self.text}")

    def exists(self) -> bool:
        """Whether there is something there."""
        if self.path is None:
            return bool(self._environ.get(self.text.partition(":")[2], ""))
        return self.path.exists()

    def write(self, keys: tuple[SealKey, ...]) -> None:
        """Put these keys there, whole or not at all, for the owner only. Raises BadRequest."""
        assert self.path is not None
        part = self.path.with_name(self.path.name + ".new")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(_HEAD + "".join(f"{write_key(key)}  # {key.id}\n" for key in keys))
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path)
            sync_directory(self.path.parent)
        except OSError as error:
            raise BadRequest(f"{self._setting} {self.text} cannot be written: {error.strerror}") from error


class Keys:
    """The keys that settings name. A ``state.resealing.KeySource``."""

    def __init__(self, settings: SecretsSettings, data_dir: Path, environ: Mapping[str, str] = os.environ) -> None:
        given = settings.key or f"file:{data_dir / KEY_FILE}"
        self._lost = settings.lost_keys
        self._place = KeyPlace(given, "secrets.key", environ)
        self._old = [KeyPlace(text, "secrets.old_keys", environ) for text in settings.old_keys]

    def load(self) -> Keyring:
        """See ``KeySource.load``."""
        return join_keys(self._place.read(), [key for place in self._old for key in place.read()], self._lost)

    def renew(self) -> Keyring:
        """See ``KeySource.renew``: a file gets a new first line; of other places the operator is in charge."""
        if self._place.is_ours:
            self._place.write((make_key(secrets.token_bytes(KEY_BYTES)), *self._place.read()))
        return self.load()

    def describe(self) -> str:
        """See ``KeySource.describe``."""
        return self._place.text

    def describe_removal(self, key_ids: tuple[str, ...]) -> str:
        """See ``KeySource.describe_removal``."""
        what = "its line" if len(key_ids) == 1 else "their lines"
        more = " and from secrets.old_keys" if self._old else ""
        return f"take {what} out of {self._place.text}{more}; backups from before need it still"

    async def open(self, store: Store) -> Keyring:
        """The keys for a store; a first key is made where there is none and nothing is sealed yet.

        Raises BadRequest, and StoreUnavailable where the key of sealed records is missing.
        """
        if self._place.is_ours and not self._place.exists():
            record, key_id = await find_sealed(store)
            if key_id and key_id not in self._lost:
                raise StoreUnavailable(
                    f"{self._place.text} is missing, and records are sealed with key {key_id} ({record} is one): put "
                    "the file back from its backup. Nothing was changed, and no new key was made. If the key is lost "
                    f'for good, secrets.lost_keys = ["{key_id}"] gives up what it sealed and keeps the records',
                    code="key_missing",
                    key_id=key_id,
                )
            self._place.write((make_key(secrets.token_bytes(KEY_BYTES)),))
        return self.load()
