"""Help answers at once, has examples that work, and errors have the exit codes that shells expect."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from command_line import complaint, edm2, parse, succeed

import edm2 as package
from edm2.tools import cli as tools_cli
from edm2.tools.cli import COMMANDS, cli

ROOT = Path(__file__).resolve().parent.parent.parent

HELP_WITHOUT_TORCH = """
import json, sys
from click.testing import CliRunner
from edm2.tools.cli import COMMANDS, cli
heavy = {"torch", "scipy", "matplotlib", "diffusers", "PIL"}
lines = [[], *([name] for name in COMMANDS), ["dataset", "convert"], ["metrics", "ref"]]
before = sorted(heavy & set(sys.modules))
codes = {CliRunner().invoke(cli, [*words, "--help"]).exit_code for words in lines}
print(json.dumps([before, sorted(heavy & set(sys.modules)), list(codes)]))
"""


def commands() -> dict[str, click.Command]:
    """Commands and sub-commands by the words that call them, the group of all under "edm2"."""
    context = click.Context(cli)
    found = {"edm2": cli, **{f"edm2 {name}": cli.get_command(context, name) for name in COMMANDS}}
    for name, command in list(found.items())[1:]:
        if isinstance(command, click.Group):
            found |= {f"{name} {sub}": command.commands[sub] for sub in command.commands}
    return found


ALL = commands()


def examples(name: str) -> list[str]:
    """Command lines in the help text of a command, without torchrun where that starts them."""
    lines = [line.strip() for line in ALL[name].epilog.splitlines()]
    return [line[line.index("edm2 ") :] for line in lines if line.startswith("edm2 ") or " -m edm2 " in line]


def test_help_imports_nothing_slow():
    """Importing torch takes seconds, which would make help, and completion in a shell, slow."""
    done = subprocess.run(
        [sys.executable, "-c", HELP_WITHOUT_TORCH], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [[], [], [0]]


def test_memory_that_runs_out_is_one_line(monkeypatch, capsys):
    def greedy(**options) -> None:
        raise MemoryError

    monkeypatch.setattr(tools_cli, "cli", greedy)
    monkeypatch.setattr(tools_cli, "print_whatever_happens", lambda: None)
    with pytest.raises(SystemExit) as ended:
        tools_cli.main()
    assert ended.value.code == 1
    assert complaint(capsys.readouterr().err).startswith("Error: not enough memory")


@pytest.mark.parametrize("name", ALL)
def test_every_command_has_help(name: str):
    """With examples on lines of their own, also on a narrow terminal; click re-flows paragraphs without \\b."""
    shown = succeed(*name.split()[1:], "--help")
    assert shown == succeed(*name.split()[1:], "-h")
    assert shown.startswith(f"Usage: {name}")
    assert "Example" in shown
    assert "\b" not in shown  # a terminal obeys it, a pager shows it
    for line in examples(name):
        assert line in shown
    for parameter in ALL[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]} has no help"


@pytest.mark.parametrize("name", ALL)
def test_examples_in_help_are_there_to_paste(name: str, tmp_path, monkeypatch):
    """Every example parses: the command and its options exist, and the values are of the right kind."""
    monkeypatch.chdir(tmp_path)
    assert examples(name)
    for line in examples(name):
        assert line.startswith(" ".join(name.split()[:2]))
        if not line.endswith("\\"):  # or goes on in the next line
            parse(line)


def test_help_version_and_words_that_are_unknown():
    shown = succeed("--help")
    for name, summary in COMMANDS.items():
        assert f"  {name} " in shown
        assert summary in shown
    assert succeed("--version").split() == ["edm2,", "version", package.__version__]
    nothing = edm2()
    assert nothing.code == 2
    assert "Commands:" in nothing.err
    for words in (["trian"], ["info", "--shape", "digits"]):
        result = edm2(*words)
        assert result.code == 2
        assert words[-2:][0] in complaint(result.err)


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
