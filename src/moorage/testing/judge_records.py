"""What a judge writes down: the lines of its log, and requests without their secrets.

Shapes: a log is a file of JSON lines, each an ``Opened`` (a judge began), ``Started`` and ``Ended`` (of one call),
    or ``Gone`` (somebody's evidence that a node holds nothing any more). ``id`` counts from 1 after each ``Opened``.
    A message is a dict of its fields that are set, by their names in the protocol; numbers stand for enums.
Units:  times in nanoseconds since the epoch; deadlines in seconds.
Never:  a secret's value, as it is or as programs spell it: where one was, the log has ``[SECRET:key]``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from moorage.csi.client import SENSITIVE_FLAG, list_forms
from moorage.csi.proto import csi_pb2 as csi

Scope = Literal["whole", "part"]
SECRET_CHARS_MIN = 4
FLAGS = "mount_flags"
OPEN_STATUS = "UNFINISHED"
"""The status of a call of which the log has no end: the judge was killed."""
GIVEN_UP = "GIVEN_UP"
"""The status of a call whose caller did not wait for the answer: cancelled, disconnected, or past its deadline."""


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag="open", tag_field="kind"):
    """A judge began to listen. ``scope`` whole: it sees every call for its volumes; part: other judges see some."""

    at_ns: int
    judge: str
    driver: str
    scope: Scope
    boot_id: str


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="start", tag_field="kind"):
    """A call came. ``leaks`` names the fields in which a secret was where none belongs; ``users``: see judge_users."""

    at_ns: int
    id: int
    method: str
    deadline_s: float | None
    request: dict[str, Any]
    hash: str
    leaks: tuple[str, ...] = ()
    users: tuple[str, ...] = ()


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="end", tag_field="kind"):
    """A call was answered; ``status`` is the name of the gRPC status, or ``GIVEN_UP``."""

    at_ns: int
    id: int
    status: str
    answer: dict[str, Any]
    message: str = ""


class Gone(msgspec.Struct, frozen=True, kw_only=True, tag="gone", tag_field="kind"):
    """From now on the node (its ID for the driver) counts as holding nothing: it was fenced."""

    at_ns: int
    node_id: str
    reason: str


Line = Opened | Started | Ended | Gone
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode


class LogFile:
    """A log that is appended to, a line at a time; readable by its owner only."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, line: Line) -> None:
        """Append one line, in one write."""
        os.write(self._descriptor, _encode(line) + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_log(path: Path) -> Iterator[Line]:
    """The lines of a log. A last line that was cut short by a kill is left out. Raises ValueError for any other."""
    content = path.read_bytes().split(b"\n")
    for number, text in enumerate(content, start=1):
        if not text:
            continue
        try:
            yield _decode(text)
        except msgspec.DecodeError as error:
            if number == len(content):
                return
            raise ValueError(f"{path}:{number}: not a line of a judge's log: {error}") from error


class Redactor:
    """Makes dicts of messages, and remembers secrets that it has seen so as to know them elsewhere."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}

    def describe(self, message: Message) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The message as a dict, and the paths of the fields that held a secret without being marked for it."""
        self._learn(message)
        leaks: list[str] = []
        return self._dict(message, "", leaks), tuple(leaks)

    def clean(self, text: str) -> str:
        """``text`` with each known secret replaced."""
        for value in sorted(self._keys, key=len, reverse=True):
            text = text.replace(value, f"[SECRET:{self._keys[value]}]")
        return text

    def _learn(self, message: Message) -> None:
        for field, value in message.ListFields():
            if _is_secret(field):
                for key, secret in value.items():
                    self._keep(key, secret)
            elif field.name == FLAGS:
                for name, _, secret in (flag.partition("=") for flag in value):
                    if SENSITIVE_FLAG.search(name):
                        self._keep(name, secret)
            elif field.message_type is not None and not _is_map(field):
                for inner in value if field.is_repeated else (value,):
                    self._learn(inner)

    def _keep(self, key: str, secret: str) -> None:
        """Drivers' texts spell secrets in other ways too."""
        if len(secret) >= SECRET_CHARS_MIN:
            for form in list_forms(secret):
                self._keys.setdefault(form, key)

    def _dict(self, message: Message, path: str, leaks: list[str]) -> dict[str, Any]:
        described: dict[str, Any] = {}
        for field, value in message.ListFields():
            here = f"{path}{field.name}"
            if _is_secret(field):
                described[field.name] = {key: f"[SECRET:{key}]" for key in sorted(value)}
            elif field.name == FLAGS:
                # Not marked for secrets, and yet the place for some: the protocol warns of them.
                described[field.name] = [self.clean(flag) for flag in value]
            elif _is_map(field):
                found = cast("Mapping[str, str]", value)
                described[field.name] = {
                    self._scan(key, here, leaks): self._scan(found[key], f"{here}.{key}", leaks)
                    for key in sorted(found)
                }
            elif field.is_repeated:
                described[field.name] = [self._value(one, f"{here}[{n}]", leaks) for n, one in enumerate(value)]
            else:
                described[field.name] = self._value(value, here, leaks)
        return described

    def _value(self, value: Any, path: str, leaks: list[str]) -> Any:
        if isinstance(value, Message):
            return self._dict(value, f"{path}.", leaks)
        return self._scan(value, path, leaks) if isinstance(value, str) else value

    def _scan(self, text: str, path: str, leaks: list[str]) -> str:
        cleaned = self.clean(text)
        if cleaned != text:
            leaks.append(path)
        return cleaned


def hash_request(described: Mapping[str, Any]) -> str:
    """A short hash of a request without its secrets."""
    content = {key: value for key, value in described.items() if key != "secrets"}
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()[:16]


def _is_secret(field: FieldDescriptor) -> bool:
    extension: Any = csi.csi_secret
    return bool(field.GetOptions().Extensions[extension])


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)
