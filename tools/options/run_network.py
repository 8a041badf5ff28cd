"""The network of a run: its snapshots averaged to one EMA length, the best that is known unless one is asked for."""

from pathlib import Path

import click

from edm2.sampling.samplers.registry import Sampler, default_sampler, default_steps
from edm2.training.distributed.processes import Processes


def is_run(name: str | Path) -> bool:
    """True if a folder holds a run that has begun."""
    return (Path(name) / "config.json").is_file() and (Path(name) / "snapshots").is_dir()


def network_of_run(
    run: Path,
    sigma_rel: float | None,
    processes: Processes,
    steps: int | None = None,
    sampler: Sampler | None = None,
) -> str:
    """Path of a file with the average of a run at its last time; it is made if it is not there, and named on screen.

    Args:
        sigma_rel: EMA length; None for the best in the run's sweep.csv, else the longest that was tracked.
        processes: Processes that use it; the first makes it.
        steps, sampler: Sampling steps and solver; None: those of the network. A sweep over several numbers of steps
            found a length for each.
    """
    path = ""
    if processes.is_first:
        path = str(_made(run, sigma_rel, steps, sampler))
    return processes.broadcast(path)


def _made(run: Path, sigma_rel: float | None, steps: int | None, sampler: Sampler | None) -> Path:
    from edm2.io.model import reconstructed_metadata
    from edm2.io.snapshots import open_run, refuse_different_runs
    from edm2.post_hoc_ema import reconstruct_files, select_snapshots
    from edm2.sampling.external import ways_to_sample
    from edm2.tools.reports.reconstruction import reconstructed_name

    used = select_snapshots(open_run(run), None)
    refuse_different_runs(used)
    at = used[0].images_seen
    why = "as asked for"
    if sigma_rel is None:
        longest = max(s.sigma_rel or 0 for s in used if s.images_seen == at)
        abilities, _ = ways_to_sample(used[0].metadata)
        steps = steps or default_steps(sampler or default_sampler(abilities), abilities)
        sigma_rel, why = _best(run, at, steps) or (longest, "not swept yet")
    click.echo(f"{run}: EMA length {sigma_rel:g} ({why}) at {at:,} images")
    stored = [s for s in used if (s.images_seen, s.sigma_rel) == (at, sigma_rel) and s.path.is_file()]
    if stored:
        return stored[0].path
    path = run / "reconstructed" / reconstructed_name(at, sigma_rel)
    if not path.exists():
        reconstruct_files(used, [sigma_rel], [path], [reconstructed_metadata(used[::-1], at, sigma_rel)])
    return path


def _best(run: Path, at: int, steps: int) -> tuple[float, str] | None:
    """EMA length that scored best without guidance at the last time, else at any; None without a sweep."""
    from edm2.tools.reports.tables import read_sweep, table_of

    table = table_of(run, steps)
    if not table.is_file():
        return None
    unguided = [result for result in read_sweep(table).averages if result.point.guidance == 1]
    now = [result for result in unguided if result.point.images_seen == at] or unguided
    if not now:
        return None
    best = min(now, key=lambda result: result.score.distance).point
    when = "" if best.images_seen == at else f", at {best.images_seen:,} images"
    return best.sigma_rel, f"best in {table}{when}"
