"""Command lines that make a network of a run and draw its images, for people to paste."""

import shlex
from collections.abc import Mapping, Sequence

from edm2.sampling.guidance import EVERYWHERE
from edm2.sampling.samplers import HEUN
from edm2.sweep.averages import RAW, Averages
from edm2.sweep.evaluator import SampleSettings
from edm2.sweep.guides import Guide, GuideRun
from edm2.sweep.sweep import Point
from edm2.tools.reports.reconstruction import reconstructed_name
from edm2.training import RunFolder


def draw_commands(
    averages: Averages,
    sampling: SampleSettings,
    point: Point,
    guides: Guide | None = None,
    guide: str | None = None,
    programs: Mapping[str, str | None] | None = None,
    seeds: str = "0-63",
    target: tuple[str, str] = ("--out", "samples"),
    conditions: Sequence[str] = (),
) -> list[str]:
    """Return command lines that make the network of a point and draw its images.

    Args:
        averages: Averages of the run.
        sampling: Steps, solver or levels of a flow map, and interval.
        point: Time, EMA length and guidance.
        guides: Guides of other weights than 1.
        guide: Value of --guide, if it is not a run; None: the network itself without classes.
        programs: Options with programs of the user's own; None where there is none.
        seeds: Value of --seeds.
        target: Option and value that say where the images go.
        conditions: Values of --condition; none for those of held-out images, whose values are left open as "...".
    """
    lines, network = _network(averages, point.images_seen, point.sigma_rel)
    draw = ["edm2", "generate", network, "--seeds", seeds]
    draw += ["--balanced"] if averages.config.label_dim else []
    draw += [word for option, value in (programs or {}).items() if value is not None for word in (option, value)]
    held_out = () if sampling.conditions is None else [f"{name}=..." for name in sampling.conditions.rows]
    draw += [word for text in conditions or held_out for word in ("--condition", text)]
    if sampling.levels is None:
        draw += ["--steps", str(sampling.num_steps)]
        draw += [] if sampling.sampler == HEUN else ["--solver", sampling.sampler.name]
    else:
        draw += ["--levels", ",".join(f"{level:g}" for level in sampling.levels)]
    draw += target
    if point.guidance != 1:
        if isinstance(guides, GuideRun):
            made, guide = _network(guides.averages, guides.at, point.used_guide_sigma_rel)
            lines += made
        draw += ["--unlabelled-guide"] if guide is None else ["--guide", guide]
        draw += ["--guidance", f"{point.guidance:g}"]
        draw += [] if sampling.interval == EVERYWHERE else ["--interval", "{:g},{:g}".format(*sampling.interval)]
    return [*lines, shlex.join(draw)]


def _network(averages: Averages, at: int, sigma_rel: float) -> tuple[list[str], str]:
    """Command line that makes an average, none for raw weights, and the file that holds it."""
    if sigma_rel == RAW:
        return [], str(RunFolder(averages.folder).raw_weights)
    command = ["edm2", "reconstruct", str(averages.folder), "--std", f"{sigma_rel:g}"]
    command += [] if at == averages.last else ["--at", str(at)]
    return [shlex.join(command)], str(averages.folder / "reconstructed" / reconstructed_name(at, sigma_rel))
