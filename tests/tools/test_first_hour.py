"""An afternoon with one's own pictures, in small: a messy folder to pictures of one's own, stopped and gone on with.

As `docs/first-hour.md` tells it. No step is silent, nothing is lost, and no picture lies.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT, complaint, edm2, succeed
from documentation import command_lines
from PIL import Image

from edm2.post_hoc_ema import find_snapshots
from edm2.tools.cli import cli
from edm2.training.run.run_folder import read_run_config

pytestmark = pytest.mark.slow

SMALL = ("--channels", 16, "--batch", 16, "--device", "cpu", "--precision", "fp32", "--workers", 0)


def photos(folder: Path) -> Path:
    """Red flowers and blue shells as they come: on their side, transparent, in several formats, with litter."""
    random = np.random.default_rng(0)
    for i in range(60):
        kind = ("flowers", "shells")[i % 2]
        pixels = random.integers(0, 60, (40, 56, 3), dtype=np.uint8)
        pixels[8:32, 16:40, 2 * (i % 2)] += 190  # the subject: red or blue
        path = folder / kind / f"{i:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels)
        if i % 5 == 0:  # lies on its side
            exif = Image.Exif()
            exif[0x0112] = 6
            image.save(path.with_suffix(".jpg"), exif=exif)
        elif i % 5 == 1:
            image.putalpha(Image.fromarray((pixels.max(axis=2) > 100).astype(np.uint8) * 255))
            image.save(path.with_suffix(".png"))
        else:
            image.save(path.with_suffix((".png", ".webp", ".tif")[i % 3]))
    (folder / "flowers" / ".DS_Store").write_bytes(b"litter")
    (folder / "@eaDir").mkdir()
    (folder / "@eaDir" / "thumb.png").write_bytes(b"no image")
    (folder / "flowers" / "notes.txt").write_text("where they grow")
    (folder / "shells" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    return folder


def spelled(words: list[str]) -> tuple[str, set[str]]:
    """Name and options of a command."""
    count = 2 if words[0] in ("dataset", "metrics") else 1
    return " ".join(words[:count]), {word for word in words if word.startswith("--")}


@pytest.fixture
def ran(monkeypatch) -> list[tuple[str, set[str]]]:
    """Name and options of every command that a test runs through `main`."""
    found: list[tuple[str, set[str]]] = []
    run = cli.main

    def recording(*args: object, **settings: object) -> object:
        found.append(spelled(sys.argv[1:]))
        return run(*args, **settings)

    monkeypatch.setattr(cli, "main", recording)
    return found


def start(*arguments: object) -> subprocess.Popen:
    """A command in a process of its own, as a user types it."""
    return subprocess.Popen(
        [sys.executable, "-m", "edm2", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_from_a_folder_of_photos_to_pictures(tmp_path, monkeypatch, ran):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")

    # Convert: what cannot be read is named, then left out when asked to; every file is accounted for.
    refused = edm2("dataset", "convert", "photos", "photos-16.zip", "--resolution", 16, "--workers", 1)
    assert refused.code == 1
    assert "broken.png" in refused.err + refused.out
    said = succeed("dataset", "convert", "photos", "photos-16.zip", "--resolution", 16, "--workers", 1, "--skip-broken")
    assert "60 images" in said
    assert "broken.png" in said

    # Look: two classes, none of them black, upright.
    assert "classes:" in succeed("dataset", "info", "photos-16.zip")
    succeed("dataset", "check", "photos-16.zip")
    succeed("dataset", "show", "photos-16.zip", "--grid", "look.png")
    assert 40 < np.asarray(Image.open("look.png").convert("L")).mean() < 250

    # Train for a budget; stopped, it leaves something to draw from; the same command goes on to the end.
    asked = ("train", "--data", "photos-16.zip", *SMALL, "--budget", "20s", "--out", "run")
    assert "Dry run: nothing was written." in succeed(*asked, "--dry-run")
    training = start(*asked)
    run, end = tmp_path / "run", time.monotonic() + 120
    while not (run / "stats.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.2)
    training.send_signal(signal.SIGINT)
    said, _ = training.communicate(timeout=60)
    assert training.returncode == 130, said
    assert "run the same command again" in said
    stopped = find_snapshots(run)
    planned = read_run_config(run).duration
    assert stopped[-1].images_seen < planned
    drawn = succeed("generate", "run", "--seeds", "0-7", "--steps", 6, "--grid", "early.png", "--device", "cpu")
    assert "EMA length 0.1" in drawn
    succeed(*asked)
    assert read_run_config(run).duration == planned
    records = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert records[-1]["images_seen"] == planned
    assert records[-1]["error"] < 0.7 * records[0]["error"]
    assert not any(snapshot.metadata.get("interim") for snapshot in find_snapshots(run))
    assert len(list((run / "samples").iterdir())) >= 4
    assert "error:" in succeed("info", "run")
    succeed("plot", "run", "--out", "plots")
    assert Image.open("plots/error.png").width > 200

    # Choose the EMA length, draw at the best, look for copies.
    swept = succeed(
        "sweep", "run", "--std", "0.05,0.1", "--samples", 40, "--steps", 6, "--detector", "pixels", "--device", "cpu"
    )
    assert "<- best" in swept
    drawn = succeed("generate", "run", "--seeds", "0-19", "--balanced", "--steps", 12, "--out", "drawn", "--grid",
                    "grid.png", "--device", "cpu")  # fmt: skip
    assert "best in" in drawn
    drawn_images = sorted(Path("drawn").glob("*.png"))
    colors = np.stack([np.asarray(Image.open(path)).reshape(-1, 3).mean(0) for path in drawn_images])
    assert (colors[0::2, 0] > colors[0::2, 2]).mean() > 0.7  # flowers are red
    assert (colors[1::2, 2] > colors[1::2, 0]).mean() > 0.7  # shells are blue
    assert (colors.max(axis=1) > 40).all()  # none is black
    assert len({path.read_bytes() for path in drawn_images}) == len(drawn_images)  # nor a copy of another
    succeed("metrics", "neighbours", "drawn", "--data", "photos-16.zip", "--detector", "pixels", "--out", "nearest.png",
            "--rows", 5, "--device", "cpu")  # fmt: skip
    assert Image.open("nearest.png").width > 200

    # Nothing on the page is left to try.
    for line in command_lines(ROOT / "docs/first-hour.md"):
        name, options = spelled(shlex.split(line)[1:])
        assert any(name == other and options <= given for other, given in ran), line


def test_two_names_of_one_folder_and_a_run_of_other_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    succeed("dataset", "convert", "photos", "a.zip", "--resolution", 16, "--workers", 1, "--skip-broken")
    asked = (*SMALL, "--duration", 64, "--out", "run")
    succeed("train", "--data", "a.zip", *asked)
    Path("a.zip").rename("b.zip")
    succeed("train", "--data", tmp_path / "b.zip", *SMALL, "--duration", 128, "--out", "run")
    succeed("dataset", "convert", "photos/flowers", "c.zip", "--resolution", 16, "--workers", 1)
    assert "have changed since this run began" in complaint(
        edm2("train", "--data", "c.zip", *SMALL, "--duration", 192, "--out", "run").err
    )
