"""Post-hoc EMA, against ema-pytorch's PostHocEMA: `python -m edm2.tools.bench.studies.post_hoc_ema`.

Both track two profiles, and reconstruct others from 16 snapshots in float16 into files with float32 weights: ours
synced to disk as always, theirs by `torch.save`, as it comes. They take turns; medians of the wall clock are shown.

ema-pytorch is no dependency: `pip install --no-deps --target DIR ema-pytorch`, and DIR into PYTHONPATH.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from ema_pytorch import PostHocEMA

from edm2.io.snapshots import open_run
from edm2.networks import NetworkConfig, build_network
from edm2.post_hoc_ema import PowerFunctionEMA, reconstruct_files, snapshot_name, write_snapshot
from edm2.tools.bench.timing import Clock, Timing, Work

SIGMA_RELS = (0.05, 0.10)


@click.command()
@click.option("--channels", default=64, show_default=True, help="Of the network; 64 make 31 million parameters.")
@click.option("--targets", multiple=True, type=int, default=[1, 16, 31], show_default=True, help="To reconstruct.")
@click.option("--turns", default=3, show_default=True, help="Of reconstruction; of tracking, ten times as many.")
def main(channels: int, targets: Sequence[int], turns: int) -> None:
    """Print times of both implementations."""
    net = build_network(NetworkConfig(64, 4, 1000, model_channels=channels)).requires_grad_(False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = {"update_every": 1, "checkpoint_every_num_steps": "manual"}  # only then are its profiles right
        ours = PowerFunctionEMA(net, SIGMA_RELS)
        theirs = PostHocEMA(net, sigma_rels=SIGMA_RELS, checkpoint_folder=str(folder / "theirs"), **options)
        compare("an update", lambda: ours.update(ours.images_seen + 64), theirs.update, 10 * turns)
        for t in range(1000, 9000, 1000):
            for s in SIGMA_RELS:
                facts = {"images_seen": t, "sigma_rel": s}
                write_snapshot(folder / "ours" / snapshot_name(t, s), net.state_dict(), facts, torch.float16)
            for ema in theirs.ema_models:
                ema.step.fill_(t)
            theirs.checkpoint()
        for count in targets:
            sigma_rels = np.linspace(0.03, 0.25, count).tolist() if count > 1 else [0.13]
            paths = [folder / f"{i}.safetensors" for i in range(count)]
            metadata: list[dict[str, object]] = [{"reconstructed_from": [], "sigma_rel": s} for s in sigma_rels]

            def reconstruct_ours(sigma_rels=sigma_rels, paths=paths, metadata=metadata) -> None:
                reconstruct_files(open_run(folder / "ours"), sigma_rels, paths, metadata, memory=512 << 20)

            def reconstruct_theirs(sigma_rels=sigma_rels) -> None:
                for sigma_rel in sigma_rels:
                    average = theirs.synthesize_ema_model(sigma_rel=sigma_rel)
                    torch.save(average.ema_model.state_dict(), folder / "theirs.pt")

            compare(f"{count} targets", reconstruct_ours, reconstruct_theirs, turns)


def compare(what: str, ours: Work, theirs: Work, turns: int) -> None:
    """Print the time of two works that take turns."""
    durations = Clock(torch.device("cpu"), turns, warmup=0).by_turns({"ours": ours, "ema-pytorch": theirs})
    times = (f"{whose} {1e3 * Timing.of(rows).wall:,.0f} ms" for whose, rows in durations.items())
    click.echo(f"{what}: {', '.join(times)}")


if __name__ == "__main__":
    main()
