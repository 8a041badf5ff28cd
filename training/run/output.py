"""Files that a run leaves in its folder, checkpoints aside: reports, snapshots, raw weights."""

import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edm2 import __version__
from edm2.networks import Precond
from edm2.networks.precond import levels_of
from edm2.post_hoc_ema import TraditionalEMA, snapshot_name, write_snapshot
from edm2.training.config import DTYPES, TrainingConfig
from edm2.training.data.batches import BatchStream
from edm2.training.diagnostics.holdout import evenly_spaced, measure_loss, with_shuffled_conditions
from edm2.training.distributed.strategies import Strategy
from edm2.training.loss.noise import NoiseDistribution
from edm2.training.run.logging import Monitor, Record
from edm2.training.run.run_folder import INTERIM, RunFolder

EXTERNAL = "external"
"""Architecture in the metadata of snapshots of a network that was handed to the trainer, which say no more of it than
what images it draws."""


class Output:
    """Writes the files of a run.

    All processes of a job call the same methods, since sharded weights must be gathered; only the first one writes.

    Args:
        strategy: Gathers sharded tensors.
        blank: Makes a network for averaged weights to be loaded into.
        buffers: Names of the network's tensors that are not trained.
    """

    def __init__(
        self,
        config: TrainingConfig,
        folder: RunFolder,
        stream: BatchStream,
        strategy: Strategy,
        blank: Callable[[], nn.Module],
        buffers: Sequence[str],
        images_seen: int,
    ) -> None:
        self.config = config
        self.folder = folder
        self.stream = stream
        self.strategy = strategy
        self.blank = blank
        self.buffers = list(buffers)
        self.device = stream.device
        self.writes = strategy.processes.is_first
        self.run = folder.run()
        self.monitor = Monitor(folder.path, config.duration, images_seen) if self.writes else None
        self._start_clock(images_seen)

    # --------------------------------------------------------------------------------------------------- reports

    def _start_clock(self, images_seen: int) -> None:
        """Measure speed from here to the next report."""
        self._clock = self._shown = time.perf_counter()
        self._reported_at = images_seen

    def advance(self) -> None:
        """Move the bar by a step."""
        if self.monitor is not None:
            self.monitor.status.advance(self.config.batch_size)

    def is_silent(self) -> bool:
        """True if no status line has been shown for a while; only in the first process, and without looking at it."""
        return self.writes and time.perf_counter() - self._shown > self.config.status_seconds

    def show(self, images_seen: int, numbers: Mapping[str, Any]) -> None:
        """Show numbers since the last report on the status line, and store nothing."""
        self._shown = now = time.perf_counter()
        images_per_second = (images_seen - self._reported_at) / (now - self._clock)
        if self.monitor is not None:
            self.monitor.status.report({"images_seen": images_seen, "images_per_second": images_per_second, **numbers})

    def report(self, images_seen: int, numbers: Mapping[str, Any]) -> Record:
        """Write numbers since the last report to the status line, stats.jsonl and TensorBoard; return the record."""
        images, seconds = images_seen - self._reported_at, time.perf_counter() - self._clock
        record: Record = {"images_seen": images_seen, **numbers}
        record["seconds"] = seconds
        record["images_per_second"] = images / seconds
        record["peak_memory_gb"] = peak_memory(self.device) / 2**30
        if self.monitor is not None:
            self.monitor.report(record)
        self._start_clock(images_seen)
        return record

    def close(self) -> None:
        """Leave the bar behind."""
        if self.monitor is not None:
            self.monitor.status.close()

    # ------------------------------------------------------------------------------------------- averaged networks

    def network(self, weights: Mapping[str, Tensor]) -> nn.Module | None:
        """A network with these weights, in evaluation mode; None in all processes but the first."""
        whole = {name: tensor.to(self.device) for name, tensor in self._gathered(weights)}
        if not self.writes:
            return None
        net = self.blank()
        net.load_state_dict(whole, assign=True)
        if isinstance(net, Precond):
            net.empty_classes = self._empty_classes()
            if self.config.distillation is not None:
                net.abilities = self.config.distillation.abilities
        return net.eval().requires_grad_(False)

    def measured_losses(self, net: Any, distribution: NoiseDistribution, images_per_forward: int) -> dict[str, Any]:
        """Loss per noise level on held-out images, and on as many training images; nothing without a network.

        The training images are evenly spaced, as a dataset may be sorted by class.
        """
        if net is None:
            return {}
        stream = self.stream
        held_out = stream.holdout_set
        assert held_out is not None  # some are held out where losses are measured
        count = min(len(held_out), len(stream.train_set))
        measured: dict[str, Any] = {}
        for name, dataset in (("holdout", held_out), ("train", stream.train_set)):
            batch = stream.all_of(evenly_spaced(dataset, count))
            levels = measure_loss(net, batch, distribution, images_per_forward)
            measured |= {f"{name}_loss": levels.mean, f"{name}_losses": levels.losses, "sigmas": levels.sigmas}
            measured[f"{name}_error"] = levels.error(batch.images.square().mean().item(), self.config.sigma_data)
            if name == "holdout" and batch.conditions:  # a network that uses its conditions loses without them
                shuffled = measure_loss(net, with_shuffled_conditions(batch), distribution, images_per_forward)
                measured |= {"holdout_loss_shuffled": shuffled.mean, "holdout_losses_shuffled": shuffled.losses}
        return measured

    # ------------------------------------------------------------------------------------------------ weights

    def save_snapshot(
        self, images_seen: int, sigma_rel: float, average: Mapping[str, Tensor], interim: bool = False
    ) -> None:
        """Write the average over one profile: a file that is complete or not there.

        Args:
            interim: The run has stopped between two regular snapshots, and this one goes with the next of them.
        """
        path = self.folder.snapshots / snapshot_name(images_seen, sigma_rel)
        metadata = self.metadata(images_seen) | {"sigma_rel": sigma_rel, **({INTERIM: True} if interim else {})}
        self._write(path, average, metadata, DTYPES[self.config.snapshot_precision])

    def remove_snapshots(self, times: Collection[int]) -> None:
        """Remove snapshots of all EMA lengths; a run that was killed may have removed some already."""
        for images_seen in times if self.writes else ():
            for sigma_rel in self.config.sigma_rels:
                (self.folder.snapshots / snapshot_name(images_seen, sigma_rel)).unlink(missing_ok=True)

    def save_traditional(self, images_seen: int, ema: TraditionalEMA) -> None:
        """Write the average of a fixed half-life."""
        metadata = self.metadata(images_seen) | {"sigma_rel": ema.sigma_rel}
        metadata |= {"half_life": self.config.traditional_ema, "reconstructed_from": []}
        self._write(self.folder.traditional_ema, ema.average(), metadata)

    def save_raw_weights(self, images_seen: int, weights: Mapping[str, Tensor]) -> None:
        """Write the weights as the optimizer left them, without any averaging: an EMA length of zero."""
        self._write(self.folder.raw_weights, weights, self.metadata(images_seen) | {"sigma_rel": 0.0})

    def remove_raw_weights(self) -> None:
        """Remove those of an end that is none any more: whether they are there says if a run is finished."""
        if self.writes:
            self.folder.raw_weights.unlink(missing_ok=True)

    def _write(
        self, path: Path, weights: Mapping[str, Tensor], metadata: dict[str, Any], dtype: torch.dtype | None = None
    ) -> None:
        whole = {name: tensor.cpu() for name, tensor in self._gathered(weights)}
        if self.writes:
            write_snapshot(path, whole, metadata, dtype)

    def _gathered(self, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors one by one, for the first process; the others give their shards and get nothing."""
        for name, tensor in self.strategy.gathered(weights):
            if self.writes:
                yield name, tensor

    def metadata(self, images_seen: int) -> dict[str, Any]:
        """Metadata of a snapshot, which describes itself."""
        config = self.config.to_json()
        network = config.pop("network")
        return {
            **({"architecture": EXTERNAL, "images": self._drawn_images()} if network is None else {"network": network}),
            "codec": self.stream.codec.to_json(),
            "images_seen": images_seen,
            "preset": config["preset"],
            "data": {
                "name": self.stream.dataset.name,
                "num_images": len(self.stream.train_set),
                "class_names": list(self.stream.dataset.class_names),
                **({"empty_classes": list(empty)} if (empty := self._empty_classes()) else {}),
            },
            "training": config,
            "buffers": self.buffers,
            **self._ways_to_sample(),
            **({"run": self.run} if self.run else {}),
            "edm2_version": __version__,
        }

    def _ways_to_sample(self) -> dict[str, Any]:
        """Ways to sample a distilled network; nothing for others, which are denoisers."""
        if self.config.distillation is None:
            return {}
        abilities = self.config.distillation.abilities
        levels = {str(steps): list(levels) for steps, levels in levels_of(abilities).items()}
        return {"abilities": list(abilities), "map_levels": levels}

    def _empty_classes(self) -> tuple[int, ...]:
        """Classes without an image to train on."""
        return self.stream.train_set.empty_classes() if self.stream.has_labels else ()

    def _drawn_images(self) -> dict[str, Any]:
        """Shape and classes of the images of an external network, which sampling must know."""
        stream = self.stream
        return {
            "img_resolution": list(stream.shape[1:]),
            "img_channels": stream.shape[0],
            "label_dim": len(stream.dataset.class_names) if stream.has_labels else 0,
        }


def peak_memory(device: torch.device) -> int:
    """Peak of memory in bytes: of the GPU where there is one, else resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
