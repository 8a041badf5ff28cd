"""Try hostile files on everything that reads files:  python tests/fuzz.py --count 20000 --seed 0

Each input must lead to success or to one clear line that names it; never to a traceback, a hang, a file outside of the
output folder, or gigabytes of memory. At the first that does not, what led to it is kept, and the exit code is 1.
Input number 137 of seed 0 alone:  python tests/fuzz.py --seed 0 --first 137 --count 1
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

import click
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT / "support")]

from hostile_sandbox import Sandbox, Surprise  # noqa: E402


@click.command(help=__doc__)
@click.option("--count", type=click.IntRange(1), default=20_000, show_default=True, help="Inputs to try.")
@click.option("--first", type=click.IntRange(0), default=0, help="Number of the first.")
@click.option("--seed", type=int, default=0, show_default=True, help="Other seeds, other inputs.")
@click.option("--keep", type=click.Path(path_type=Path), default=Path("fuzz-surprises"), show_default=True,
              help="Folder for what led to a surprise.")  # fmt: skip
def fuzz(count: int, first: int, seed: int, keep: Path) -> None:
    """The loop over inputs."""
    keep, outcomes = keep.resolve(), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="edm2-fuzz-") as root:
        from hostile_kinds import KINDS, build

        sandbox = Sandbox(Path(root))
        build(sandbox)
        sandbox.limit_memory()
        for number in tqdm(range(first, first + count), desc="inputs", leave=False, disable=None):
            random = Random(f"{seed} {number}")
            [make] = random.choices([*KINDS], [*KINDS.values()])
            for attempt in make(sandbox, random):
                try:
                    outcomes[sandbox.try_out(attempt)] += 1
                except Surprise as surprise:
                    _keep(keep / f"{seed}-{number}-{make.__name__}", sandbox, f"{attempt.words}\n{surprise}")
                    os.chdir(ROOT)
                    sys.exit(1)
            sandbox.clear()
        os.chdir(ROOT)
    click.echo(f"{count} inputs: {outcomes['done']} uses succeeded, {outcomes['refused']} were refused")


def _keep(folder: Path, sandbox: Sandbox, words: str) -> None:
    """Keep the files that led to a surprise, and what it was."""
    shutil.rmtree(folder, ignore_errors=True)
    for part in (sandbox.given, sandbox.out):
        shutil.copytree(part, folder / part.name)
    (folder / "surprise.txt").write_text(f"{words}\n", encoding="utf-8", errors="backslashreplace")
    shown = words if len(words) < 2000 else f"{words[:500]}\n...\n{words[-1500:]}"
    click.echo(f"Surprise: {shown}\nkept in {folder}".encode("utf-8", "backslashreplace").decode())


if __name__ == "__main__":
    fuzz()
