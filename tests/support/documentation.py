"""What README and documentation refer to: files, anchors, tests and commands, each of which must exist."""

import importlib
import io
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from command_line import parse

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)[^)]*\)|(?:src|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#+ +(.*?)\s*$", re.MULTILINE)
REPOSITORY_PATH = re.compile(r"`((?:networks|training|post_hoc_ema|edm2|tools|tests|docs)/[\w./-]*)`")
TEST_NAME = re.compile(r"`([\w/]*test_\w+\.py)?(?:(?:::)?((?<=::)test\w*…?|…\w+…?))?`")
COMMAND = re.compile(r"^(?:torchrun .*-m )?(edm2 .*)|^(?:python -m )(edm2\.[\w.]+.*)|^(make [\w-]+)")


def documents(root: Path = ROOT) -> list[Path]:
    """README, the other pages at the top, and docs/."""
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").glob("*.md"))]


def blocks(language: str, file: Path = README) -> list[str]:
    """Fenced blocks of a file in one language; without a language, those that give none."""
    return [code for name, code in FENCED.findall(file.read_text(encoding="utf-8")) if name == language]


def command_lines(file: Path) -> list[str]:
    """Lines of shell blocks that call this package, alone or behind torchrun, or make; continued lines joined."""
    text = "".join(code for language in ("bash", "") for code in blocks(language, file)).replace("\\\n", " ")
    found = (COMMAND.match(line.strip()) for line in text.splitlines())
    return [next(filter(None, match.groups())).strip() for match in found if match]


def problems(root: Path = ROOT) -> Iterator[str]:
    """Every reference of the documents below `root` that leads nowhere, one line each."""
    for file in documents(root):
        for check in (broken_links, missing_paths, missing_tests, wrong_commands):
            yield from (f"{file.relative_to(root)}: {problem}" for problem in check(file, root))


def broken_links(file: Path, root: Path = ROOT) -> Iterator[str]:
    """Relative links and images without a file, or without a heading that gives their anchor."""
    text = FENCED.sub("", file.read_text(encoding="utf-8"))
    for link in ("".join(groups) for groups in LINK.findall(text)):
        if re.match(r"[a-z]+:", link):
            continue  # elsewhere
        name, _, anchor = link.partition("#")
        target = file.parent / name if name else file
        if not target.exists():
            yield f"link to {link}: there is no such file"
        elif anchor and anchor not in anchors(target):
            yield f"link to {link}: {target.name} has no such heading"


def anchors(file: Path) -> set[str]:
    """Names that GitHub gives to the headings of a page."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCED.sub("", file.read_text(encoding="utf-8"))):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()  # a link is its text
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        same = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", name) is not None for name in found)
        found.add(f"{slug}-{same}" if same else slug)
    return found


def missing_paths(file: Path, root: Path = ROOT) -> Iterator[str]:
    """Paths of the repository in code font that are not there."""
    for path in REPOSITORY_PATH.findall(file.read_text(encoding="utf-8")):
        if not (root / path).exists():
            yield f"{path}: there is no such file"


def missing_tests(file: Path, root: Path = ROOT) -> Iterator[str]:
    """Tests that no file holds; `test_x.py::test_a_…` stands for all that begin so, `…_b` for others of that file."""
    for line in file.read_text(encoding="utf-8").splitlines():
        sources: list[Path] = []
        for name, test in TEST_NAME.findall(line):
            if name:
                sources = [path for path in root.glob(f"tests/**/{Path(name).name}") if path.match(name)]
                if not sources:
                    yield f"{name}: there is no such file of tests"
            pattern = rf"^\s*(?:async )?def {re.escape(test).replace('…', chr(92) + 'w*')}\("
            if test and sources and not any(re.search(pattern, path.read_text("utf-8"), re.M) for path in sources):
                yield f"{test}: no such test in {sources[0].name}"


def wrong_commands(file: Path, root: Path = ROOT) -> Iterator[str]:
    """Commands that do not parse."""
    for line in command_lines(file):
        try:
            check_command(line, root)
        except (click.ClickException, AssertionError, ImportError, ValueError) as problem:
            yield f"{line}: {problem.format_message() if isinstance(problem, click.ClickException) else problem}"


def check_command(line: str, root: Path = ROOT) -> None:
    """Parse one line as its program would; raises an error that says why it does not."""
    program, *words = shlex.split(line, comments=True)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        if words[0] not in targets:
            raise ValueError("the Makefile has no such target")
        return
    here = os.getcwd()
    with TemporaryDirectory() as empty, redirect_stdout(io.StringIO()), suppress(click.exceptions.Exit):  # of a list
        os.chdir(empty)  # a parser may look for files, and `parse` makes some
        try:
            parse(line) if program == "edm2" else importlib.import_module(program).main.make_context(program, words)
        finally:
            os.chdir(here)
