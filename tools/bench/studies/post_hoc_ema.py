"""Post-hoc EMA, against ema-pytorch's PostHocEMA: `python -m edm2.tools.bench.studies.post_hoc_ema`.

Tracking two profiles is compared with theirs and with a copy of as many bytes as it has to move, which is the bound.
Reconstruction starts from 16 snapshots in float16 and ends with float32 weights in files, ours synced to disk as
always, theirs by `torch.save`, as it comes; the bound is to read the inputs and to write and sync files of that size.
Everything takes turns; medians are shown. Reconstructions run in a new process each, whose peak memory above that of
the imports is shown.

ema-pytorch is no dependency: `pip install --no-deps --target DIR ema-pytorch`, and DIR into PYTHONPATH.
"""

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from torch import nn

from edm2.io.snapshots import open_run
from edm2.networks import NetworkConfig, build_network
from edm2.post_hoc_ema import PowerFunctionEMA, atomic_output, reconstruct_files, snapshot_name, write_snapshot
from edm2.tools.bench.studies.common import in_new_process, medians
from edm2.tools.bench.timing import Clock
from edm2.tools.options.parsing import BYTES

SIZES = {"31M": 64, "125M": 128}
"""Channels of networks with about so many parameters; 125M is the paper's XS."""

SIGMA_RELS = (0.05, 0.10)


@click.command()
@click.option("--size", "sizes", multiple=True, type=click.Choice(list(SIZES)), default=list(SIZES), show_default=True)
@click.option("--targets", multiple=True, type=int, default=[1, 16, 31], show_default=True, help="To reconstruct.")
@click.option("--turns", default=3, show_default=True, help="Of reconstruction; of tracking, ten times as many.")
@click.option("--memory", type=BYTES, default="512M", show_default=True, help="For our reconstruction.")
def main(sizes: list[str], targets: list[int], turns: int, memory: int) -> None:
    """Measure tracking and reconstruction."""
    for channels in (SIZES[size] for size in sizes):
        with tempfile.TemporaryDirectory() as name:
            folder, net = Path(name), make_network(channels)
            click.echo(f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f} M parameters")
            compare_tracking(net, folder, 10 * turns)
            write_snapshots(net, folder)
            for count in targets:
                compare_reconstruction(folder, channels, count, turns, memory)


def make_network(channels: int) -> nn.Module:
    """Make the paper's network for latents of 64x64, at this width."""
    return build_network(NetworkConfig(64, 4, 1000, model_channels=channels)).requires_grad_(False)


def their_tracker(net: nn.Module, folder: Path) -> nn.Module:
    """Make a PostHocEMA that updates at every step, as only then its profiles are right."""
    from ema_pytorch import PostHocEMA  # not where only our side runs: its imports would count as memory

    options = {"update_every": 1, "checkpoint_every_num_steps": "manual"}
    return PostHocEMA(net, sigma_rels=SIGMA_RELS, checkpoint_folder=str(folder / "theirs"), **options)


def compare_tracking(net: nn.Module, folder: Path, turns: int) -> None:
    """Print milliseconds per update of two profiles."""
    tracker, sources = PowerFunctionEMA(net, SIGMA_RELS), list(net.parameters())
    copies = [torch.empty_like(p) for p in sources]

    def copy() -> None:  # two profiles are read and written, the weights read for each: six numbers per weight
        for _ in range(3):
            torch._foreach_copy_(copies, sources)

    works = {
        "ours": lambda: tracker.update(tracker.images_seen + 64),
        "copy of the same bytes": copy,
        "ema-pytorch": their_tracker(net, folder).update,
    }
    durations = Clock(torch.device("cpu"), turns, warmup=0).by_turns(works)
    shown = (f"{name} {1e3 * medians(rows)[1]:.0f} ms" for name, rows in durations.items())  # by the wall clock
    click.echo("  tracking two profiles: " + ", ".join(shown))


def write_snapshots(net: nn.Module, folder: Path) -> None:
    """Write sixteen snapshots of each kind, of weights that wander."""
    ours, theirs = PowerFunctionEMA(net, SIGMA_RELS), their_tracker(net, folder)
    for t in range(1000, 9000, 1000):
        for p in net.parameters():
            p.add_(torch.randn_like(p))
        ours.update(t)
        for s in SIGMA_RELS:
            metadata = {"images_seen": t, "sigma_rel": s}
            write_snapshot(folder / "ours" / snapshot_name(t, s), ours.average(s), metadata, torch.float16)
        for ema in theirs.ema_models:
            ema.step.fill_(t)
        theirs.checkpoint()


def compare_reconstruction(folder: Path, channels: int, count: int, turns: int, memory: int) -> None:
    """Print seconds and peak memory of `count` targets."""
    sigma_rels = np.linspace(0.03, 0.25, count).tolist() if count > 1 else [0.13]
    works = {
        "ours": (reconstruct_ours, memory),
        "reading and writing": (read_and_write,),
        "ema-pytorch": (reconstruct_theirs, channels),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(turns):
        for name, (work, *options) in works.items():
            taken[name].append(in_new_process(work, folder, sigma_rels, *options))
        shutil.rmtree(folder / "out")
    summary = {name: medians(rows) for name, rows in taken.items()}
    shown = (f"{name} {seconds:.1f} s, {peak / 1e6:.0f} MB" for name, (seconds, peak) in summary.items())
    click.echo(f"  {count} targets: " + "; ".join(shown))


def reconstruct_ours(folder: Path, sigma_rels: Sequence[float], memory: int) -> None:
    """Reconstruct as `edm2 reconstruct` does."""
    paths = [folder / "out" / f"{i}.safetensors" for i in range(len(sigma_rels))]
    metadata = [{"reconstructed_from": [], "sigma_rel": s} for s in sigma_rels]
    reconstruct_files(open_run(folder / "ours"), sigma_rels, paths, metadata, memory=memory)


def reconstruct_theirs(folder: Path, sigma_rels: Sequence[float], channels: int) -> float:
    """Reconstruct as its README does, and save; returns the seconds that this takes, making the network left out."""
    theirs = their_tracker(make_network(channels), folder)
    start = time.perf_counter()
    for i, sigma_rel in enumerate(sigma_rels):
        average = theirs.synthesize_ema_model(sigma_rel=sigma_rel)
        torch.save(average.ema_model.state_dict(), folder / "out" / f"{i}.pt")
    return time.perf_counter() - start


def read_and_write(folder: Path, sigma_rels: Sequence[float]) -> None:
    """Read the inputs' bytes and write the outputs' bytes, nothing in between."""
    size = (folder / "out" / "0.safetensors").stat().st_size
    buffer = memoryview(bytearray(1 << 20))
    for path in (folder / "ours").iterdir():
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    for i in range(len(sigma_rels)):
        with atomic_output(folder / "out" / f"{i}.bytes") as temporary, temporary.open("wb", buffering=0) as file:
            for start in range(0, size, len(buffer)):
                file.write(buffer[: size - start])


if __name__ == "__main__":
    main()
