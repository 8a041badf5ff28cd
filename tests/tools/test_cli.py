"""Help answers at once, has examples that work, and errors have the exit codes that shells expect."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from command_line import complaint, edm2, parse, succeed

import edm2 as package
from edm2.tools.cli import COMMANDS, cli

ROOT = Path(__file__).resolve().parent.parent.parent

HELP_WITHOUT_TORCH = f"""
import json, sys
from click.testing import CliRunner
from edm2.tools.cli import cli
after_import = "torch" in sys.modules
codes = [CliRunner().invoke(cli, words).exit_code for words in [["--help"], *([c, "--help"] for c in {list(COMMANDS)})]]
print(json.dumps([after_import, "torch" in sys.modules, codes]))
"""


def examples(text: str) -> list[str]:
    """Command lines in a help text."""
    return [line.strip() for line in text.splitlines() if line.strip().startswith("edm2 ")]


def epilogs() -> dict[str, str]:
    """The help texts with examples, by command; the group's own under "edm2"."""
    context = click.Context(cli)
    return {"edm2": cli.epilog, **{name: cli.get_command(context, name).epilog for name in COMMANDS}}


def test_help_does_not_import_torch():
    """Importing torch takes seconds, which would make help, and completion in a shell, slow."""
    done = subprocess.run(
        [sys.executable, "-c", HELP_WITHOUT_TORCH], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [False, False, [0] * (1 + len(COMMANDS))]


def test_help_lists_every_command_with_its_summary():
    shown = succeed("--help")
    for name, summary in COMMANDS.items():
        assert f"  {name} " in shown
        assert summary in shown


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, flag: str):
    shown = succeed(name, flag)
    assert shown.startswith(f"Usage: edm2 {name}")
    assert "Example" in shown


@pytest.mark.parametrize("name", ["edm2", *COMMANDS])
def test_examples_in_help_are_there_to_paste(name: str, tmp_path, monkeypatch):
    """Every example parses: the command and its options exist, and the values are of the right kind."""
    monkeypatch.chdir(tmp_path)
    lines = examples(epilogs()[name])
    assert lines
    for line in lines:
        assert line.startswith(f"edm2 {name}") or name == "edm2"
        parse(line)


def test_every_option_is_explained():
    for name in COMMANDS:
        for parameter in cli.get_command(click.Context(cli), name).params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"edm2 {name} {parameter.opts[0]} has no help"


def test_examples_show_whole_lines_on_a_narrow_terminal():
    """A wrapped example cannot be pasted; click re-flows paragraphs without \\b."""
    for name in COMMANDS:
        shown = succeed(name, "--help")
        for line in examples(epilogs()[name]):
            assert line in shown


def test_version():
    assert succeed("--version").split() == ["edm2,", "version", package.__version__]


def test_without_a_command_help_is_shown_and_the_exit_code_is_that_of_usage():
    result = edm2()
    assert result.code == 2
    assert "Commands:" in result.err


def test_unknown_command():
    result = edm2("trian")
    assert result.code == 2
    assert "trian" in complaint(result.err)


def test_unknown_option():
    result = edm2("info", "--shape", "digits")
    assert result.code == 2
    assert "--shape" in complaint(result.err)


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--version"], 0), (["trian"], 2), (["info", "absent.safetensors"], 1)],
    ids=["success", "usage", "failure"],
)
def test_exit_codes_of_a_real_process(words: list[str], code: int):
    """`python -m edm2` and the console script call the same function."""
    done = subprocess.run([sys.executable, "-m", "edm2", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_debugging_shows_the_traceback(monkeypatch):
    """EDM2_DEBUG=1 is for those who look for a bug."""
    monkeypatch.setenv("EDM2_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        edm2("info", "absent.safetensors")
