"""The README's commands exist, and those that need nothing but the package run."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from command_line import edm2, parse

from edm2.model import ASSETS

README = Path(__file__).resolve().parent.parent.parent / "README.md"
INCLUDED = "digits8"
NEEDS_NOTHING = ("info", "generate")


def blocks(language: str) -> list[str]:
    """Fenced blocks of the README in one language; without a language, those that give none."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def command_lines() -> list[str]:
    """Every `edm2 ...` line, whichever kind of block it stands in; continued lines joined."""
    text = "".join([*blocks("bash"), *blocks("")]).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.startswith("edm2 ")]


def runs_anywhere(line: str) -> bool:
    """Whether a line asks for nothing but the included network or the embedded digits."""
    words = shlex.split(line, comments=True)
    return words[1] in NEEDS_NOTHING and words[2] in (INCLUDED, "digits")


def skip_without_asset(text: str) -> None:
    if INCLUDED in text and not (ASSETS / f"{INCLUDED}.safetensors").is_file():
        pytest.skip(f"the included network {INCLUDED} is not there yet")


def test_the_readme_shows_commands_and_code():
    """Else the tests below would pass by having nothing to do."""
    assert command_lines()
    assert blocks("python")
    assert any(map(runs_anywhere, command_lines()))


@pytest.mark.parametrize("line", command_lines())
def test_commands_parse(line: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parse(line)


@pytest.mark.parametrize("line", filter(runs_anywhere, command_lines()))
def test_commands_that_need_nothing_run(line: str, tmp_path: Path, monkeypatch):
    skip_without_asset(line)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line, comments=True)[1:]
    result = edm2(*words)
    assert result.code == 0, result.err
    for flag, file in pairwise(words):
        assert flag not in ("--grid", "--out") or Path(file).exists()


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0])
def test_code_runs(code: str, tmp_path: Path, monkeypatch):
    skip_without_asset(code)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(README), "exec"), {"__name__": "readme"})
