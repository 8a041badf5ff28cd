"""Make the files of this folder again, with the version that README.md names: python make.py NEW_FOLDER."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from tiny_vae import save_tiny_vae

import edm2
from edm2.datasets.moments import MomentEncoder
from edm2.pipeline import EDM2Pipeline
from edm2.tools.cli import cli
from edm2.training import Trainer, open_dataset

COMMANDS: dict[str, str] = json.loads((Path(__file__).parent / "commands.json").read_text())
STOPS = {"g": 256, "latents": 3168, "a": 192, "shards": 128}
"""Images seen when each run is stopped, the second time it is trained."""
ORIGINAL_STEP = Trainer.step


def run(name: str, *more: str) -> None:
    """Run a command of commands.json in this process."""
    cli([*shlex.split(COMMANDS[name]), *more], standalone_mode=False)


def write_sources() -> None:
    """Write gray digits of 8x8 pixels in three classes, and coloured ones of 16x16 in two."""
    images, labels = load_digits(return_X_y=True)
    for i in range(72):
        pixels = (images[i].reshape(8, 8) * 255 / 16).astype(np.uint8)
        folder = Path("source", f"class{labels[i] % 3}")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    for i in range(24):
        gray = (images[i].reshape(8, 8) * 255 / 16).repeat(2, 0).repeat(2, 1)
        pixels = np.stack([gray, 255 - gray, gray * labels[i] / 9], -1).astype(np.uint8)
        folder = Path("source-16", f"class{labels[i] % 2}")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")


def stop_after(images: int | None) -> None:
    """Stop every trainer of this process after so many images, as a signal would; None: at the end of its run."""

    def stopping(self: Trainer, *arguments: object) -> object:
        result = ORIGINAL_STEP(self, *arguments)
        self.stop_requested = 1 if images is not None and self.images_seen >= images else 0
        return result

    Trainer.step = stopping


def train(name: str) -> None:
    """Train the same run twice: to its end, and stopped."""
    for way, images in (("finished", None), ("stopped", STOPS[name])):
        if name == "shards":  # two processes, each of them this program
            program = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, "--rank", way]
            subprocess.run([sys.executable, "-m", *program], check=True)
        else:
            stop_after(images)
            run(f"train {name}", "--out", f"{way}/{name}", *(["--skip-broken", "1"] if name == "g" else []))


def network_files() -> Iterator[Path]:
    """Everything that `edm2.load` reads."""
    yield Path("pipeline")
    for folder in ("finished", "reconstructed", "study"):
        yield from sorted(Path(folder).rglob("*.safetensors"))


def write_outputs() -> None:
    """Store outputs of every network for the same inputs, and samples of the pipeline."""
    generator = torch.Generator().manual_seed(0)
    sigma, labels = torch.tensor([0.2, 1.0, 5.0]), torch.tensor([0, 1, 1])
    outputs = {"sigma": sigma, "labels": labels}
    for path in network_files():
        net = edm2.load(path)
        shape = (3, net.config.img_channels, *net.config.size)
        x = outputs.setdefault("x".join(map(str, shape)), 3 * torch.randn(shape, generator=generator))
        one_hot = torch.eye(net.config.label_dim)[labels] if net.config.label_dim else None
        denoised, u = net(x, sigma, one_hot, return_logvar=True)
        outputs |= {f"{path.as_posix()}:D": denoised, f"{path.as_posix()}:u": u}
    pipe = EDM2Pipeline.from_pretrained("pipeline")
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(class_labels=[0, 1, 2], seeds=[1, 2, 3], num_inference_steps=4, output_type="latent").images
    save_file(outputs | {"pipeline:samples": drawn}, "outputs.safetensors")


def write_datasets() -> None:
    """Store descriptions and images of the datasets."""
    facts, images = {}, {}
    for name in ("pixels.zip", "latents.zip"):
        dataset = open_dataset(name)
        every = range(len(dataset))
        facts[name] = {
            "kind": dataset.kind,
            "class_names": dataset.class_names,
            "labels": dataset.labels(every).tolist(),
            "pixel_stats": dataset.pixel_stats,
            "latents": dataset.latents,
            "fingerprint": dataset.fingerprint(),
        }
        images[name] = dataset.images(every)
    Path("datasets.json").write_text(json.dumps(facts, indent=1) + "\n")
    save_file(images, "datasets.safetensors")


def tidy() -> None:
    """Remove what no test looks at, and what tells of the machine."""
    folders = ("source*", "tiny-vae", "finished/*/checkpoints", "study/runs/*/checkpoints", "**/samples")
    files = ("**/events.out.tfevents.*", "**/*.png", "**/*.log", "finished/*/diagnostics.jsonl")
    for pattern in folders:
        for path in Path().glob(pattern):
            shutil.rmtree(path)
    for pattern in (*files, "finished/a/snapshots/*-0.0500.*"):
        for path in Path().glob(pattern):
            path.unlink()
    for run_folder in Path("stopped").iterdir():
        for older in sorted((run_folder / "checkpoints").iterdir())[:-1]:
            shutil.rmtree(older)


def pack() -> None:
    """Pack all folders into one file, of a third of their size."""
    folders = sorted(path for path in Path().iterdir() if path.is_dir())
    with tarfile.open("folders.tar.xz", "w:xz", preset=9) as archive:
        for folder in folders:
            archive.add(folder, filter=anonymous)
            shutil.rmtree(folder)


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Remove the names of user and group."""
    member.uname = member.gname = ""
    return member


def main(folder: Path) -> None:
    """Make everything in a new folder."""
    folder.mkdir()
    os.chdir(folder)
    write_sources()
    save_tiny_vae(Path("tiny-vae"))
    MomentEncoder.name = property(lambda self: self.vae)  # in the dataset's description, not its path on this machine
    for name in ("pixels", "statistics", "latents", "reference"):
        run(name)
    for name in STOPS:
        train(name)
    stop_after(None)
    for name in ("reconstruct", "pipeline", "sweep", "sweep ref", "study"):
        run(name)
    tidy()
    write_outputs()
    write_datasets()
    pack()


if __name__ == "__main__":
    if sys.argv[1] == "--rank":
        stop_after(STOPS["shards"] if sys.argv[2] == "stopped" else None)
        run("train shards", "--out", f"{sys.argv[2]}/shards")
    else:
        main(Path(sys.argv[1]))
