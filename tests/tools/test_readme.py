"""The commands of the README and the documentation exist, and those that need nothing but the package run."""

import re
import shlex
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import click
import pytest
from command_line import edm2, parse

from edm2.io.model import ASSETS

ROOT = Path(__file__).resolve().parent.parent.parent
README = ROOT / "README.md"
INCLUDED = "digits8"
NEEDS_NOTHING = ("info", "generate")


def blocks(language: str, file: Path = README) -> list[str]:
    """Fenced blocks of a file in one language; without a language, those that give none."""
    return re.findall(rf"^```{language}\n(.*?)^```$", file.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def command_lines() -> list[str]:
    """Every `edm2 ...` line, whichever kind of block it stands in, alone or behind torchrun; continued lines joined."""
    files = [README, *sorted((ROOT / "docs").glob("*.md"))]
    text = "".join(block for file in files for language in ("bash", "") for block in blocks(language, file))
    lines = [re.sub(r"^torchrun .* -m edm2 ", "edm2 ", line) for line in text.replace("\\\n", " ").splitlines()]
    return sorted({line.strip() for line in lines if line.startswith("edm2 ")})


def runs_anywhere(line: str) -> bool:
    """True if a line asks for nothing but the included network, the embedded digits or a list."""
    words = shlex.split(line, comments=True)
    return words[1] in NEEDS_NOTHING and words[2] in (INCLUDED, "digits", "--list-presets")


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
    with suppress(click.exceptions.Exit):  # options that list something and stop; mistakes are other exceptions
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
