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
import time
from collections import Counter
from pathlib import Path
from random import Random

import click
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT / "support")]

from hostile_sandbox import Sandbox, Surprise, peak_memory  # noqa: E402


@click.command(help=__doc__)
@click.option("--count", type=click.IntRange(1), default=20_000, show_default=True, help="Inputs to try.")
@click.option("--first", type=click.IntRange(0), default=0, help="Number of the first.")
@click.option("--seed", type=int, default=0, show_default=True, help="Other seeds, other inputs.")
@click.option("--kind", "chosen", multiple=True, help="Only this kind; repeat it for more.")
@click.option("--keep", type=click.Path(path_type=Path), default=Path("fuzz-surprises"), show_default=True,
              help="Folder for what led to a surprise.")  # fmt: skip
@click.option("--go-on", is_flag=True, help="After a surprise, too.")
def fuzz(count: int, first: int, seed: int, chosen: tuple[str, ...], keep: Path, go_on: bool) -> None:
    """The loop over inputs."""
    keep, start = keep.resolve(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edm2-fuzz-") as root:
        from hostile_kinds import KINDS, build

        sandbox = Sandbox(Path(root))
        build(sandbox)
        sandbox.limit_memory()
        kinds = {make.__name__: make for make in KINDS if not chosen or make.__name__ in chosen}
        counts: Counter[tuple[str, str]] = Counter()
        before = peak_memory()
        for number in tqdm(range(first, first + count), desc="inputs", leave=False, disable=None):
            random = Random(f"{seed} {number}")
            [kind] = random.choices([*kinds], [KINDS[make] for make in kinds.values()])
            try:
                for attempt in kinds[kind](sandbox, random):
                    counts[kind, _tried(sandbox, attempt)] += 1
            except Surprise as surprise:
                counts[kind, "surprise"] += 1
                _keep(keep / f"{seed}-{number}-{kind}", sandbox, f"{kind}: {surprise}")
                if not go_on:
                    break
            counts[kind, "inputs"] += 1
            sandbox.clear()
        os.chdir(ROOT)
        _print(counts, time.monotonic() - start, peak_memory() - before)
    sys.exit(any(outcome == "surprise" for _, outcome in counts))


def _tried(sandbox: Sandbox, attempt) -> str:
    try:
        return sandbox.try_out(attempt)
    except Surprise as surprise:
        raise Surprise(f"{attempt.words}\n{surprise}") from None


def _keep(folder: Path, sandbox: Sandbox, words: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for part in (sandbox.given, sandbox.out):
        shutil.copytree(part, folder / part.name)
    (folder / "surprise.txt").write_text(f"{words}\n", encoding="utf-8", errors="backslashreplace")
    shown = words if len(words) < 2000 else f"{words[:500]}\n...\n{words[-1500:]}"
    click.echo(f"Surprise: {shown}\nkept in {folder}".encode("utf-8", "backslashreplace").decode())


def _print(counts: Counter[tuple[str, str]], seconds: float, memory: int) -> None:
    outcomes = ("inputs", "done", "refused", "surprise")
    click.echo(f"{'kind':<18}" + "".join(f"{outcome:>10}" for outcome in outcomes))
    for name in sorted({name for name, _ in counts}):
        click.echo(f"{name:<18}" + "".join(f"{counts[name, outcome]:>10,}" for outcome in outcomes))
    totals = [sum(value for (_, found), value in counts.items() if found == outcome) for outcome in outcomes]
    click.echo(f"{'together':<18}" + "".join(f"{total:>10,}" for total in totals))
    click.echo(f"{seconds:,.0f} seconds; at most {memory / 1e6:,.0f} MB more memory than intact files take")


if __name__ == "__main__":
    fuzz()
