"""Settings: what a file, the environment and flags say, over the defaults. A flag wins over the environment, the
environment over the file, the file over the default.

Each setting is a field of a section below and a paragraph of that section's docstring. ``SECTION.KEY`` in the file
is ``MOORAGE_SECTION_KEY`` in the environment and ``--key`` among the flags; ``docs/settings.md`` lists them all.
Units: a name that ends in ``_s`` holds seconds.
Raises BadRequest that names the file, variable or flag, the key, and what is wrong with it.
Never: starts anything; knows what a setting does; shows a driver's environment.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from moorage.errors import BadRequest

PREFIX = "MOORAGE_"
Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e9)]
LogLevel = Literal["debug", "info", "warning", "error"]
Role = Literal["detected", "controller", "node", "monolith"]
Takeover = Literal["evidence", "timeout"]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class ServerSettings(_Section, frozen=True, kw_only=True):
    """``[server]``: the records and the API; ``moorage server`` and ``moorage dev`` read it.

    bind: where the API is served, as HOST:PORT; port 0 takes a free one.

    data_dir: the directory of the records, which belongs to this user alone; empty: below $XDG_STATE_HOME.

    log_level: which events are logged to stderr: this level and those above it.
    """

    bind: str = "127.0.0.1:4646"
    data_dir: str = ""
    log_level: LogLevel = "info"


class AgentSettings(_Section, frozen=True, kw_only=True):
    """``[agent]``: mounting on this host; ``moorage agent`` and ``moorage dev`` read it.

    server: the server's address, as URL. Where it is not set, MOORAGE_ADDR and NOMAD_ADDR are asked too.

    data_dir: the directory of the journal and of the mounts that drivers make; a short path, because drivers get
    paths below it that may have 127 bytes; empty: below $XDG_STATE_HOME.

    log_level: which events are logged to stderr: this level and those above it.

    plugin_id: the plugin ID under which the embedded driver runs here; empty: it does not run (except that `moorage
    dev` then calls it local).

    plugin_dirs: directories in which drivers' sockets are found: DIR/NAME.sock and DIR/NAME/csi.sock are the plugin
    NAME. In the environment, separated by colons; among the flags, one --plugin-dir each.

    plugin_gone_s: for how long a socket file may be missing from its directory until the plugin is forgotten; it is
    sick from the first second on, and it is kept as long as something of it is mounted here.

    self_fence: end the writers and unmount everything when the lease cannot be renewed in time, so that the server may
    give this node's volumes to others after the grace without asking anybody.

    clean_first_s: how long a start waits for mounts to go that are not this node's own any more.

    retry_cap_s: the longest pause before a failed step, or a release that somebody's use holds up, is tried again.

    mount_probe_s: the pause between looks for mounts whose server died.

    mount_hang_s: how long a good mount may take to answer such a look.
    """

    server: str = "http://127.0.0.1:4646"
    data_dir: str = ""
    log_level: LogLevel = "info"
    plugin_id: str = ""
    plugin_dirs: tuple[str, ...] = ()
    plugin_gone_s: Positive = 30.0
    self_fence: bool = False
    clean_first_s: Positive = 120.0
    retry_cap_s: Positive = 30.0
    mount_probe_s: Positive = 1.0
    mount_hang_s: Positive = 2.5


class FencingSettings(_Section, frozen=True, kw_only=True):
    """``[fencing]``: lost nodes; ``moorage server`` and ``moorage dev`` read it.

    lease_s: how long a node may be silent until it counts as lost.

    grace_s: how long after that until its readers are freed, and until a self-fencing agent has let go of everything.

    takeover: what frees the writers of a lost node: evidence that it can write no more, or, with timeout, the end of
    the grace alone, which risks two writers at once.
    """

    lease_s: Positive = 10.0
    grace_s: Positive = 30.0
    takeover: Takeover = "evidence"


class DriverTable(_Section, frozen=True, kw_only=True):
    """``[[driver]]``: a driver that the agent runs and starts again; ``moorage agent`` and ``moorage dev`` read it.

    name: its plugin ID.

    command: the program and its arguments. CSI_ENDPOINT names the socket in its environment.

    environment: variables beside those of the agent.

    socket: where it listens; an absolute path.

    socket_dir: the directory in which it listens at csi.sock, instead of socket; without either, one below data_dir.

    role: what it is to serve: detected takes whatever it answers to; controller and node only that; monolith both.

    restart_first_s: the pause before it is started again; it doubles with each end.

    restart_cap_s: the longest such pause.

    steady_s: after how long a run the pause begins anew with the first.

    stop_s: how long it may take to end after SIGTERM until it gets SIGKILL.
    """

    name: str
    command: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    environment: dict[str, str] = {}
    socket: str = ""
    socket_dir: str = ""
    role: Role = "detected"
    restart_first_s: Positive = 0.2
    restart_cap_s: Positive = 10.0
    steady_s: Positive = 30.0
    stop_s: Positive = 5.0


class PluginTable(_Section, frozen=True, kw_only=True):
    """``[[plugin]]``: a driver that somebody else runs; ``moorage agent`` and ``moorage dev`` read it. The flag is
    --plugin NAME=unix:///SOCKET.

    name: its plugin ID.

    socket: where it listens; an absolute path.

    role: what it is to serve: detected takes whatever it answers to; controller and node only that; monolith both.
    """

    name: str
    socket: str
    role: Role = "detected"


class Settings(_Section, frozen=True, kw_only=True):
    """All settings; the tables by their position in the file."""

    server: ServerSettings = ServerSettings()
    agent: AgentSettings = AgentSettings()
    fencing: FencingSettings = FencingSettings()
    driver: tuple[DriverTable, ...] = ()
    plugin: tuple[PluginTable, ...] = ()


SECTIONS: dict[str, type[_Section]] = {"server": ServerSettings, "agent": AgentSettings, "fencing": FencingSettings}
TABLES: dict[str, type[_Section]] = {"driver": DriverTable, "plugin": PluginTable}
# Which settings are flags of which program. Where two sections have a key, a program has the flag of one of them.
_PROGRAMS: dict[str, tuple[str, ...]] = {
    "server": ("server", "fencing"),
    "agent": ("agent",),
    "dev": ("server", "fencing", "agent"),
}
_ADDRESSES = (f"{PREFIX}ADDR", "NOMAD_ADDR")
_UNITS = {"s": "seconds"}


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


def _list_fields(section: str, kind: type[_Section]) -> Iterator[Setting]:
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
            unit=_UNITS.get(field.name.rpartition("_")[2], ""),
            variable="" if is_table else f"{PREFIX}{section}_{field.name}".upper(),
            flag="" if is_table else _flag_of(field.name),
        )


def _flag_of(key: str) -> str:
    return "--plugin-dir" if key == "plugin_dirs" else f"--{key.replace('_', '-')}"


def _list_flags(program: str) -> Iterator[Setting]:
    taken: set[str] = set()
    for section in _PROGRAMS[program]:
        for setting in _list_fields(section, SECTIONS[section]):
            if setting.key not in taken and (program, setting.key) != ("dev", "server"):
                taken.add(setting.key)
                yield setting


# -- flags -----------------------------------------------------------------------------------------------------------


def add_flags(parser: argparse.ArgumentParser, program: Literal["server", "agent", "dev"]) -> None:
    """The flags of a program: ``--config`` and one for each of its settings."""
    parser.add_argument("--config", default=None, metavar="FILE", help=f"settings in TOML (or {PREFIX}CONFIG)")
    for setting in _list_flags(program):
        text = f"{setting.meaning} [{setting.section}.{setting.key}; default: {_show(setting.default)}]"
        words: dict[str, Any] = {"default": None, "dest": setting.key, "help": text.replace("%", "%%")}
        if setting.kind is bool:
            parser.add_argument(setting.flag, action=argparse.BooleanOptionalAction, **words)
        elif setting.key == "plugin_dirs":
            parser.add_argument(setting.flag, action="append", metavar="DIR", **words)
        elif choices := typing.get_args(setting.kind) if typing.get_origin(setting.kind) is Literal else ():
            parser.add_argument(setting.flag, choices=choices, **words)
        else:
            parser.add_argument(setting.flag, metavar=_metavar(setting), **words)


def _metavar(setting: Setting) -> str:
    return {"bind": "HOST:PORT", "server": "URL", "data_dir": "DIR", "plugin_id": "NAME"}.get(setting.key, "SECONDS")


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
        value = getattr(args, setting.key, None)
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
    for name in sorted(environ):
        is_ours = any(name.startswith(f"{PREFIX}{section.upper()}_") for section in SECTIONS)
        if is_ours and name not in known:
            raise BadRequest(f"unknown variable {name}{_hint(name, known, '')}")


def _read_variable(setting: Setting, environ: Mapping[str, str], data: Mapping[str, Any]) -> Any:
    names = [setting.variable]
    if (setting.section, setting.key) == ("agent", "server") and "server" not in data.get("agent", {}):
        names += _ADDRESSES
    for name in names:
        if text := environ.get(name, ""):
            return _convert(text, setting, name)
    return None


def _convert(value: Any, setting: Setting, where: str) -> Any:
    """A text from a variable or a flag as the setting's type."""
    if setting.key == "plugin_dirs" and isinstance(value, str):
        value = [part for part in value.split(os.pathsep) if part]
    try:
        return msgspec.convert(value, type=setting.kind, strict=False)
    except msgspec.ValidationError as e:
        what = str(e)
        raise BadRequest(f"{where} ({setting.section}.{setting.key}): {what[:1].lower()}{what[1:]}") from e


def _check_names(settings: Settings) -> None:
    taken: set[str] = {settings.agent.plugin_id} - {""}
    if "/" in settings.agent.plugin_id:
        raise BadRequest(f"agent.plugin_id {settings.agent.plugin_id!r}: a name without / is needed")
    numbered: list[tuple[str, str, dict[str, str]]] = []
    for number, driver in enumerate(settings.driver):
        numbered.append((f"driver[{number}]", driver.name, {"socket": driver.socket, "socket_dir": driver.socket_dir}))
    for number, plugin in enumerate(settings.plugin):
        numbered.append((f"plugin[{number}]", plugin.name, {"socket": plugin.socket or "nothing"}))
    for where, name, paths in numbered:
        if not name or "/" in name:
            raise BadRequest(f"{where}.name {name!r}: a name without / is needed")
        if name in taken:
            raise BadRequest(f"{where}.name {name!r} is taken; give it another name")
        taken.add(name)
        for key, path in paths.items():
            if path and not path.startswith("/"):
                raise BadRequest(f"{where}.{key} {path!r} is not an absolute path")
