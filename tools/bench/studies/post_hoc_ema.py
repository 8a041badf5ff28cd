"""Post-hoc EMA, against ema-pytorch's PostHocEMA: `python -m edm2.tools.bench.studies.post_hoc_ema`.

Tracking two profiles is compared with theirs and with a copy of as many bytes as it has to move, which is the bound.
Reconstruction starts from 16 snapshots in float16 and ends with float32 weights in files, ours synced to disk as
always, theirs by `torch.save`, as it comes; the bound is to read the inputs and to write and sync files of that size.
Everything takes turns, as a busy machine slows down all of them; medians are shown. Reconstructions run in a new
process each, whose peak memory above that of the imports is shown.

ema-pytorch is no dependency: `pip install --no-deps --target DIR ema-pytorch`, and DIR into PYTHONPATH.
"""

import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import numpy as np
import torch
from torch import nn

from edm2.io.snapshots import open_run
from edm2.networks import NetworkConfig, build_network
from edm2.post_hoc_ema import PowerFunctionEMA, atomic_output, reconstruct_files, snapshot_name, write_snapshot
from edm2.tools.options.parsing import BYTES

SIZES = {"31M": 64, "125M": 128}
"""Channels of networks with about so many parameters; 125M is the paper's XS."""

SIGMA_RELS = (0.05, 0.10)
TIMES = tuple(range(1, 9))
"""Of the snapshots, in thousand steps."""


@click.command()
@click.option("--size", "sizes", multiple=True, type=click.Choice(list(SIZES)), default=list(SIZES), show_default=True)
@click.option("--targets", multiple=True, type=int, default=[1, 16, 31], show_default=True, help="To reconstruct.")
@click.option("--turns", default=3, show_default=True, help="Of reconstruction; of tracking, ten times as many.")
@click.option("--memory", type=BYTES, default="512M", show_default=True, help="For our reconstruction.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work; default: the folder for such things.")
@click.option("--snapshots", type=click.Path(path_type=Path), help="Reconstruct from these only, ours or pickles.")
def main(
    sizes: list[str], targets: list[int], turns: int, memory: int, folder: Path | None, snapshots: Path | None
) -> None:
    """Measure tracking and reconstruction."""
    if their_class() is None:
        click.echo("ema-pytorch is not installed, so it is left out: pip install --no-deps --target DIR ema-pytorch")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        if snapshots:
            compare_reconstruction(Path(place), {"ours": snapshots}, targets, turns, memory)
            return
        for size in sizes:
            net = make_network(SIZES[size])
            click.echo(f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f} M parameters")
            compare_tracking(net, 10 * turns)
            compare_reconstruction(Path(place), write_both(net, Path(place), SIZES[size]), targets, turns, memory)


def their_class() -> type | None:
    """PostHocEMA, where it is installed."""
    try:
        from ema_pytorch import PostHocEMA
    except ImportError:
        return None
    return PostHocEMA


def make_network(channels: int) -> nn.Module:
    """The paper's network for latents of 64x64, at this width."""
    return build_network(NetworkConfig(64, 4, 1000, model_channels=channels)).requires_grad_(False)


# ----------------------------------------------------------------------------------------------------------------------
# Tracking


def compare_tracking(net: nn.Module, turns: int) -> None:
    """Print milliseconds per update of two profiles."""
    tracker = PowerFunctionEMA(net, SIGMA_RELS)
    works: dict[str, Callable[[], object]] = {
        "ours": lambda: tracker.update(tracker.images_seen + 64),
        "copy of the same bytes": copier(net),
    }
    if theirs := their_tracker(net, Path(tempfile.gettempdir())):
        works["ema-pytorch"] = theirs.update
    taken = take_turns(works, turns)
    click.echo("  tracking two profiles: " + ", ".join(f"{name} {1e3 * s:.0f} ms" for name, s in taken.items()))


def copier(net: nn.Module) -> Callable[[], None]:
    """Two profiles are read and written, the weights read for each: six numbers moved per weight, so three copies."""
    sources: list[torch.Tensor] = list(net.parameters())
    copies = [torch.empty_like(p) for p in sources]

    def work() -> None:
        for _ in range(3):
            torch._foreach_copy_(copies, sources)

    return work


def their_tracker(net: nn.Module, folder: Path):
    """A PostHocEMA that updates at every step, as only then its profiles are right; None where there is none."""
    kind = their_class()
    return kind and kind(
        net,
        sigma_rels=SIGMA_RELS,
        update_every=1,
        checkpoint_every_num_steps="manual",
        checkpoint_folder=str(folder),
    )


def take_turns(works: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Median seconds of each, by turns; the first turn warms up."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


# ----------------------------------------------------------------------------------------------------------------------
# Reconstruction


def write_both(net: nn.Module, place: Path, channels: int) -> dict[str, Path]:
    """Sixteen snapshots each, of weights that wander."""
    folders = {"ours": place / "ours"}
    shutil.rmtree(place / "theirs", ignore_errors=True)
    shutil.rmtree(place / "ours", ignore_errors=True)
    theirs = their_tracker(net, place / "theirs")
    if theirs:
        folders["ema-pytorch"] = place / "theirs"
    ours = PowerFunctionEMA(net, SIGMA_RELS)
    for t in TIMES:
        for p in net.parameters():
            p.add_(torch.randn_like(p))
        ours.update(1000 * t)
        for s in SIGMA_RELS:
            said = {"images_seen": 1000 * t, "sigma_rel": s, "channels": channels}
            write_snapshot(folders["ours"] / snapshot_name(1000 * t, s), ours.average(s), said, torch.float16)
        if theirs:
            for ema in theirs.ema_models:
                ema.step.fill_(1000 * t)
            theirs.checkpoint()
    (place / "channels").write_text(str(channels))
    return folders


def compare_reconstruction(
    place: Path, folders: dict[str, Path], targets: Sequence[int], turns: int, memory: int
) -> None:
    """Print seconds and peak memory for each number of targets."""
    for count in targets:
        sigma_rels = np.linspace(0.03, 0.25, count).tolist() if count > 1 else [0.13]
        taken: dict[str, list[tuple[float, float]]] = {}
        for _ in range(turns):
            for name, folder in folders.items():
                work = {"ours": reconstruct_ours, "ema-pytorch": reconstruct_theirs}[name]
                taken.setdefault(name, []).append(in_new_process(work, folder, sigma_rels, place / "out", memory))
                if name == "ours":
                    bound = in_new_process(read_and_write, folder, sigma_rels, place / "out", memory)
                    taken.setdefault("reading and writing", []).append(bound)
                shutil.rmtree(place / "out")
        medians = {name: [statistics.median(x) for x in zip(*runs, strict=True)] for name, runs in taken.items()}
        shown = (f"{name} {seconds:.1f} s, {peak:.0f} MB" for name, (seconds, peak) in medians.items())
        click.echo(f"  {count} targets: " + "; ".join(shown))


def reconstruct_ours(folder: Path, sigma_rels: Sequence[float], out: Path, memory: int) -> None:
    """As `edm2 reconstruct` does."""
    paths = [out / f"{i}.safetensors" for i in range(len(sigma_rels))]
    metadata = [{"reconstructed_from": [], "sigma_rel": s} for s in sigma_rels]
    reconstruct_files(open_run(folder), sigma_rels, paths, metadata, memory=memory)


def reconstruct_theirs(folder: Path, sigma_rels: Sequence[float], out: Path, memory: int) -> float:
    """As its README does, and saved; returns the seconds that this takes, making the network left out."""
    out.mkdir(exist_ok=True)
    theirs = their_tracker(make_network(int((folder.parent / "channels").read_text())), folder)
    start = time.perf_counter()
    for i, sigma_rel in enumerate(sigma_rels):
        average = theirs.synthesize_ema_model(sigma_rel=sigma_rel)
        torch.save(average.ema_model.state_dict(), out / f"{i}.pt")
    return time.perf_counter() - start


def read_and_write(folder: Path, sigma_rels: Sequence[float], out: Path, memory: int) -> None:
    """The inputs' bytes and the outputs' bytes, nothing in between."""
    size = (out / "0.safetensors").stat().st_size
    buffer = memoryview(bytearray(1 << 20))
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    for i in range(len(sigma_rels)):
        with atomic_output(out / f"{i}.bytes") as temporary, temporary.open("wb", buffering=0) as file:
            for start in range(0, size, len(buffer)):
                file.write(buffer[: size - start])


def in_new_process(work: Callable[..., float | None], *arguments: object) -> tuple[float, float]:
    """Seconds that it takes, and megabytes by which the most memory ever used grows."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (work, *arguments))


def measure(work: Callable[..., float | None], *arguments: object) -> tuple[float, float]:
    """The same, in this process; the seconds may be measured by `work` itself."""
    before = most_memory()
    start = time.perf_counter()
    seconds = work(*arguments)
    return seconds or time.perf_counter() - start, most_memory() - before


def most_memory() -> float:
    """Megabytes, of this process alone: another account of the system's begins with the parent's."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1e3


if __name__ == "__main__":
    main()
