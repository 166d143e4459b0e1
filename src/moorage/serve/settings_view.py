"""The settings in force, for people who help: what may be a secret is redacted. Never: a value of an environment."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from moorage.config import Settings

REDACTED = "[REDACTED]"
_SENSITIVE = re.compile(r"pass|secret|token|cred|key|auth", re.IGNORECASE)
_COMMANDS = frozenset({"command", "hook"})
# Keys that look sensitive and hold places or names, never values.
_PLACES = re.compile(r"(_dirs?|_env|_credentials|_files?|_s|_keys|_ids?)$|^key$|^secrets$")


def show_settings(settings: Settings) -> dict[str, Any]:
    """The settings as plain data, redacted."""
    found: dict[str, Any] = _show(msgspec.to_builtins(settings))
    return found


def _show(value: Any, key: str = "") -> Any:
    if key == "environment" and isinstance(value, dict):
        return dict.fromkeys(value, REDACTED)
    if isinstance(value, dict):
        return {name: _show(inner, name) for name, inner in value.items()}
    if key in _COMMANDS and isinstance(value, (list, tuple)):
        return redact_command(value)
    if isinstance(value, (list, tuple)):
        return [_show(inner, key) for inner in value]
    if isinstance(value, str) and value and _SENSITIVE.search(key) and not _PLACES.search(key):
        return REDACTED
    return value


def redact_command(words: Sequence[str]) -> list[str]:
    """A command line without the values of flags whose names sound like secrets."""
    shown: list[str] = []
    is_value = False
    for word in words:
        name, equals, _ = word.partition("=")
        if is_value and not word.startswith("-"):
            shown.append(REDACTED)
        elif equals and _SENSITIVE.search(name):
            shown.append(f"{name}={REDACTED}")
        else:
            shown.append(word)
        is_value = not equals and word.startswith("-") and _SENSITIVE.search(word) is not None
    return shown
