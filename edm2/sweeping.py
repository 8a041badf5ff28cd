"""Which EMA length is best: reconstruct many, score each."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from edm2.judging import PixelJudge, Score
from edm2.model import load, network_from_state, read_metadata
from edm2.post_hoc_ema import reconstruct
from edm2.snapshots import open_run
from edm2.training import Dataset, RunFolder, codec_from_json


@dataclass(frozen=True)
class SweepPoint:
    """One EMA length and what it scored."""

    sigma_rel: float
    score: Score
    state: dict[str, Tensor]
    """The reconstructed weights."""


@dataclass(frozen=True)
class Sweep:
    """The scores of many EMA lengths."""

    points: list[SweepPoint]
    raw: Score | None
    """Score of the weights without averaging, if the run is finished."""
    floor: float
    """Frechet distance of as many real images."""

    @property
    def best(self) -> SweepPoint:
        """The point with the lowest Frechet distance."""
        return min(self.points, key=lambda point: point.score.frechet)


def sweep_run(
    run: Path,
    sigma_rels: Sequence[float],
    dataset: Dataset,
    *,
    at: int | None = None,
    count: int = 500,
    num_steps: int = 32,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Sweep:
    """Score each EMA length, always with the same seeds.

    Args:
        run: Run folder.
        sigma_rels: EMA lengths to reconstruct.
        dataset: Real images to compare with.
        at: Images seen by the reconstructed averages; None for the latest snapshot's.
        count: Samples per length.
        num_steps: Sampling steps.
        progress: Wraps the iterable of lengths, such as `tqdm`.
    """
    snapshots = open_run(run)
    try:
        states = reconstruct(snapshots, sigma_rels, at)
    except ValueError as error:
        raise ValueError(f"{run}: {error}") from None
    judge = PixelJudge(dataset)
    metadata = snapshots[-1].metadata
    codec = codec_from_json(metadata["codec"])
    points = []
    for sigma_rel, state in progress(list(zip(sigma_rels, states, strict=True))):
        score = judge.judge(network_from_state(metadata, state), codec, count, num_steps)
        points.append(SweepPoint(sigma_rel, score, state))
    raw = _judge_raw_weights(RunFolder(run).raw_weights, judge, count, num_steps) if at is None else None
    return Sweep(points, raw, judge.floor(count))


def _judge_raw_weights(path: Path, judge: PixelJudge, count: int, num_steps: int) -> Score | None:
    """Score of a finished run's last weights."""
    if not path.exists():
        return None
    return judge.judge(load(path), codec_from_json(read_metadata(path)["codec"]), count, num_steps)
