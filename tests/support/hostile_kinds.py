"""Kinds of hostile files, and what a user might do with each.

A kind writes one hostile file into the sandbox, among others that are intact, and returns what to do with it.
"""

import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from command_line import TINY, edm2, succeed, write_images
from hostile_mutations import (
    changed_image,
    changed_npy,
    changed_pickle,
    changed_safetensors,
    hostile_zip,
    json_text,
    mangled,
)
from hostile_sandbox import Attempt, Sandbox
from PIL import Image
from published_lookalike import contents_of, dump

import edm2 as project
from edm2.metrics.reference import read_features, read_reference

STEPS = ("--seeds", "0-1", "--steps", "1", "--device", "cpu")
PUBLISHED = "network-snapshot-0000001-0.050.pkl"


def command(*words: object, named: str | tuple[str, ...]) -> Attempt:
    """`edm2 WORDS`."""

    def run() -> str | None:
        result = edm2(*words)
        print(result.out)
        if result.code not in (0, 1, 2):
            raise RuntimeError(f"exit code {result.code}: {result.err}")
        lines = [line for line in result.err.splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith(("Usage:", "Try '", "Warning: "))]
        if "Traceback" in result.err:
            raise RuntimeError(result.err)
        if result.code == 0:
            return None
        if not "".join(lines).startswith("Error: "):
            raise RuntimeError(f"exit code {result.code}, and says: {result.err}")
        return "\n".join(lines)

    return Attempt(f"edm2 {' '.join(map(str, words))}", run, (named,) if isinstance(named, str) else named)


def library(read: Callable[[Path], object], path: Path) -> Attempt:
    """A call of a function that takes a path."""

    def run() -> None:
        read(path)

    return Attempt(f"{read.__name__}({str(path)!r})", run, (path.name,))


# ------------------------------------------------------------------------------------------------ intact files


def build(sandbox: Sandbox) -> None:
    """Intact files of every kind, in `base`."""
    base = sandbox.base
    succeed("train", "--data", "digits", "--duration", 256, *TINY, "--out", base / "run")
    succeed("plot", base / "run", "--out", base / "plots")  # matplotlib keeps a list of fonts at home
    shutil.copy(base / "run" / "raw-weights.safetensors", base / "network.safetensors")
    net = project.load(base / "network.safetensors")
    (base / PUBLISHED).write_bytes(dump(contents_of(net)))
    write_images(base / "images", (8, 8), count=6, classes=2)
    succeed("metrics", "ref", base / "images", base / "ref.npz", "--detector", "pixels", "--device", "cpu")
    statistics = read_reference(base / "ref.npz")["pixels"]
    content = {"num_images": 6, "pixels": {"mu": statistics.mu, "sigma": statistics.sigma}}
    (base / "ref.pkl").write_bytes(pickle.dumps(content))
    np.savez(base / "samples.npz", np.zeros((6, 8, 8, 1), dtype=np.uint8), np.zeros(6, dtype=np.int64))
    _build_pipeline(base)
    _build_members(base)


def _build_pipeline(base: Path) -> None:
    """Write a pipeline as diffusers would, without diffusers, which is not installed everywhere."""
    unet = base / "pipeline" / "unet"
    unet.mkdir(parents=True)
    metadata = project.read_metadata(base / "network.safetensors")
    kept = {name: metadata[name] for name in ("images_seen", "sigma_rel", "buffers", "training")}
    index = {"_class_name": "EDM2Pipeline", "codec": metadata["codec"], "metadata": kept}
    (base / "pipeline" / "model_index.json").write_text(json.dumps(index))
    (unet / "config.json").write_text(json.dumps(metadata["network"]))
    shutil.copy(base / "network.safetensors", unet / "diffusion_pytorch_model.safetensors")


def _build_members(base: Path) -> None:
    """Write members of datasets: images of all formats, arrays, labels."""
    members, pixels = base / "members", np.arange(64, dtype=np.uint8).reshape(8, 8)
    members.mkdir()
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"):
        Image.fromarray(pixels).convert("RGB").save(members / f"{kind}.png", kind)
    Image.fromarray(pixels).save(members / "gray.png")
    Image.fromarray(pixels).convert("P").save(members / "palette.png")
    np.save(members / "pixels.npy", pixels[None])
    np.save(members / "moments.npy", np.ones((8, 8, 8), dtype=np.float32))
    labels = [["a.png", 0], ["b.png", 1], ["c.png", 1]]
    content = {"labels": labels, "class_names": ["x", "y"], "pixels": {"mean": [3.0], "std": [1.0], "sigma_data": 0.5}}
    (members / "dataset.json").write_text(json.dumps(content))
    latents = {"vae": "none", "mean": [0.0] * 4, "std": [1.0] * 4, "pixel_range": [0, 1], "sigma_data": 1.0}
    (members / "latents.json").write_text(json.dumps({"labels": None, "latents": latents}))


# ------------------------------------------------------------------------------------------------ networks


def snapshot(box: Sandbox, random: Random) -> list[Attempt]:
    path = box.given / "network.safetensors"
    path.write_bytes(changed_safetensors((box.base / path.name).read_bytes(), random))
    return _uses_of_a_network(box, path, random)


def published(box: Sandbox, random: Random) -> list[Attempt]:
    path = box.given / PUBLISHED
    path.write_bytes(changed_pickle((box.base / path.name).read_bytes(), random))
    convert = command("convert", path, box.out / "converted.safetensors", named=path.name)
    return [convert, *_uses_of_a_network(box, path, random)]


def pipeline(box: Sandbox, random: Random) -> list[Attempt]:
    path = shutil.copytree(box.base / "pipeline", box.given / "pipeline")
    name = random.choice(("model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"))
    data = (path / name).read_bytes()
    is_weights = name.endswith("safetensors")
    (path / name).write_bytes(changed_safetensors(data, random) if is_weights else json_text(json.loads(data), random))
    return _uses_of_a_network(box, path, random)


def _uses_of_a_network(box: Sandbox, path: Path, random: Random) -> list[Attempt]:
    uses = [
        command("info", path, named=path.name),
        library(project.load, path),
        library(project.read_metadata, path),
    ]
    if random.random() < 0.3:
        uses.append(command("generate", path, *STEPS, "--grid", box.out / "grid.png", named=path.name))
    if random.random() < 0.1:
        guide = ("--guide", path, "--guidance", "1.5")
        known = box.base / "network.safetensors"
        uses.append(command("generate", known, *STEPS, *guide, "--grid", box.out / "guided.png", named=path.name))
    return uses


def run_snapshots(box: Sandbox, random: Random) -> list[Attempt]:
    """Snapshots of a run, of which one is damaged; the run's own other files are trusted."""
    run = shutil.copytree(box.base / "run", box.given / "run", ignore=shutil.ignore_patterns("checkpoints"))
    chosen = random.choice(sorted((run / "snapshots").iterdir()))
    chosen.write_bytes(changed_safetensors(chosen.read_bytes(), random))
    return [
        command("reconstruct", run, "--std", "0.07,0.1", "--out", box.out / "reconstructed", named=str(run)),
        command("reconstruct", run, "--std", "0.12", "--plan", named=str(run)),
        command("info", run, named=str(run)),
    ]


# ------------------------------------------------------------------------------------------------ datasets


def _uses_of_a_dataset(box: Sandbox, path: Path, random: Random) -> list[Attempt]:
    uses = [
        command("dataset", "info", path, named=path.name),
        command("info", path, named=path.name),
        library(_read_all, path),
    ]
    if random.random() < 0.3:
        uses.append(command("dataset", "check", path, "--workers", 1, named=path.name))
    if random.random() < 0.4:
        convert = ("dataset", "convert", path, box.out / "converted.zip", "--resolution", "8")
        uses.append(command(*convert, "--workers", 1, named=path.name))
    if random.random() < 0.2:
        writable = box.out / path.name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, writable)
        uses.append(command("dataset", "stats", writable, named=path.name))
    if random.random() < 0.03:
        words = ("--duration", 64, *TINY, "--dry-run", "--measure", "--workers", 0)
        uses.append(command("train", "--data", path, *words, "--out", box.out / "run", named=path.name))
    return uses


def _read_all(path: Path) -> None:
    dataset = project.training.open_dataset(path)
    for start in range(0, len(dataset), 16):
        dataset.images(range(start, min(start + 16, len(dataset))))


def _members(box: Sandbox, random: Random) -> dict[str, bytes]:
    """Images or arrays of one size, with labels or without."""
    members = box.base / "members"
    if random.random() < 0.25:
        moments = (members / "moments.npy").read_bytes()
        return {"a.npy": moments, "b.npy": moments, "dataset.json": (members / "latents.json").read_bytes()}
    kind = random.choice(
        ("PNG.png", "PNG.png", "JPEG.png", "WEBP.png", "BMP.png", "GIF.png", "TIFF.png", "palette.png")
    )
    files = {f"{letter}.png": (members / kind).read_bytes() for letter in "abc"}
    if kind == "PNG.png" and random.random() < 0.5:
        files = {f"{letter}.png": (members / "gray.png").read_bytes() for letter in "abc"}
        files["dataset.json"] = (members / "dataset.json").read_bytes()
    return files


def _changed_members(box: Sandbox, random: Random) -> dict[str, bytes]:
    """Members of which one is changed."""
    files = _members(box, random)
    name = random.choice(sorted(files))
    if name == "dataset.json":
        files[name] = json_text(json.loads(files[name]), random)
    else:
        files[name] = (changed_npy if name.endswith(".npy") else changed_image)(files[name], random)
    return files


def dataset_zip(box: Sandbox, random: Random) -> list[Attempt]:
    path = box.given / "data.zip"
    files = _members(box, random) if random.random() < 0.7 else _changed_members(box, random)
    path.write_bytes(hostile_zip(files, random))
    return _uses_of_a_dataset(box, path, random)


def dataset_folder(box: Sandbox, random: Random) -> list[Attempt]:
    path = box.given / "data"
    for name, data in _changed_members(box, random).items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(data)
    return _uses_of_a_dataset(box, path, random)


# ------------------------------------------------------------------------------------------------ metrics


def reference_npz(box: Sandbox, random: Random) -> list[Attempt]:
    path = box.given / "ref.npz"
    path.write_bytes(_changed_npz((box.base / "ref.npz").read_bytes(), random))
    return _uses_of_a_reference(box, path, random)


def reference_pickle(box: Sandbox, random: Random) -> list[Attempt]:
    path = box.given / "ref.pkl"
    path.write_bytes(changed_pickle((box.base / "ref.pkl").read_bytes(), random))
    return _uses_of_a_reference(box, path, random)


def _uses_of_a_reference(box: Sandbox, path: Path, random: Random) -> list[Attempt]:
    uses = [
        library(read_reference, path),
        library(_read_features, path),
    ]
    if random.random() < 0.5:
        metrics = random.choice((("--metrics", "pixels"), ("--metrics", "pixels,kid,pr"), ()))
        named = (path.name, "the reference")
        words = ("--ref", path, *metrics, "--device", "cpu")
        uses.append(command("metrics", "calc", box.base / "images", *words, named=named))
    return uses


def _read_features(path: Path) -> object:
    return read_features(path, "pixels")


def samples_npz(box: Sandbox, random: Random) -> list[Attempt]:
    path = box.given / "samples.npz"
    path.write_bytes(_changed_npz((box.base / "samples.npz").read_bytes(), random))
    words = ("--ref", box.base / "ref.npz", "--metrics", "pixels", "--device", "cpu")
    return [command("metrics", "calc", path, *words, named=(path.name, "the reference"))]


def _changed_npz(data: bytes, random: Random) -> bytes:
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = random.choice(sorted(files))
    match random.choice(("array", "array", "zip", "bytes", "lost")):
        case "array":
            files[name] = changed_npy(files[name], random)
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
                for key, contents in files.items():
                    archive.writestr(key, contents)
            return buffer.getvalue()
        case "lost":
            del files[name]
            return hostile_zip(files, random) if files else b""
        case "zip":
            return hostile_zip(files, random)
    return mangled(data, random)


KINDS: dict[Callable[[Sandbox, Random], list[Attempt]], int] = {
    snapshot: 12, published: 8, pipeline: 6, run_snapshots: 6, dataset_zip: 14, dataset_folder: 16, reference_npz: 6,
    reference_pickle: 6, samples_npz: 6,
}  # fmt: skip
"""Makers of hostile files of each kind, and their frequency."""
