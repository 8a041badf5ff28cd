"""Post-hoc EMA of a run in one object: averages, files and weights to validate with."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm2.post_hoc_ema.averages import Average, Module
from edm2.post_hoc_ema.files import visible_files
from edm2.post_hoc_ema.modules import Keep, is_first_process, sharded_like, whole
from edm2.post_hoc_ema.reconstruction import reconstruct
from edm2.post_hoc_ema.snapshot import Snapshot, open_tracked, profile_at, storable
from edm2.post_hoc_ema.tails import power_profile, profile_from_json, tail_coefficients, tail_error
from edm2.post_hoc_ema.tracker import IntervalMeans, PowerFunctionEMA, SnapshotTracker, check_storage


class PostHocEMA:
    """Averages of a training run that are stored by themselves, and any EMA length of them at any time.

        ema = PostHocEMA(model, "ema", every=4096)
        for step, batch in enumerate(loader, start=1):
            ...                                     # optimizer.step()
            ema.update(step)                        # averages, and stores every 4096 steps
            if step % 10_000 == 0:
                with ema.swapped(0.08):             # the model has averaged weights in here
                    validate(model)
        ema.store()                                 # the end of the run

    In a job of several processes all of them do the same, and the first one writes.

    Attributes:
        tracker: What averages: `PowerFunctionEMA`, or `IntervalMeans`.
        folder: Where files are.
    """

    def __init__(
        self,
        model: Module,
        folder: str | os.PathLike[str],
        every: int,
        sigma_rels: Sequence[float] | None = (0.05, 0.10),
        *,
        keep: Keep | None = None,
        dtype: torch.dtype | None = torch.float16,
        after: int = 0,
        offload: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Start with zero images seen; nothing is written yet.

        Args:
            model: Any module, also compiled or in DDP, or a list of parameters.
            folder: Of this run alone; created when the first file is.
            every: Images (or steps, whatever `update` counts) between files. 64 files or so serve every length.
            sigma_rels: EMA lengths to track; None for plain means between the files, in half the memory.
            keep: Parameters to average, by name and tensor, such as lambda name, p: p.requires_grad for a LoRA;
                default: all.
            dtype: Storage type of averages; None keeps float32.
            after: Images before averages begin, with a copy of the weights; the clock counts them all the same.
            offload: Keep the averages on the CPU.
            metadata: Further entries for the files.

        Raises:
            ValueError: As the tracker does, or `every` is not positive, or `after` negative.
            ValueError, TypeError: As `check_storage` for `dtype` and `metadata`.
        """
        if every < 1:
            raise ValueError(f"every={every} must be positive: images between two files")
        if after < 0:
            raise ValueError(f"after={after} must be the number of images before averages begin, 0 or more")
        check_storage(dtype, metadata)
        options: dict[str, Any] = {"keep": keep, "offload": offload}
        self.tracker: SnapshotTracker = (
            IntervalMeans(model, **options) if sigma_rels is None else PowerFunctionEMA(model, sigma_rels, **options)
        )
        self.folder = Path(folder)
        self._every, self._dtype, self._after, self._metadata = every, dtype, after, metadata
        self._stored: int | None = None
        self._checked = self._swapped = False

    @property
    def images_seen(self) -> int:
        """Images seen at the last update."""
        return self.tracker.images_seen

    def update(self, images_seen: int, module: Module | None = None) -> None:
        """Average the weights as they are now, and store if a multiple of `every` has been reached.

        Arguments and errors as of `PowerFunctionEMA.update`.

        Raises:
            ValueError: The folder holds files of another run, or of this one, whose state was not loaded.
        """
        self._refuse_swapped("the next update")
        if not self._checked and is_first_process():
            for path in self.tracker.abandoned(self.folder):
                path.unlink()
        self._checked = True
        before = self.images_seen
        if before == 0 and 0 < images_seen <= self._after:
            return
        if before == 0 and self._after:
            self.tracker.begin(images_seen)
            return
        self.tracker.update(images_seen, module)
        if images_seen // self._every > before // self._every:
            self.store()

    def store(self) -> None:
        """Write the averages, unless they are written already; call it once more when training ends."""
        if self.images_seen and self._stored != self.images_seen:
            self.tracker.save(self.folder, self._dtype, self._metadata)
            self._stored = self.images_seen

    def __enter__(self) -> "PostHocEMA":
        """Context that stores the end of the run: with PostHocEMA(model, "ema", every=4096) as ema."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Store, unless the run failed: it will be resumed from before."""
        if kind is None:
            self.store()

    # ------------------------------------------------------------------------------------------------------- weights

    def average(self, sigma_rel: float) -> Mapping[str, Any]:
        """Return weights of any EMA length as a state dict: tracked, or rebuilt from the files and the averages of now.

        Raises:
            ValueError: The length does not exist, or there are no averages yet.
        """
        tracker = self.tracker
        if self.images_seen and isinstance(tracker, PowerFunctionEMA) and sigma_rel in tracker.sigma_rels:
            return tracker.average(sigma_rel)
        return reconstruct(self._inputs(), [sigma_rel])[0]

    @contextmanager
    def swapped(self, sigma_rel: float) -> Iterator[None]:
        """Context in which the model has averaged weights, of any EMA length.

        Afterwards it has its own again, to the bit, as well as its buffers and modes (`train`, `eval`).
        """
        tracked, average = self.tracker.tracked, self.average(sigma_rel)
        modes = [(m, m.training) for m in tracked.given.modules()]
        own = [(x, x.detach().clone()) for x in (*tracked.parameters(), *tracked.module.buffers())]
        outside, self._swapped = self._swapped, True
        try:
            self._put(average)
            yield
        finally:
            with torch.no_grad():
                for x, value in own:
                    x.copy_(value)
            for m, training in modes:
                m.training = training
            self._swapped = outside

    def copy_to(self, sigma_rel: float) -> None:
        """Give the model averaged weights, of any EMA length, for good; `swapped` is for a while.

        Raises:
            ValueError: As `average` does, or within `swapped`, which would take them back.
        """
        self._refuse_swapped("copy_to")
        self._put(self.average(sigma_rel))

    def _refuse_swapped(self, what: str) -> None:
        if self._swapped:
            raise ValueError(f"the model has averaged weights at present; leave `swapped` before {what}")

    @torch.no_grad()
    def _put(self, average: Mapping[str, Any]) -> None:
        """Copy an average into the model, in place: optimizers and wrappers hold its tensors."""
        tracked = self.tracker.tracked
        buffers = {tracked.plain(name): x for name, x in tracked.module.named_buffers()}
        for name, x in (*zip(tracked.names, tracked.parameters(), strict=True), *buffers.items()):
            if name in average:
                x.copy_(sharded_like(average[name], x))

    def _inputs(self) -> list[Any]:
        """Collect the averages of this run: files, and those of now, whose files another process may be writing.

        Raises:
            ValueError: There are none yet.
        """
        if not (now := self.images_seen):
            raise ValueError("there are no averages yet; update them first")
        live = [_Live(average, self._dtype) for _, average in self.tracker.current()]
        files = open_tracked(visible_files(self.folder, "snapshot-*.safetensors"))
        if files and not is_first_process():  # files have the identifier of the first one
            for average in live:
                average.metadata["run"] = files[0].metadata.get("run")
        return [*(file for file in files if file.images_seen < now or (file.images_seen == now and not live)), *live]

    # --------------------------------------------------------------------------------------------------------- errors

    def errors(self, sigma_rels: Sequence[float]) -> list[float]:
        """Expected error of weights of these EMA lengths if they were rebuilt now.

        As a fraction of the way that weights have gone, if they walk at random (`tail_error`): 0.01 is good, and the
        last weights alone are at 0.2 for a length of 0.07.
        """
        inputs = [snapshot.profile for snapshot in self._inputs()]
        targets = [power_profile(self.images_seen, s) for s in sigma_rels]
        c = tail_coefficients(inputs, targets)
        return [float(e) for e in tail_error(inputs, targets, c) / self.images_seen**0.5]

    def plot_errors(self, path: str | os.PathLike[str]) -> None:
        """Draw `errors` over the EMA length, into a picture; needs matplotlib."""
        from matplotlib.figure import Figure

        lengths = [0.01 + 0.0025 * i for i in range(107)]
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.semilogy(lengths, self.errors(lengths))
        axes.set(xlabel="EMA length", ylabel="expected error of rebuilt weights", title=f"{self.images_seen} images")
        axes.grid(alpha=0.3)
        figure.savefig(path)

    # ---------------------------------------------------------------------------------------------------------- resume

    def state_dict(self) -> dict[str, Any]:
        """State to resume from, to the bit: that of the tracker."""
        return self.tracker.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict()`.

        Files of this run that are later belong to a future that was given up; the next update removes them.

        Raises:
            ValueError: It is of another run, or of other lengths or parameters.
        """
        self.tracker.load_state_dict(state)
        self._stored, self._checked = None, False

    def resume(self, images_seen: int) -> None:
        """Continue from the files of a time, where no state was kept: to the bit if they are in float32 (`dtype=None`).

        Later files are removed by the next update, as after `load_state_dict`.

        Raises:
            ValueError: There are no files of this time, or they are of other lengths or parameters.
        """
        self.tracker.resume(self.folder, images_seen)
        self._stored, self._checked = images_seen, False


class _Live(Snapshot):
    """An average of now, as a snapshot."""

    def __init__(self, average: Average, dtype: torch.dtype | None) -> None:
        said = self.metadata = average.metadata
        self.images_seen, self.buffers = said["images_seen"], said["buffers"]
        stored = "profile" in said
        self.profile = profile_from_json(said["profile"]) if stored else profile_at(self.images_seen, said["sigma_rel"])
        self.sigma_rel = self.profile.sigma_rel
        self._tensors = storable(dict(whole(average)), dtype, self.buffers)  # rounded as in a file
        self.names = tuple(self._tensors)

    def read(self, name: str) -> Tensor:
        """One tensor."""
        return self._tensors[name]
