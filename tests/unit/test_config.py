"""Settings: where they come from, which wins, what is refused, and that docs/settings.md tells them all."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

import pytest

from moorage import config
from moorage.config import Setting
from moorage.errors import BadRequest

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
Program = Literal["server", "agent", "dev"]


def load(program: Program, *words: str, environ: dict[str, str] | None = None) -> config.Settings:
    parser = argparse.ArgumentParser()
    config.add_flags(parser, program)
    return config.load(program, parser.parse_args(words), environ or {})


def write(path: Path, text: str) -> str:
    file = path / "moorage.toml"
    file.write_text(text)
    return str(file)


def test_without_anything_the_defaults_hold() -> None:
    assert load("server") == load("agent") == load("dev") == config.Settings()


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    file = write(tmp_path, "[fencing]\nlease_s = 11\n[server]\nbind = 'file:1'\n")
    environ = {"MOORAGE_FENCING_LEASE_S": "12"}
    assert load("server", "--config", file).fencing.lease_s == 11.0
    assert load("server", "--config", file, environ=environ).fencing.lease_s == 12.0
    assert load("server", "--config", file, "--lease-s", "13", environ=environ).fencing.lease_s == 13.0
    assert load("server", "--config", file, "--lease-s", "13", environ=environ).server.bind == "file:1"
    assert load("server", environ={"MOORAGE_CONFIG": file}).fencing.lease_s == 11.0


def test_every_kind_of_value_comes_from_the_environment_and_from_flags() -> None:
    environ = {
        "MOORAGE_AGENT_SELF_FENCE": "true",
        "MOORAGE_AGENT_PLUGIN_DIRS": "/a:/b",
        "MOORAGE_AGENT_LOG_LEVEL": "debug",
    }
    found = load("agent", environ=environ).agent
    assert (found.self_fence, found.plugin_dirs, found.log_level) == (True, ("/a", "/b"), "debug")
    found = load("agent", "--no-self-fence", "--plugin-dir", "/c", "--plugin-dir", "/d:e", environ=environ).agent
    assert (found.self_fence, found.plugin_dirs) == (False, ("/c", "/d:e"))


def test_the_server_is_also_found_by_the_addresses_that_clients_know(tmp_path: Path) -> None:
    environ = {"NOMAD_ADDR": "http://n"}
    assert load("agent", environ=environ).agent.server == "http://n"
    environ["MOORAGE_ADDR"] = "http://m"
    assert load("agent", environ=environ).agent.server == "http://m"
    file = write(tmp_path, "[agent]\nserver = 'http://file'\n")
    assert load("agent", "--config", file, environ=environ).agent.server == "http://file"
    environ["MOORAGE_AGENT_SERVER"] = "http://own"
    assert load("agent", "--config", file, environ=environ).agent.server == "http://own"


def test_an_agent_takes_certificates_where_clients_do(tmp_path: Path) -> None:
    environ = {"NOMAD_CACERT": "/ca", "NOMAD_CLIENT_CERT": "/cert", "NOMAD_CLIENT_KEY": "/key"}
    environ["NOMAD_TLS_SERVER_NAME"] = "storage"
    agent = load("agent", environ=environ).agent
    assert (agent.ca_file, agent.cert_file, agent.key_file, agent.tls_server_name) == (
        "/ca",
        "/cert",
        "/key",
        "storage",
    )
    # [tls] is the server's: this one is no slip of the pen for a setting of it.
    environ["MOORAGE_TLS_SERVER_NAME"] = "other"
    assert load("agent", environ=environ).agent.tls_server_name == "other"
    file = write(tmp_path, "[agent]\nca_file = '/file'\n")
    assert load("agent", "--config", file, environ=environ).agent.ca_file == "/file"
    with pytest.raises(BadRequest, match="MOORAGE_TLS_CERT"):
        load("agent", environ={"MOORAGE_TLS_CERT": "x"})


def test_tables(tmp_path: Path) -> None:
    text = """
[[driver]]
name = "nfs"
command = ["nfs-driver", "--node", "a"]
environment = { KEY = "value" }
socket_dir = "/run/nfs"
role = "node"
restart_cap_s = 3
[[plugin]]
name = "ceph"
socket = "/run/ceph/csi.sock"
"""
    found = load("agent", "--config", write(tmp_path, text))
    (driver,), (plugin,) = found.driver, found.plugin
    assert (driver.command, driver.role, driver.restart_cap_s) == (("nfs-driver", "--node", "a"), "node", 3.0)
    assert (plugin.socket, plugin.role) == ("/run/ceph/csi.sock", "detected")


DRIVER = "[[driver]]\nname = 'a'\ncommand = ['x']\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[fencing]\nlease = 1\n", "unknown key fencing.lease; the nearest known one is fencing.lease_s"),
        ("[fence]\n", "unknown key fence; the nearest known one is fencing"),
        (
            "[[driver]]\nname = 'a'\ncomand = []\n",
            "unknown key driver[0].comand; the nearest known one is driver[0].command",
        ),
        ("[fencing]\nlease_s = 'soon'\n", "fencing.lease_s: expected `float`, got `str`"),
        ("[fencing]\nlease_s = 0\n", "fencing.lease_s: expected `float` > 0"),
        ("[fencing]\ntakeover = 'never'\n", "fencing.takeover: invalid enum value 'never'"),
        ("server = 1\n", "server: expected `object`, got `int`"),
        ("[[driver]]\nname = 'a'\n", "driver[0]: object missing required field `command`"),
        ("[[driver]]\nname = 'a'\ncommand = []\n", "driver[0].command: expected `array` of length >= 1"),
        ("[[driver]]\nname = 'a'\ncommand = ['x', 1]\n", "driver[0].command[1]: expected `str`, got `int`"),
        (DRIVER + DRIVER, "driver[1].name 'a' is taken"),
        (DRIVER.replace("'a'", "'a/b'"), "driver[0].name 'a/b': a name without / is needed"),
        (DRIVER + "socket = 'x.sock'\n", "driver[0].socket 'x.sock' is not an absolute path"),
        ("[[plugin]]\nname = 'a'\nsocket = ''\n", "plugin[0].socket 'nothing' is not an absolute path"),
        ("[agent]\nplugin_id = 'a/b'\n", "agent.plugin_id 'a/b': a name without / is needed"),
        ("[agent\n", "is not TOML"),
    ],
)
def test_a_slip_in_the_file_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(BadRequest) as caught:
        load("agent", "--config", write(tmp_path, text))
    assert told in caught.value.message


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(BadRequest, match=r"/nowhere/moorage\.toml: No such file"):
        load("server", "--config", "/nowhere/moorage.toml")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        (
            "MOORAGE_FENCING_LEASE",
            "1",
            "unknown variable MOORAGE_FENCING_LEASE; the nearest known one is MOORAGE_FENCING_LEASE_S",
        ),
        ("MOORAGE_FENCING_LEASE_S", "x", "MOORAGE_FENCING_LEASE_S (fencing.lease_s): expected `float`"),
        ("MOORAGE_AGENT_SELF_FENCE", "perhaps", "MOORAGE_AGENT_SELF_FENCE (agent.self_fence): expected `bool`"),
    ],
)
def test_a_slip_in_the_environment_is_told(name: str, value: str, told: str) -> None:
    with pytest.raises(BadRequest) as caught:
        load("server", environ={name: value})
    assert told in caught.value.message


def test_a_slip_in_a_flag_is_told() -> None:
    with pytest.raises(BadRequest, match=r"--lease-s \(fencing.lease_s\): expected `float` > 0"):
        load("server", "--lease-s", "-1")


def test_the_default_environment_of_others_is_left_alone() -> None:
    assert load("server", environ={"MOORAGE_TOKEN": "y", "NOMAD_TOKEN": "z", "PATH": "/bin"}) == config.Settings()


def test_a_driver_has_limits_of_its_own(tmp_path: Path) -> None:
    text = "[[plugin]]\nname = 'ceph'\nsocket = '/s'\nnode_calls_max = 3\nslow_calls_max = 0\n"
    (found,) = load("agent", "--config", write(tmp_path, text)).plugin
    assert (found.controller_calls_max, found.node_calls_max, found.slow_calls_max) == (-1, 3, 0)
    with pytest.raises(BadRequest, match="ceph: node_calls_max 0 would forbid all calls"):
        load("agent", "--config", write(tmp_path, text.replace("3", "0")))


# -- the page --------------------------------------------------------------------------------------------------------


def row(setting: Setting) -> str:
    """The page's line for a setting."""
    default = "required" if setting.default is None else f"`{_write(setting.default)}`"
    cells = [f"`{setting.key}`", setting.meaning, setting.unit or "–", default]
    if setting.variable:
        cells += [f"`{setting.variable}`", f"`{setting.flag}`"]
    return f"| {' | '.join(cells)} |"


def _write(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, (tuple, dict)):
        return "[]" if isinstance(value, tuple) else "{}"
    return f'"{value}"'


@pytest.mark.parametrize("setting", config.list_settings(), ids=lambda s: f"{s.section}.{s.key}")
def test_the_page_has_each_setting_as_it_is(setting: Setting) -> None:
    assert setting.meaning, "a paragraph is missing"
    assert row(setting) in PAGE.read_text(encoding="utf-8").splitlines(), f"docs/settings.md lacks:\n{row(setting)}"


def test_the_page_has_no_setting_that_is_not_there() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(row(setting) for setting in config.list_settings())


def test_the_example_of_the_page_is_taken(tmp_path: Path) -> None:
    example = PAGE.read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    found = load("agent", "--config", write(tmp_path, example))
    assert found.driver
    assert found.plugin
