"""What a run leaves in its folder, checkpoints aside: reports, snapshots, samples, raw weights."""

import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm2 import __version__
from edm2.networks import Precond, build_network
from edm2.post_hoc_ema import TraditionalEMA, snapshot_name, write_snapshot
from edm2.training.config import DTYPES, TrainingConfig
from edm2.training.data.batches import BatchStream
from edm2.training.data.codecs import Codec
from edm2.training.diagnostics.holdout import evenly_spaced, measure_loss
from edm2.training.distributed.strategies import Parallel
from edm2.training.loss.noise import NoiseDistribution
from edm2.training.run.logging import Monitor, Record
from edm2.training.run.run_folder import RunFolder

SampleHook = Callable[[Precond, Codec, Path], None]
"""Draws samples of a network into a file."""


class Output:
    """Writes what a run leaves behind.

    All processes of a job call the same methods, since weights that are divided among them must be gathered; only the
    first one writes.

    Args:
        config: The run.
        folder: Where to write.
        feed: Where the images come from.
        parallel: The processes.
        buffers: Names of the network's tensors that are not trained.
        images_seen: Where the run stands.
    """

    def __init__(
        self,
        config: TrainingConfig,
        folder: RunFolder,
        feed: BatchStream,
        parallel: Parallel,
        buffers: Sequence[str],
        images_seen: int,
    ) -> None:
        self.config = config
        self.folder = folder
        self.feed = feed
        self.parallel = parallel
        self.buffers = list(buffers)
        self.device = feed.device
        self.writes = parallel.processes.is_first
        self.monitor = Monitor(folder.path, config.duration, images_seen) if self.writes else None
        self.start_clock(images_seen)

    # --------------------------------------------------------------------------------------------------- reports

    def start_clock(self, images_seen: int) -> None:
        """Speed is measured from here to the next report."""
        self._clock = time.perf_counter()
        self._reported_at = images_seen

    def advance(self) -> None:
        """Move the bar by a step."""
        if self.monitor is not None:
            self.monitor.status.advance(self.config.batch_size)

    def report(self, images_seen: int, numbers: Mapping[str, Any]) -> None:
        """Write numbers since the last report to the status line, stats.jsonl and TensorBoard."""
        images, seconds = images_seen - self._reported_at, time.perf_counter() - self._clock
        record: Record = {"images_seen": images_seen, **numbers}
        record["seconds"] = seconds
        record["images_per_second"] = images / seconds
        record["peak_memory_gb"] = peak_memory(self.device) / 2**30
        if self.monitor is not None:
            self.monitor.report(record)
        self.start_clock(images_seen)

    def close(self) -> None:
        """Leave the bar behind."""
        if self.monitor is not None:
            self.monitor.status.close()

    # ------------------------------------------------------------------------------------------- averaged networks

    def network(self, weights: Mapping[str, Tensor]) -> Precond | None:
        """A network with these weights, in evaluation mode; None in all processes but the first."""
        whole = {name: tensor.to(self.device) for name, tensor in self._gathered(weights)}
        if not self.writes:
            return None
        with torch.device("meta"):
            net = build_network(self.config.network)
        net.load_state_dict(whole, assign=True)
        net.compute_dtype = DTYPES[self.config.precision]
        return net.eval().requires_grad_(False)

    def measured_losses(
        self, net: Precond | None, distribution: NoiseDistribution, images_per_forward: int
    ) -> dict[str, Any]:
        """Loss per noise level on held-out images, and on as many training images; nothing without a network.

        The training images are evenly spaced, as a dataset may be sorted by class.
        """
        if net is None:
            return {}
        feed = self.feed
        count = min(len(feed.holdout_set), len(feed.train_set))
        measured: dict[str, Any] = {}
        for name, dataset in (("holdout", feed.holdout_set), ("train", feed.train_set)):
            images, labels = feed.all_of(evenly_spaced(dataset, count))
            levels = measure_loss(net, images, labels, distribution, images_per_forward)
            measured |= {f"{name}_loss": levels.mean, f"{name}_losses": levels.losses, "sigmas": levels.sigmas}
        return measured

    def save_samples(self, images_seen: int, net: Precond | None, draw: SampleHook) -> None:
        """A grid of samples."""
        if net is not None:
            self.folder.samples.mkdir(exist_ok=True)
            draw(net, self.feed.codec, self.folder.samples / f"samples-{images_seen:012d}.png")

    # ------------------------------------------------------------------------------------------------ weights

    def save_snapshot(self, images_seen: int, sigma_rel: float, average: Mapping[str, Tensor]) -> None:
        """The average of one profile: a file that is complete or not there."""
        path = self.folder.snapshots / snapshot_name(images_seen, sigma_rel)
        metadata = self._metadata(images_seen) | {"sigma_rel": sigma_rel}
        self._write(path, average, metadata, DTYPES[self.config.snapshot_precision])

    def remove_snapshots(self, times: Collection[int]) -> None:
        """Those of all lengths; what a run that was killed has removed already is no matter."""
        for images_seen in times if self.writes else ():
            for sigma_rel in self.config.sigma_rels:
                (self.folder.snapshots / snapshot_name(images_seen, sigma_rel)).unlink(missing_ok=True)

    def save_traditional(self, images_seen: int, ema: TraditionalEMA) -> None:
        """The average of a fixed half-life."""
        metadata = self._metadata(images_seen) | {"sigma_rel": ema.sigma_rel}
        metadata |= {"half_life": self.config.traditional_ema, "reconstructed_from": []}
        self._write(self.folder.traditional_ema, ema.average(), metadata)

    def save_raw_weights(self, images_seen: int, weights: Mapping[str, Tensor]) -> None:
        """The weights as the optimizer left them, without any averaging: an EMA of length zero."""
        self._write(self.folder.raw_weights, weights, self._metadata(images_seen) | {"sigma_rel": 0.0})

    def _write(
        self, path: Path, weights: Mapping[str, Tensor], metadata: dict[str, Any], dtype: torch.dtype | None = None
    ) -> None:
        whole = {name: tensor.cpu() for name, tensor in self._gathered(weights)}
        if self.writes:
            write_snapshot(path, whole, metadata, dtype)

    def _gathered(self, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors one by one, for the first process; the others give their parts and get nothing."""
        for name, tensor in self.parallel.gathered(weights):
            if self.writes:
                yield name, tensor

    def _metadata(self, images_seen: int) -> dict[str, Any]:
        """What a snapshot says about itself."""
        config = self.config.to_json()
        return {
            "network": config.pop("network"),
            "codec": self.feed.codec.to_json(),
            "images_seen": images_seen,
            "preset": config["preset"],
            "data": {
                "name": self.feed.dataset.name,
                "num_images": len(self.feed.train_set),
                "class_names": list(self.feed.dataset.class_names),
            },
            "training": config,
            "buffers": self.buffers,
            "edm2_version": __version__,
        }


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU where there is one, else resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
