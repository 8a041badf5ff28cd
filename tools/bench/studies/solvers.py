"""Evaluations of the network that solvers need: `python -m edm2.tools.bench.studies.solvers digits8`.

The error of an image is the root mean square over its pixels of the difference to the ODE's solution from the same
noise, which is taken to be what Heun's method gives in 512 steps. Errors of a few images, which end up elsewhere
altogether, outweigh those of all others, so besides the root mean square over images the median is shown.

A network is the float32 one, the integration float64. With --mixture, the ideal denoiser of a mixture of Gaussians is
solved too, all in float64: tensors mu [K, C, H, W], s [K] and logw [labels, K] under gmm/main in a .safetensors file
(tests/golden/sampler/sampler.safetensors).

With --interval, every number of steps is compared with a solution of its own: guidance begins and ends where a step
begins, so solvers with other steps solve another equation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import matplotlib.pyplot as plt
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import one_hot

import edm2
from edm2.metrics import load_detector
from edm2.networks import fold
from edm2.sampling.generation import SeedRandom
from edm2.sampling.guidance import EVERYWHERE, Interval
from edm2.sampling.samplers import HEUN, SAMPLERS, Sampler
from edm2.sampling.samplers.heun import Denoiser, denoiser_at_step, sample_heun, sigma_steps
from edm2.sweep.evaluator import SampleSettings, evaluator_by, score_network
from edm2.tools.figures.style import GRAY, colors, save_figure, styled
from edm2.tools.options.evaluators import codec_of
from edm2.tools.options.parsing import INTERVAL, PNG_FILE
from edm2.training import open_dataset

BUDGETS = (8, 12, 16, 24, 32, 48, 63)
"""Numbers of evaluations. Heun's method takes an odd number, so one less than an even one."""

SUBSTEPS = 512
"""Steps of Heun's method whose result counts as the solution."""


@dataclass(frozen=True)
class SolverProblem:
    """A denoiser, and the noise to start from."""

    name: str
    denoise: Denoiser
    noise: Tensor
    """[N, C, H, W], float64."""
    labels: Tensor
    interval: Interval = EVERYWHERE
    """Noise levels at which `denoise` guides."""

    def solved(self, sampler: Sampler, num_steps: int) -> Tensor:
        """Draw images by a solver."""
        return sampler.sample(self.denoise, self.noise, self.labels, num_steps=num_steps, dtype=torch.float64)

    def solution(self, num_steps: int | None = None) -> Tensor:
        """Draw images in many steps; with guidance as in `num_steps` steps if they are given."""
        if num_steps is None:
            return self.solved(HEUN, SUBSTEPS)
        held = HeldWithin(self.denoise, sigma_steps(num_steps, dtype=torch.float64))
        fine = (num_steps - 1) * math.ceil(SUBSTEPS / num_steps) + 1  # levels of coarse steps are among the fine ones
        return sample_heun(held, self.noise, self.labels, num_steps=fine, dtype=torch.float64)


class HeldWithin:
    """A denoiser whose guidance is decided where steps of `t_steps` begin, however fine the steps really are."""

    def __init__(self, denoise: Denoiser, t_steps: Tensor) -> None:
        self.denoise = denoise
        self.t_steps = t_steps[:-1]

    def at_step(self, sigma: Tensor) -> Denoiser:
        """Return the denoiser of the coarse step that holds `sigma`; rounding of the levels aside."""
        return denoiser_at_step(self.denoise, self.t_steps[self.t_steps >= sigma * (1 - 1e-9)][-1])


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--images", default=64, show_default=True, help="Images of a network; the mixture has 256.")
@click.option("--mixture", type=click.Path(path_type=Path), help="File with a mixture of Gaussians.")
@click.option("--guidance", type=float, default=1.0, help="Weight; networks guide themselves by missing labels.")
@click.option("--interval", type=INTERVAL, help="Noise levels with guidance; default: all.")
@click.option("--budgets", default=",".join(map(str, BUDGETS)), show_default=True, help="Evaluations.")
@click.option("--plot", type=PNG_FILE, help="PNG file for error against evaluations.")
@click.option("--samples", default=0, show_default=True, help="Images for Frechet distances of digits8; 0: none.")
def main(
    networks: Sequence[str],
    images: int,
    mixture: Path | None,
    guidance: float,
    interval: Interval | None,
    budgets: str,
    plot: Path | None,
    samples: int,
) -> None:
    """Measure errors of all solvers on NETWORKS, and print them as tables."""
    problems = [] if mixture is None else [mixture_problem(mixture)]
    problems += [network_problem(name, images, guidance, interval or EVERYWHERE) for name in networks]
    evaluations = [int(budget) for budget in budgets.split(",")]
    errors = {problem.name: print_errors(problem, evaluations) for problem in problems}
    if plot is not None:
        plot_errors(plot, evaluations, errors)
    if samples:
        print_distances(samples)


# ----------------------------------------------------------------------------------------------------------------------
# Problems


def network_problem(name: str, count: int, guidance: float, interval: Interval) -> SolverProblem:
    """Return the images of seeds 0, 1, ..., each class in turn, as a problem."""
    net = fold(edm2.load(name))
    noise = SeedRandom(range(count)).randn((net.config.img_channels, *net.config.size))
    labels = torch.arange(count) % net.config.label_dim

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return net(x.float(), sigma.float(), labels).double()

    guided = edm2.guided(denoise, edm2.without_labels(denoise), guidance, interval)
    return SolverProblem(Path(name).stem, guided, noise.double(), labels, interval)


def mixture_problem(path: Path, count: int = 256) -> SolverProblem:
    """Return the ideal denoiser of a mixture of Gaussians as a problem.

        D(x; sigma) = sum_k r_k (s_k² x + sigma² mu_k) / v_k, v_k = s_k² + sigma²

    Component k is responsible for x [d] to r_k ~ exp(logw_k - |x - mu_k|² / (2 v_k)) / v_k^(d/2).
    """
    tensors = load_file(path)
    mu, s, logw = (tensors[f"gmm/main/{name}"] for name in ("mu", "s", "logw"))

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        v = s**2 + sigma**2
        distances = (x[:, None] - mu).square().sum(dim=(2, 3, 4))
        r = (labels @ logw - distances / (2 * v) - x[0].numel() / 2 * v.log()).softmax(dim=1)  # [N, K]
        of_x, of_mu = r @ (s**2 / v), torch.einsum("nk,kchw->nchw", r * sigma**2 / v, mu)
        return of_x[:, None, None, None] * x + of_mu

    noise = torch.randn(count, *mu.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = one_hot(torch.arange(count) % len(logw), len(logw)).double()
    return SolverProblem("mixture", denoise, noise, labels)


# ----------------------------------------------------------------------------------------------------------------------
# Errors


Errors = dict[str, list[tuple[float, float]]]
"""Root mean square over all images and median over images, by solver and number of evaluations."""


def print_errors(problem: SolverProblem, budgets: Sequence[int]) -> Errors:
    """Print the errors of all solvers, one row per number of evaluations."""
    found: Errors = {name: [] for name in SAMPLERS}
    solution = cache(problem.solution)
    click.echo(f"\n| {problem.name} | " + " | ".join(SAMPLERS) + " |\n" + "|---" * (1 + len(SAMPLERS)) + "|")
    for budget in budgets:
        for name, sampler in SAMPLERS.items():
            num_steps = steps_within(sampler, budget)
            exact = solution(None if problem.interval == EVERYWHERE else num_steps)
            found[name].append(distances(problem.solved(sampler, num_steps), exact))
        shown = (f"{rms:.1e} ({median:.1e})" for rms, median in (found[name][-1] for name in SAMPLERS))
        click.echo(f"| {budget} | " + " | ".join(shown) + " |")
    return found


def steps_within(sampler: Sampler, budget: int) -> int:
    """Steps that take at most `budget` evaluations."""
    return (budget - 1) // sampler.evaluations_per_step + 1


def distances(images: Tensor, exact: Tensor) -> tuple[float, float]:
    """Root mean square over all images, and the median of the images' own."""
    squares = (images - exact).square().mean(dim=(1, 2, 3))
    return squares.mean().sqrt().item(), squares.sqrt().median().item()


def plot_errors(path: Path, budgets: Sequence[int], errors: dict[str, Errors]) -> None:
    """Median error against evaluations, one panel per problem, both axes logarithmic."""
    figure, panels = plt.subplots(
        1, len(errors), figsize=(1 + 3.4 * len(errors), 3.6), squeeze=False, layout="constrained"
    )
    for axes, (name, found) in zip(panels[0], errors.items(), strict=True):
        styled(axes)
        for color, (solver_name, values) in zip(colors(len(found)), found.items(), strict=True):
            sampler = SAMPLERS[solver_name]
            taken = [sampler.evaluations(steps_within(sampler, budget)) for budget in budgets]
            axes.loglog(taken, [median for _, median in values], "o-", color=color, label=solver_name, markersize=4)
        axes.axhline(found[HEUN.name][-1][1], color=GRAY, linewidth=0.8, linestyle=":")
        axes.set_xticks(budgets, map(str, budgets))
        axes.minorticks_off()
        axes.set_title(name)
        axes.set_xlabel("evaluations per image")
    panels[0][0].set_ylabel("error (root mean square), median image")
    panels[0][0].legend(frameon=False)
    save_figure(figure, path)


# ----------------------------------------------------------------------------------------------------------------------
# Frechet distances


def print_distances(count: int) -> None:
    """Print scores of digits8, as `edm2 sweep` does, drawn with fewer and fewer evaluations."""
    net, codec = fold(edm2.load("digits8")), codec_of("digits8", edm2.read_metadata("digits8"), None)
    evaluator = evaluator_by(open_dataset("digits"), load_detector("pixels"))
    tried = [(HEUN, 63), (HEUN, 31), (HEUN, 15)]
    tried += [(sampler, n) for sampler in SAMPLERS.values() if sampler != HEUN for n in (63, 32, 24, 16, 12, 8)]
    click.echo("\n| evaluations | Frechet distance | recognized |\n|---|---|---|")
    for sampler, budget in tried:
        num_steps = steps_within(sampler, budget)
        score = score_network(net, codec, evaluator, SampleSettings(count, num_steps, sampler=sampler))
        title = f"{sampler.evaluations(num_steps)}, {sampler.name}"
        click.echo(f"| {title} | {score.distance:.4f} ± {score.deviation:.4f} | {score.accuracy:.4f} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
