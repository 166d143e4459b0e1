"""Settings: what a file, the environment and flags say, over the defaults. A flag wins over the environment, the
environment over the file, the file over the default.

Each setting is a field of a section in ``config_sections`` or ``config_security``, and a paragraph of that section's
docstring. ``SECTION.KEY`` in the file is ``MOORAGE_SECTION_KEY`` in the environment and ``--key`` among the flags (or
``--section-key`` where the section says so); ``docs/settings.md`` lists them all.
Units: a name that ends in ``_s`` holds seconds, one with ``bytes`` in it bytes.
Raises BadRequest that names the file, variable or flag, the key, and what is wrong with it.
Never: starts anything; knows what a setting does; shows a driver's environment.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import re
import shlex
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from moorage.config_sections import (
    PROGRAMS,
    SECTIONS,
    TABLES,
    AgentSettings,
    DriverTable,
    FencingSettings,
    PluginTable,
    ServerSettings,
    Settings,
)
from moorage.config_security import AuditSettings, LimitsSettings, SecretsSettings
from moorage.config_types import Section
from moorage.errors import BadRequest

__all__ = [
    "AgentSettings",
    "AuditSettings",
    "DriverTable",
    "FencingSettings",
    "LimitsSettings",
    "PluginTable",
    "SecretsSettings",
    "ServerSettings",
    "Setting",
    "Settings",
    "add_flags",
    "list_settings",
    "load",
    "read_file",
]

PREFIX = "MOORAGE_"
# An agent is a client too: what clients take from the environment it takes where nothing else says it.
_OF_CLIENTS = {
    "server": ("ADDR",),
    "ca_file": ("CACERT",),
    "cert_file": ("CLIENT_CERT",),
    "key_file": ("CLIENT_KEY",),
    "tls_server_name": ("TLS_SERVER_NAME",),
}
# The agent of `moorage dev` reaches its server without any connection.
_OF_AGENTS_ALONE = frozenset({*_OF_CLIENTS, "join_token_file"})


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One setting as the documentation has it. ``variable`` and ``flag`` are empty in tables."""

    section: str
    key: str
    kind: Any
    default: Any
    meaning: str
    unit: str = ""
    variable: str = ""
    flag: str = ""


def list_settings() -> tuple[Setting, ...]:
    """Every setting, in the order of the sections."""
    return tuple(setting for name, kind in {**SECTIONS, **TABLES}.items() for setting in _list_fields(name, kind))


def _list_fields(section: str, kind: type[Section]) -> Iterator[Setting]:
    paragraphs = dict(
        re.sub(r"\s+", " ", text).split(": ", 1) for text in inspect.cleandoc(kind.__doc__ or "").split("\n\n")[1:]
    )
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        is_table = section in TABLES
        yield Setting(
            section=section,
            key=field.name,
            kind=hints[field.name],
            default=None if field.required else field.default,
            meaning=paragraphs.get(field.name, ""),
            unit=_unit_of(field.name),
            variable="" if is_table else f"{PREFIX}{section}_{field.name}".upper(),
            flag="" if is_table else _flag_of(kind, section, field.name),
        )


def _unit_of(key: str) -> str:
    if key.endswith("_s"):
        return "seconds"
    return "bytes" if "_bytes_" in key else ""


def _flag_of(kind: type[Section], section: str, key: str) -> str:
    if key.endswith("_dirs"):
        return f"--{key[:-1].replace('_', '-')}"
    if kind.has_own_flags and key == "enabled":
        return f"--{section}"
    return "--" + (f"{section}_{key}" if kind.has_own_flags else key).replace("_", "-")


def _list_flags(program: str) -> Iterator[Setting]:
    taken: set[str] = set()
    for section in PROGRAMS[program]:
        for setting in _list_fields(section, SECTIONS[section]):
            if setting.flag not in taken and not (
                program == "dev" and section == "agent" and setting.key in _OF_AGENTS_ALONE
            ):
                taken.add(setting.flag)
                yield setting


# -- flags -----------------------------------------------------------------------------------------------------------


def add_flags(parser: argparse.ArgumentParser, program: Literal["server", "agent", "dev"]) -> None:
    """The flags of a program: ``--config`` and one for each of its settings."""
    parser.add_argument("--config", default=None, metavar="FILE", help=f"settings in TOML (or {PREFIX}CONFIG)")
    for setting in _list_flags(program):
        text = f"{setting.meaning} [{setting.section}.{setting.key}; default: {_show(setting.default)}]"
        words: dict[str, Any] = {"default": None, "dest": _dest_of(setting), "help": text.replace("%", "%%")}
        if setting.kind is bool:
            parser.add_argument(setting.flag, action=argparse.BooleanOptionalAction, **words)
        elif typing.get_origin(setting.kind) is tuple and setting.key != "hook":
            parser.add_argument(setting.flag, action="append", metavar=_metavar(setting), **words)
        elif choices := typing.get_args(setting.kind) if typing.get_origin(setting.kind) is Literal else ():
            parser.add_argument(setting.flag, choices=choices, **words)
        else:
            parser.add_argument(setting.flag, metavar=_metavar(setting), **words)


def _dest_of(setting: Setting) -> str:
    """The name under which argparse keeps a flag's value."""
    return setting.key if setting.key.endswith("_dirs") else setting.flag.removeprefix("--").replace("-", "_")


def _metavar(setting: Setting) -> str:
    if setting.key.endswith("_file"):
        return "FILE"
    if setting.unit:
        return setting.unit.upper()
    known = {
        "bind": "HOST:PORT", "server": "URL", "data_dir": "DIR", "plugin_id": "NAME", "file": "FILE", "hook": "COMMAND",
        "plugin_dirs": "DIR", "secret_dirs": "DIR", "secret_env": "NAME", "secret_credentials": "NAME",
    }  # fmt: skip
    return known.get(setting.key, "NUMBER" if isinstance(setting.default, (int, float)) else "TEXT")


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value else "none"


# -- loading ---------------------------------------------------------------------------------------------------------


def load(
    program: Literal["server", "agent", "dev"], args: argparse.Namespace, environ: Mapping[str, str] = os.environ
) -> Settings:
    """The settings of a program. Raises BadRequest."""
    path = args.config or environ.get(f"{PREFIX}CONFIG", "")
    data = read_file(Path(path)) if path else {}
    _check_variables(environ)
    for section, kind in SECTIONS.items():
        for setting in _list_fields(section, kind):
            value = _read_variable(setting, environ, data)
            if value is not None:
                data.setdefault(section, {})[setting.key] = value
    for setting in _list_flags(program):
        value = getattr(args, _dest_of(setting), None)
        if value is not None:
            data.setdefault(setting.section, {})[setting.key] = _convert(value, setting, setting.flag)
    settings = msgspec.convert(data, type=Settings)
    _check_names(settings)
    return settings


def read_file(path: Path) -> dict[str, Any]:
    """What a file sets, checked. Raises BadRequest that names the file and the key."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise BadRequest(f"settings file {path}: {e.strerror}") from e
    except ValueError as e:
        raise BadRequest(f"settings file {path} is not TOML: {e}") from e
    _check_keys(str(path), data, {**SECTIONS, **TABLES}, "")
    for section, kind in SECTIONS.items():
        if isinstance(data.get(section), dict):
            _check_keys(str(path), data[section], kind.__struct_fields__, f"{section}.")
    for table, kind in TABLES.items():
        for number, entry in enumerate(data[table] if isinstance(data.get(table), list) else ()):
            if isinstance(entry, dict):
                _check_keys(str(path), entry, kind.__struct_fields__, f"{table}[{number}].")
    try:
        msgspec.convert(data, type=Settings)
    except msgspec.ValidationError as e:
        what, _, place = str(e).partition(" - at `$.")
        raise BadRequest(
            f"settings file {path}: {place.rstrip('`') or 'the file'}: {what[:1].lower()}{what[1:]}"
        ) from e
    return data


def _check_keys(where: str, found: Mapping[str, Any], known: Mapping[str, Any] | Sequence[str], prefix: str) -> None:
    for key in found:
        if key not in known:
            raise BadRequest(f"settings file {where}: unknown key {prefix}{key}{_hint(key, known, prefix)}")


def _hint(key: str, known: Mapping[str, Any] | Sequence[str], prefix: str) -> str:
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.0)
    return f"; the nearest known one is {prefix}{near[0]}" if near else ""


def _check_variables(environ: Mapping[str, str]) -> None:
    """A variable that looks like a setting and is none is a slip of the pen."""
    known = [setting.variable for setting in list_settings() if setting.variable]
    known += [f"{PREFIX}{name}" for names in _OF_CLIENTS.values() for name in names]
    for name in sorted(environ):
        is_ours = any(name.startswith(f"{PREFIX}{section.upper()}_") for section in SECTIONS)
        if is_ours and name not in known:
            raise BadRequest(f"unknown variable {name}{_hint(name, known, '')}")


def _read_variable(setting: Setting, environ: Mapping[str, str], data: Mapping[str, Any]) -> Any:
    names = [setting.variable]
    if setting.section == "agent" and setting.key not in data.get("agent", {}):
        names += [f"{prefix}{name}" for name in _OF_CLIENTS.get(setting.key, ()) for prefix in (PREFIX, "NOMAD_")]
    for name in names:
        if text := environ.get(name, ""):
            return _convert(text, setting, name)
    return None


def _convert(value: Any, setting: Setting, where: str) -> Any:
    """A text from a variable or a flag as the setting's type."""
    if setting.key == "hook":
        value = _split_words(value, f"{where} ({setting.section}.{setting.key})")
    elif typing.get_origin(setting.kind) is tuple and isinstance(value, str):
        parts = value.split(os.pathsep if setting.key.endswith("_dirs") else ",")
        value = [part.strip() for part in parts if part.strip()]
    try:
        return msgspec.convert(value, type=setting.kind, strict=False)
    except msgspec.ValidationError as e:
        what = str(e)
        raise BadRequest(f"{where} ({setting.section}.{setting.key}): {what[:1].lower()}{what[1:]}") from e


def _split_words(text: str, where: str) -> list[str]:
    """A command line as words. Raises BadRequest."""
    try:
        return shlex.split(text)
    except ValueError as e:
        raise BadRequest(f"{where}: {str(e).lower()}") from e


def _check_names(settings: Settings) -> None:
    taken: set[str] = {settings.agent.plugin_id} - {""}
    if "/" in settings.agent.plugin_id:
        raise BadRequest(f"agent.plugin_id {settings.agent.plugin_id!r}: a name without / is needed")
    numbered: list[tuple[str, str, dict[str, str]]] = []
    for number, driver in enumerate(settings.driver):
        numbered.append((f"driver[{number}]", driver.name, {"socket": driver.socket, "socket_dir": driver.socket_dir}))
    for number, plugin in enumerate(settings.plugin):
        numbered.append((f"plugin[{number}]", plugin.name, {"socket": plugin.socket or "nothing"}))
    tables: tuple[DriverTable | PluginTable, ...] = (*settings.driver, *settings.plugin)
    for table in tables:
        for key in ("controller_calls_max", "node_calls_max"):
            if getattr(table, key) == 0:
                raise BadRequest(f"{table.name}: {key} 0 would forbid all calls; -1 is the agent's number")
    for where, name, paths in numbered:
        if not name or "/" in name:
            raise BadRequest(f"{where}.name {name!r}: a name without / is needed")
        if name in taken:
            raise BadRequest(f"{where}.name {name!r} is taken; give it another name")
        taken.add(name)
        for key, path in paths.items():
            if path and not path.startswith("/"):
                raise BadRequest(f"{where}.{key} {path!r} is not an absolute path")
