"""docs/tls.md says what works: its commands run, its settings load, its texts are the program's."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from moorage import config
from moorage.cli.commands import COMMANDS
from moorage.cli.main import main
from moorage.client import tls

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tls.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
LINES = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]


def test_commands_make_the_files_that_the_page_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line)[1:] for line in LINES if line.startswith("moorage tls ")]
    assert [words[1] for words in commands] == ["ca", "server", "agent", "client"]
    for words in commands:
        assert main(words) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    for name in ("ca.pem", "server.pem", "server-key.pem", "agent-host-2.pem", "agent-host-2-key.pem"):
        assert (tmp_path / name).exists()
        assert f"/etc/moorage/{name}" in PAGE
        assert str(tmp_path / name) in out, "what is printed names the files"
    # What the commands print are settings.
    printed = re.findall(r"^\[(?:tls|agent)\]\n(?:\w+ = .*\n)+", out, re.MULTILINE)
    assert len(printed) == 2
    for number, text in enumerate(printed):
        file = tmp_path / f"{number}.toml"
        file.write_text(text)
        config.read_file(file)


def test_other_commands_are_commands(capsys: pytest.CaptureFixture[str]) -> None:
    others = [shlex.split(line.partition(" > ")[0])[1:] for line in LINES if line.startswith("moorage node ")]
    assert len(others) == 2
    for words in others:
        command = max((c for c in COMMANDS if tuple(words[: len(c.words)]) == c.words), key=lambda c: len(c.words))
        assert main([*command.words, "-h"]) == 0
        flags = [word.lstrip("-") for word in words if word.startswith("-")]
        assert flags
        helped = capsys.readouterr().out
        assert all(f"--{flag}" in helped for flag in flags)


def test_settings_of_the_page_load(tmp_path: Path) -> None:
    blocks = [block for kind, block in BLOCKS if kind == "toml"]
    assert len(blocks) == 2
    for block in blocks:
        file = tmp_path / "moorage.toml"
        file.write_text(block)
        assert config.read_file(file) == tomllib.loads(block)


def test_texts_of_the_table_are_the_programs() -> None:
    sources = "".join(
        " ".join(re.sub(r'"\s+f?"', "", (ROOT / "src" / "moorage" / name).read_text(encoding="utf-8")).split())
        for name in ("client/tls.py", "client/sync.py", "engine/identities.py", "rules/identities.py")
    )
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", PAGE.partition("## When it does not work")[2], re.MULTILINE)
    said = [row for row in rows if not row.startswith(("What is said", "---"))]
    assert len(said) > 8
    for row in said:
        for part in re.split(r" … ?|…|; ", row):
            words = part.strip(" ,;")
            assert words in sources or words.startswith("Remote end closed"), words
    assert tls.CUT
