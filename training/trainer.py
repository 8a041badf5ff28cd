"""The training loop (arXiv 2312.02696v2, Algorithm 1 with Eqs. 15, 21, 67 and 127). The clock is images seen."""

import copy
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm2 import __version__
from edm2.networks import Precond, force_weight_normalization_
from edm2.post_hoc_ema import PowerFunctionEMA, TraditionalEMA, snapshot_name, write_snapshot
from edm2.training.bins import x0_gradients
from edm2.training.checkpoint import adam_state, find_checkpoints, load_checkpoint, save_checkpoint
from edm2.training.codec import Codec, codec_from_json
from edm2.training.config import TrainingConfig
from edm2.training.data import Dataset, open_dataset
from edm2.training.diagnostics import Diagnostics
from edm2.training.feed import Feed
from edm2.training.holdout import measure_loss
from edm2.training.initialization import fresh_network, load_snapshot_
from edm2.training.monitor import Monitor, Record
from edm2.training.objective import stratified_normal
from edm2.training.pareto import Pareto
from edm2.training.randomness import PlaceRandom, Stream
from edm2.training.run_folder import RunFolder
from edm2.training.schedule import inverse_sqrt_lr, is_due
from edm2.training.speed import Measurement, Speedometer
from edm2.training.totals import StepResult, Totals

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

SampleHook = Callable[[Precond, Codec, Path], None]
"""Draws samples of a network into a file."""

SpeedHook = Callable[[float, int], None]
"""Hears once how many images per second are trained on, and how many images are left."""

SnapshotHook = Callable[[int], dict[str, float]]
"""Hears of images seen when the snapshots of that time are written; returns numbers for TensorBoard, by name."""


class TrainingError(RuntimeError):
    """A run cannot go on; the message is one line that says why and what to do."""


class Trainer:
    """Trains one network on one device.

    Args:
        config: The run.
        dataset: Images to train on; by default those that `config.data` names.
        on_sample: Called with an averaged network at the intervals of `config.sample_every`.
        on_speed: Called once, when enough steps have been timed.
        on_snapshot: Called when the snapshots of a time are written.

    Attributes:
        net: The network as the optimizer sees it.
        ema: Its power-function averages.
        images_seen: The clock.
        stop_requested: Set it to make `run` save a checkpoint and return after the current step.
    """

    def __init__(
        self,
        config: TrainingConfig,
        dataset: Dataset | None = None,
        on_sample: SampleHook | None = None,
        on_speed: SpeedHook | None = None,
        on_snapshot: SnapshotHook | None = None,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.on_sample = on_sample
        self.on_speed = on_speed
        self.on_snapshot = on_snapshot
        self.device = torch.device(config.device)
        self.folder = RunFolder(config.out)
        self.images_seen = 0
        self.stop_requested = False

        self.net = fresh_network(config.network, config.seed)
        if config.init is not None and not find_checkpoints(self.folder.checkpoints):
            load_snapshot_(self.net, config.init)
        self.net.to(self.device).train()
        self.net.compute_dtype = DTYPES[config.precision]
        self.denoiser = torch.compile(self.net) if config.compile else self.net
        self.loss = config.objective()
        self.diagnostics = Diagnostics(config, self.loss.distribution)
        if not self.loss.weighting.uses_uncertainty:
            self.net.logvar_linear.requires_grad_(False)  # it gets no gradient, and other processes would wait for one
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config.ref_lr, betas=config.betas, fused=fused)
        self.ema = PowerFunctionEMA(self.net, config.sigma_rels)
        half_life = config.traditional_ema
        self.traditional_ema = None if half_life is None else TraditionalEMA(self.net, half_life)
        self.random = PlaceRandom(config.seed, config.random_block, self.device)
        self.totals = Totals(self.device)
        self.speedometer = Speedometer(config.batch_size, wait=self.totals.loss.item)  # reading waits for the device

    # ------------------------------------------------------------------------------------------------ one step

    def step(
        self,
        microbatches: Sequence[tuple[Tensor, Tensor | None]],
        sigma: Sequence[Tensor] | None = None,
        noise: Sequence[Tensor] | None = None,
    ) -> StepResult:
        """One optimizer step on `config.batch_size` images.

        Args:
            microbatches: (images, labels) of each accumulation round: what the network sees, [N, C, H, W] on the
                device, and its classes.
            sigma: Noise levels [N] of each round; by default those of the images' places in the run.
            noise: Unit Gaussian noise of each round, shaped like its images; likewise.

        Returns:
            Loss and gradients of the step, still on the device.
        """
        config = self.config
        force_weight_normalization_(self.net)  # once: all rounds of a step see the same weights
        self._learn_weights(microbatches)
        self.optimizer.zero_grad(set_to_none=True)
        place = self.images_seen
        loss_sum = torch.zeros((), device=self.device)
        for i, (images, labels) in enumerate(microbatches):
            level = sigma[i] if sigma is not None else self._draw_sigma(place, len(images))
            unit = noise[i] if noise is not None else self._draw_noise(place, images.shape)
            self._seed_dropout(place)
            loss = self.loss(self.denoiser, images, labels, sigma=level, noise=unit).sum() / config.batch_size
            (loss * config.loss_scale).backward()
            loss_sum += loss.detach()
            place += len(images)

        grad_norm, nonfinite = clean_gradients_(self.net)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        self.images_seen += config.batch_size
        for ema in self._trackers().values():
            ema.update(self.images_seen)
        return StepResult(loss_sum, grad_norm / config.loss_scale, nonfinite)

    def _trackers(self) -> dict[str, PowerFunctionEMA | TraditionalEMA]:
        """All averages, by their names in a checkpoint."""
        traditional = {} if self.traditional_ema is None else {"traditional_ema": self.traditional_ema}
        return {"ema": self.ema, **traditional}

    def learning_rate(self) -> float:
        """Learning rate of the step that comes next (Eq. 67)."""
        c = self.config
        return inverse_sqrt_lr(self.images_seen, c.batch_size, c.ref_lr, c.ref_batches, c.rampup_images)

    def _learn_weights(self, microbatches: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        """Now and then, weights of noise levels that are learned from gradients learn from those of a step's images."""
        weighting, place = self.loss.weighting, self.images_seen
        if not isinstance(weighting, Pareto) or not weighting.is_due(self.images_seen // self.config.batch_size):
            return
        sums = []
        for images, labels in microbatches:
            sigma = self._stratified_sigma(place, len(images))  # so that every bin has images
            noise = self._draw_noise(place, images.shape)
            self._seed_dropout(place)
            sums.append(x0_gradients(self.net, weighting.bins, images, labels, sigma, noise))
            place += len(images)
        gradients, counts = zip(*sums, strict=True)
        weighting.update(sum(gradients), sum(counts))

    def _draw_sigma(self, place: int, count: int) -> Tensor:
        if self.config.stratified_sigma:
            return self._stratified_sigma(place, count)
        return self.loss.sigma_from_normal(self.random.normal(Stream.SIGMA, place, place + count))

    def _stratified_sigma(self, place: int, count: int) -> Tensor:
        uniform = self.random.uniform(Stream.SIGMA, place, place + count)
        return self.loss.sigma_from_normal(stratified_normal(place, uniform, self.config.batch_size))

    def _draw_noise(self, place: int, shape: torch.Size) -> Tensor:
        return self.random.normal(Stream.NOISE, place, place + shape[0], tuple(shape[1:]))

    def _seed_dropout(self, place: int) -> None:
        """Dropout draws from the global generator; seeded by place, a resumed run draws what it would have drawn."""
        if self.config.network.dropout:
            torch.manual_seed(self.random.derived_seed(Stream.DROPOUT, place))

    # ------------------------------------------------------------------------------------------------- the run

    def run(self) -> None:
        """Train until `config.duration`, from the last checkpoint if the run folder has one.

        Raises:
            DatasetError, RunFolderError, CheckpointError, TrainingError: each in one line, with the remedy.
        """
        self._open_feed()
        self.folder.claim(self.config)
        self._resume()
        self.monitor = Monitor(self.folder.path, self.config.duration, self.images_seen)
        self._start_clock()
        try:
            batches = self.feed.steps(self.images_seen)
            while self.images_seen < self.config.duration and not self.stop_requested:
                before = self.images_seen
                with self.diagnostics.watching(self.net, self.optimizer, before):
                    step = self.step(next(batches))
                self.totals.add(step)
                self.diagnostics.add(step)
                self.monitor.status.advance(self.config.batch_size)
                self._give_up_if_nonfinite()
                self._do_what_is_due(before)
                self._tell_speed()
            if self.stop_requested:
                self.save_checkpoint()
        finally:
            self.monitor.status.close()

    def measure(self) -> Measurement:
        """Train for some steps, which leave nothing behind but this trainer's changed weights.

        Raises:
            DatasetError: as `run` does.
        """
        self._open_feed()
        for microbatches in self.feed.steps(start=0):
            self.totals.add(self.step(microbatches))
            if (speed := self.speedometer.step_done()) is not None:
                return Measurement(speed, _peak_memory(self.device))

    def _tell_speed(self) -> None:
        speed = self.speedometer.step_done()
        if speed is not None and self.on_speed is not None:
            self.on_speed(speed, self.config.duration - self.images_seen)

    def _open_feed(self) -> None:
        dataset = open_dataset(self.config.data) if self.dataset is None else self.dataset
        self.feed = Feed(self.config, dataset, self.random)

    def _give_up_if_nonfinite(self) -> None:
        steps = self.images_seen // self.config.batch_size
        last = self.images_seen >= self.config.duration
        limit = min(self.config.max_nonfinite_steps, steps) if last else self.config.max_nonfinite_steps
        if not last and steps % limit:  # asks the device only now and then
            return
        if int(self.totals.nonfinite_in_a_row) >= limit:
            checkpoints = find_checkpoints(self.folder.checkpoints)
            remedy = f"the last checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"
            raise TrainingError(
                f"{self.folder.path}: {limit} steps up to image {self.images_seen} had non-finite gradients; "
                f"look for NaN in the data or lower the learning rate ({self.config.ref_lr:g}); {remedy}"
            )

    def _do_what_is_due(self, before: int) -> None:
        config, now = self.config, self.images_seen
        done = now >= config.duration

        def due(interval: int | None) -> bool:
            return interval is not None and (done or is_due(interval, before, now))

        measure = self.feed.holdout_set is not None and due(config.holdout_every or config.snapshot_every)
        if measure or due(config.status_every):
            self.report(measure)
        if due(config.snapshot_every):
            self.save_snapshots()
            if self.on_snapshot is not None:
                self.monitor.tensorboard.append({"images_seen": now, **self.on_snapshot(now)})
        if due(config.sample_every) and self.on_sample is not None:
            self.save_samples()
        if self.diagnostics.due(before, now):
            record = self.diagnostics.measure(now, self.net, self.averaged, self.loss, self.feed)
            self.monitor.report_diagnostics(record)
        if due(config.checkpoint_every):
            self.save_checkpoint()
        if done:
            self.save_raw_weights()

    # ------------------------------------------------------------------------------------------ what it leaves

    def report(self, measure: bool = False) -> None:
        """Write averages since the last report to the status line, stats.jsonl and TensorBoard.

        Args:
            measure: Also measure the loss per noise level on held-out images, and on as many training images.
        """
        images = self.images_seen - self._reported_at
        averages = self.totals.averages()
        seconds = time.perf_counter() - self._clock
        record: Record = {"images_seen": self.images_seen, **averages, "lr": self.learning_rate()}
        if measure:
            record |= self._measured_losses()
        record["seconds"] = seconds
        record["images_per_second"] = images / seconds
        record["peak_memory_gb"] = _peak_memory(self.device) / 2**30
        self.monitor.report(record)
        self._start_clock()

    def _measured_losses(self) -> dict[str, Any]:
        c, feed = self.config, self.feed
        net = self.averaged(c.sigma_rels[0])
        count = min(len(feed.holdout_set), len(feed.train_set))
        measured: dict[str, Any] = {}
        for name, dataset in (("holdout", feed.holdout_set), ("train", feed.train_set)):
            images, labels = feed.first_images(dataset, count)
            levels = measure_loss(net, images, labels, self.loss.distribution, c.images_per_forward)
            measured |= {f"{name}_loss": levels.mean, f"{name}_losses": levels.losses, "sigmas": levels.sigmas}
        return measured

    def _start_clock(self) -> None:
        """Speed is measured from here to the next report."""
        self._clock = time.perf_counter()
        self._reported_at = self.images_seen

    def averaged(self, sigma_rel: float) -> Precond:
        """A copy of the network in evaluation mode with the weights averaged over the profile `sigma_rel`."""
        net = copy.deepcopy(self.net)
        net.load_state_dict(self.ema.average(sigma_rel))
        return net.eval().requires_grad_(False)

    def metadata(self) -> dict[str, Any]:
        """What a snapshot says about itself."""
        config = self.config.to_json()
        return {
            "network": config.pop("network"),
            "codec": self.feed.codec.to_json(),
            "images_seen": self.images_seen,
            "preset": config["preset"],
            "data": {
                "name": self.feed.dataset.name,
                "num_images": len(self.feed.train_set),
                "class_names": list(self.feed.dataset.class_names),
            },
            "training": config,
            "buffers": [name for name, _ in self.net.named_buffers()],
            "edm2_version": __version__,
        }

    def save_snapshots(self) -> None:
        """One file per tracked profile, complete or not there."""
        for sigma_rel in self.config.sigma_rels:
            path = self.folder.snapshots / snapshot_name(self.images_seen, sigma_rel)
            write_snapshot(
                path,
                self.ema.average(sigma_rel),
                self.metadata() | {"sigma_rel": sigma_rel},
                dtype=DTYPES[self.config.snapshot_precision],
            )
        if self.traditional_ema is not None:
            metadata = self.metadata() | {"sigma_rel": self.traditional_ema.sigma_rel}
            metadata |= {"half_life": self.config.traditional_ema, "reconstructed_from": []}
            write_snapshot(self.folder.traditional_ema, self.traditional_ema.average(), metadata)

    def save_raw_weights(self) -> None:
        """The weights as the optimizer left them, without any averaging: an EMA of length zero."""
        metadata = self.metadata() | {"sigma_rel": 0.0}
        write_snapshot(self.folder.raw_weights, self.net.state_dict(), metadata)

    def save_samples(self) -> None:
        """A grid of samples of the average with the longest profile."""
        self.folder.samples.mkdir(exist_ok=True)
        path = self.folder.samples / f"samples-{self.images_seen:012d}.png"
        self.on_sample(self.averaged(max(self.config.sigma_rels)), self.feed.codec, path)

    def _state(self) -> dict[str, Any]:
        """Every tensor that a resumed run needs; loading fills them in place."""
        return {
            "net": self.net.state_dict(),
            "optimizer": adam_state(self.net, self.optimizer),
            "totals": self.totals.state_dict(),
            **({"pareto": weighting.state_dict()} if isinstance(weighting := self.loss.weighting, Pareto) else {}),
            **{name: _tensors(ema.state_dict()) for name, ema in self._trackers().items()},
        }

    def save_checkpoint(self) -> None:
        """Write everything that a resumed run needs."""
        state = {"codec": self.feed.codec.to_json(), "diagnostics": self.diagnostics.state()}
        folder, keep = self.folder.checkpoints, self.config.keep_checkpoints
        save_checkpoint(folder, self.images_seen, self._state(), state, keep)

    def _resume(self) -> None:
        """Take up the newest checkpoint, if there is one.

        The codec comes from it too: what the network sees of an image must not change within a run, even if the
        statistics stored with the dataset did.
        """
        checkpoints = find_checkpoints(self.folder.checkpoints)
        if not checkpoints:
            return
        tensors = self._state()
        state = load_checkpoint(checkpoints[-1], tensors)
        self.images_seen = state["images_seen"]
        if "codec" in state:  # checkpoints of earlier versions have none
            self.feed.codec = codec_from_json(state["codec"])
        self.diagnostics.load_state(state.get("diagnostics"))
        for name, ema in self._trackers().items():
            ema.load_state_dict({"images_seen": self.images_seen, **tensors[name]})


def clean_gradients_(net: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Replace NaN and infinite gradients by zero (Appendix D.2).

    Returns:
        (L2 norm of all gradients afterwards, whether any were replaced: 1 or 0, int64), both on the device.
    """
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    nonfinite = ~norm.isfinite()
    if norm.device.type == "cpu" and not nonfinite:  # on other devices asking would cost more than doing
        return norm, nonfinite.long()
    for grad in grads:
        torch.nan_to_num(grad, nan=0, posinf=0, neginf=0, out=grad)
    return torch.nn.utils.get_total_norm(grads), nonfinite.long()


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU where there is one, else resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
