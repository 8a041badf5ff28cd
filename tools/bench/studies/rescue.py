"""Averages rescued from files of ema-pytorch: `python -m edm2.tools.bench.studies.rescue`.

A small network learns the digits of scikit-learn while a `PostHocEMA` of ema-pytorch tracks 0.05 and 0.10, with an
update every k-th step, and stores float16 files every 100 steps. Beside it, our tracker averages every step: the truth.
Shown are relative L2 errors of the weights, of the package's own synthesis and of `rebuild` from the same files.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import click
import ema_pytorch
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from edm2.post_hoc_ema import PowerFunctionEMA, rebuild

TRACKED, WANTED, STEPS = (0.05, 0.10), (0.05, 0.10, 0.15, 0.20), 2000


@click.command()
@click.option("--seeds", default=3, show_default=True, help="Runs to average over.")
def main(seeds: int) -> None:
    """Print errors by the interval of updates."""
    click.echo(f"{'k':>4}  {'':>9}" + "".join(f"{sigma_rel:>9.2f}" for sigma_rel in WANTED))
    for k in (1, 10, 100):
        with tempfile.TemporaryDirectory() as folder:
            runs = [rescue(ema_pytorch, k, Path(folder) / str(seed), seed) for seed in range(seeds)]
        for i, whose in enumerate(("its own", "rescued")):
            means = torch.tensor([run[i] for run in runs]).mean(0).tolist()
            click.echo(f"{k:>4}  {whose:>9}" + "".join(f"{100 * error:>8.2f}%" for error in means))


def rescue(package: ModuleType, k: int, folder: Path, seed: int = 0) -> tuple[list[float], list[float]]:
    """Errors of the package's own synthesis and of `rebuild`, for the lengths WANTED, with an update every k steps."""
    torch.manual_seed(seed)
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    net = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 10))
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    truth = PowerFunctionEMA(net, WANTED)
    theirs = package.PostHocEMA(
        net, sigma_rels=TRACKED, update_every=k, checkpoint_every_num_steps=100, checkpoint_folder=str(folder)
    )
    last_update = k * ((STEPS - 1) // k) + 1  # whose time `rebuild` gives its averages
    at_update: list[Mapping[str, Tensor]] = []
    for step in range(1, STEPS + 1):
        batch = torch.randint(len(images), (64,))
        adam.zero_grad()
        nn.functional.cross_entropy(net(images[batch].float() / 16), labels[batch]).backward()
        adam.step()
        truth.update(step)
        theirs.update()
        if step == last_update:
            at_update = [{name: t.clone() for name, t in truth.average(s).items()} for s in WANTED]
    own = [theirs.synthesize_ema_model(sigma_rel=s).ema_model.state_dict() for s in WANTED]
    rescued = [rebuild(folder, s, update_every=k, tracked=TRACKED) for s in WANTED]
    return (
        [relative_error(state, truth.average(s)) for state, s in zip(own, WANTED, strict=True)],
        [relative_error(state, exact) for state, exact in zip(rescued, at_update, strict=True)],
    )


def relative_error(state: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """L2 error of all weights together."""
    difference = torch.cat([(state[name] - exact[name]).flatten() for name in exact])
    return (difference.norm() / torch.cat([tensor.flatten() for tensor in exact.values()]).norm()).item()


if __name__ == "__main__":
    main()
