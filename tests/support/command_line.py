"""Running and reading the command line from tests."""

import io
import os
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image

from edm2.tools.cli import cli, main

ROOT = Path(__file__).resolve().parents[2]

TINY = (
    *("--preset", "digits8", "--batch", "64", "--channels", "8", "--holdout", "0", "--device", "cpu"),
    *("--snapshot", "128", "--status", "64", "--checkpoint", "128", "--sample", "256"),
)
"""A network of 41,379 parameters on 8x8 images; a step takes milliseconds."""


@dataclass(frozen=True)
class Result:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


def edm2(*arguments: object) -> Result:
    """Run `edm2 ARGUMENTS` in this process, through the same `main` as the console script."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["edm2", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
        raise AssertionError("main() returned instead of exiting with a code")
    except SystemExit as done:
        return Result(done.code or 0, out.getvalue(), err.getvalue())
    finally:
        sys.argv = argv


def succeed(*arguments: object) -> str:
    """Standard output of a command that must succeed."""
    result = edm2(*arguments)
    assert result.code == 0, result.err
    return result.out


def torchrun(count: int, *arguments: object) -> str:
    """Standard output of `edm2 ARGUMENTS` in a job of `count` processes, which must succeed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, "-m", "edm2", *map(str, arguments)],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def complaint(text: str) -> str:
    """The one line on standard error that says what is wrong, with click's two lines about usage left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("Usage:", "Try '"))]
    assert len(lines) == 1, f"expected one line, not:\n{text}"
    assert lines[0].startswith("Error: ")
    return lines[0]


def check_refusal(words: str, code: int, mentions: tuple[str, ...]) -> None:
    """`edm2 dataset WORDS` is refused in one line that mentions all this, and leaves no result, whole or half."""
    result = edm2("dataset", *words.split())
    line = complaint(result.err)
    assert result.code == code, line
    for mention in mentions:
        assert mention in line
    assert not Path("out.zip").exists()
    assert Path("there.zip").read_text() == "something"
    assert not list(Path().rglob("*.tmp"))


def parse(line: str) -> click.Context:
    """Parse a command line from a text, down to the options of a sub-command; fails as the command would.

    Snapshots to start from (--init) must exist for click, so an empty file is put there, below the current folder.
    """
    program, *words = shlex.split(line, comments=True)
    assert program == "edm2", line
    if "--init" in words:
        snapshot = Path(words[words.index("--init") + 1])
        snapshot.parent.mkdir(parents=True, exist_ok=True)
        snapshot.touch()
    context = click.Context(cli, **cli.context_settings)
    while isinstance(context.command, click.Group):
        name, *words = words
        command = context.command.get_command(context, name)
        assert command is not None, f"no command {name!r}: {line}"
        context = command.make_context(name, list(words), parent=context)
    return context


def write_images(folder: Path, shape: tuple[int, ...], count: int = 72, classes: int = 0) -> Path:
    """A folder of random PNG files of `shape` (height, width[, channels]), with one sub-folder per class if any."""
    random = np.random.default_rng(0)
    for i in range(count):
        pixels = random.integers(0, 256, shape, dtype=np.uint8)
        path = folder / f"class{i % classes}" / f"{i:03}.png" if classes else folder / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def half_written(folder: Path) -> list[Path]:
    """Temporary files and folders that a command left behind."""
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
