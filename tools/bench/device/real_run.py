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

FRACTIONS = {"train": 0.6, "sweep": 0.2, "generate": 0.1, "reconstruct": 0.05}
"""Fractions of the time that the commands may take."""


def parts(setup: Setup) -> Parts:
    """One part: each command needs the one before."""
    return {"run": partial(real_run, setup)}


def real_run(setup: Setup) -> Iterator[Finding]:
    """Train, sweep, draw a grid by the best average, and pack that network."""
    out, tiny = Path(setup.out), setup.scale.name == "tiny"
    with tempfile.TemporaryDirectory() as folder:
        run, data = Path(folder, "run"), setup.data or made_images(Path(folder, "images"))
        budget = int(FRACTIONS["train"] * setup.seconds)
        length = ["--duration", "1Ki"] if tiny else ["--budget", f"{budget * 3 // 4}s"]
        sweep = ["--std", "0.10,0.15", "--samples", "8", "--steps", "2"] if tiny else [
            "--std", "0.05,0.10,0.15,0.20", "--samples", "1000", "--steps", "16",
        ]  # fmt: skip
        commands = {
            "train": ["--data", data, "--preset", setup.scale.run_preset, "--out", run, *length,
                      "--channels", setup.scale.run_channels, "--max-time", f"{budget}s"],
            "sweep": [run, *sweep],
            "generate": [run, "--seeds", "0-15" if tiny else "0-79", "--grid", out / "grid.png", "--steps",
                         "2" if tiny else "32"],
            "reconstruct": [run, "--std", "BEST", "--out", Path(folder, "best"), "--dtype", "fp16"],
        }  # fmt: skip
        for name, arguments in commands.items():
            if name == "reconstruct":
                scores = list(map(json.loads, (run / "sweep.jsonl").read_text(encoding="utf-8").splitlines()))
                best = min((score for score in scores if score.get("sigma_rel")), key=lambda score: score["distance"])
                yield row("best average", **{key: best[key] for key in best if key != "key"})
                arguments = [best["sigma_rel"] if x == "BEST" else x for x in arguments]
            if name != "train":
                arguments = [*arguments, *([] if name == "reconstruct" else ["--device", setup.device])]
            else:
                arguments = [*arguments, "--device", setup.device]
            found = command(name, arguments, FRACTIONS[name] * setup.seconds + 30)
            yield found
            if name == "train":
                yield from progress(run)
            if "failed" in found:
                return
        (network,) = Path(folder, "best").glob("*.safetensors")
        yield row("network", file=", ".join(split(network, out)), bytes=network.stat().st_size)


def command(name: str, arguments: list[Any], seconds: float) -> Finding:
    """Run one command; its last words are the reason where it fails."""
    start = time.perf_counter()
    words = [sys.executable, "-m", "edm2", name, *map(str, arguments)]
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return failed(name, f"stopped after {seconds:.0f} s")
    print(done.stdout, file=sys.stderr)
    if done.returncode not in (0, 124):  # 124: --max-time
        return failed(name, f"exit code {done.returncode}: {done.stdout.strip().splitlines()[-1:]}")
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
