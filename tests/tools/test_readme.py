"""The commands of the README and the documentation exist, and those that need nothing but the package run."""

import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from command_line import edm2
from documentation import README, blocks, command_lines, documents

from edm2.io.model import ASSETS

INCLUDED = "digits8"
NEEDS_NOTHING = ("info", "generate")
LINES = sorted({line for file in documents() for line in command_lines(file)})


def runs_anywhere(line: str) -> bool:
    """True if a line asks for nothing but the included network, the embedded digits or a list."""
    words = shlex.split(line, comments=True)
    return words[0] == "edm2" and words[1] in NEEDS_NOTHING and words[2] in (INCLUDED, "digits", "--list-presets")


def skip_without_asset(text: str) -> None:
    if INCLUDED in text and not (ASSETS / f"{INCLUDED}.safetensors").is_file():
        pytest.skip(f"the included network {INCLUDED} is not there yet")


def test_the_readme_shows_commands_and_code():
    """Else the tests below would pass by having nothing to do."""
    assert blocks("python")
    assert any(map(runs_anywhere, LINES))


@pytest.mark.parametrize("line", filter(runs_anywhere, LINES))
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
