"""A run by the command line, from a dataset to a grid of samples and a network in files small enough to travel."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from edm2.tools.bench.device.findings import Finding, Parts, failed, row
from edm2.tools.bench.device.setup import Setup

PART_BYTES = 15 << 20
"""Bytes of a part of a large file, below 16 MiB."""

FRACTIONS = {"train": 0.6, "sweep": 0.2, "reconstruct": 0.05, "generate": 0.1}
"""Fractions of the time that the commands may take."""

USUAL_LENGTH = 0.10
"""EMA length where no sweep says which one is best, as where scikit-learn is missing."""


def parts(setup: Setup) -> Parts:
    """One part: each command needs the one before."""
    return {"run": partial(real_run, setup)}


def real_run(setup: Setup) -> Iterator[Finding]:
    """Train, sweep, pack the network of the best average, and draw a grid by it."""
    out, tiny = Path(setup.out), setup.scale.name == "tiny"
    with tempfile.TemporaryDirectory() as folder:
        run, best = Path(folder, "run"), Path(folder, "best")
        data = setup.data or made_images(Path(folder, "images"))
        seconds = int(FRACTIONS["train"] * setup.seconds)
        length = ["--duration", "1Ki"] if tiny else ["--budget", f"{seconds * 3 // 4}s"]
        on_device = ["--device", setup.device]
        trained = command(
            "train",
            ["--data", data, "--out", run, "--preset", setup.scale.run_preset, "--channels", setup.scale.run_channels,
             "--micro-batch", setup.scale.run_micro_batch, "--max-time", f"{seconds}s", *length, *on_device], setup,
        )  # fmt: skip
        yield trained
        yield from progress(run)
        if "failed" in trained:
            return
        tried = ["0.10,0.15", "--samples", "8", "--steps", "2"] if tiny else [
            "0.05,0.10,0.15,0.20", "--samples", "1000", "--steps", "16",
        ]  # fmt: skip
        yield command("sweep", [run, "--std", *tried, *on_device], setup)
        chosen = best_score(run)
        yield row("best average", **chosen)
        yield command(
            "reconstruct", [run, "--std", chosen["sigma_rel"], "--out", best, "--dtype", "fp16"], setup
        )  # fmt: skip
        (network,) = best.glob("*.safetensors")
        yield row("network", files=", ".join(split(network, out)), bytes=network.stat().st_size)
        drawn = ["0-15", "--steps", "2"] if tiny else ["0-79"]
        yield command("generate", [network, "--grid", out / "grid.png", "--seeds", *drawn, *on_device], setup)


def best_score(run: Path) -> dict[str, Any]:
    """Return the best point of the run's sweep and its scores, or the usual length where there is none."""
    path = run / "sweep.jsonl"
    scores = list(map(json.loads, path.read_text(encoding="utf-8").splitlines())) if path.exists() else []
    points = [score for score in scores if score.get("sigma_rel")]
    best = min(points, key=lambda score: score["distance"], default={"sigma_rel": USUAL_LENGTH})
    return {name: value for name, value in best.items() if name != "key"}


def command(name: str, arguments: list[Any], setup: Setup) -> Finding:
    """Run one command within its fraction of the time and half a minute; its last words say why it failed."""
    start, seconds = time.perf_counter(), FRACTIONS[name] * setup.seconds + 30
    words = [sys.executable, "-m", "edm2", name, *map(str, arguments)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return failed(name, f"stopped after {seconds:.0f} s")
    print(done.stdout, done.stderr, sep="", file=sys.stderr)
    if done.returncode not in (0, 124):  # 124: --max-time
        return failed(name, f"exit code {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return row(f"edm2 {name}", seconds=time.perf_counter() - start, exit_code=done.returncode)


def progress(run: Path) -> Iterator[Finding]:
    """Report what the run said of itself last."""
    lines = (run / "stats.jsonl").read_text(encoding="utf-8").splitlines() if (run / "stats.jsonl").exists() else []
    if lines:
        last = json.loads(lines[-1])
        yield row("end of the run", **{name: x for name, x in last.items() if isinstance(x, int | float)})


def made_images(folder: Path, count: int = 96, size: int = 8) -> Path:
    """Draw discs and squares of random colours into a folder per class."""
    for i in range(count):
        kind = ("discs", "squares")[i % 2]
        image = Image.new("RGB", (size, size), (10 * i % 256, 90, 200))
        draw = ImageDraw.Draw(image)
        (draw.ellipse if i % 2 == 0 else draw.rectangle)((1, 1, size - 2, size - 2), (250, 37 * i % 256, 30))
        (folder / kind).mkdir(parents=True, exist_ok=True)
        image.save(folder / kind / f"{i}.png")
    return folder


def split(path: Path, folder: Path, size: int = PART_BYTES) -> list[str]:
    """Split a file into parts in a folder, to be joined by `cat network.safetensors.*`; return their names."""
    content, names = path.read_bytes(), []
    for k, start in enumerate(range(0, len(content), size)):
        names.append(f"network.safetensors.{k}")
        (folder / names[-1]).write_bytes(content[start : start + size])
    return names
