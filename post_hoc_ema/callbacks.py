"""Post-hoc EMA in other trainers, one line each; Lightning and transformers are imported when their class is asked for.

    lightning.Trainer(callbacks=[LightningEMA("ema", every=4096)])
    transformers.Trainer(..., callbacks=[TransformersEMA("ema", every=500)])
    ema = AccelerateEMA(accelerator, model, "ema", every=4096)      # and ema.update(step) in the loop

Arguments besides the folder are those of `PostHocEMA`. The clock is the optimizer's steps. Files are written by the
first process, and once more at the end of training. The state goes into the trainer's checkpoints, and a run that was
resumed from one ends with averages that are, to the bit, those of a run that never stopped. As soon as training has
begun, `callback.ema` is the `PostHocEMA`: `with callback.ema.swapped(0.08)` validates.
"""

import os
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from edm2.post_hoc_ema.averages import Module
from edm2.post_hoc_ema.modules import is_first_process, whole
from edm2.post_hoc_ema.session import PostHocEMA
from edm2.post_hoc_ema.snapshot import read_metadata, write_snapshot

STATE_FILE = "post_hoc_ema.safetensors"
"""File in a checkpoint of transformers with the state of the averages."""


def __getattr__(name: str) -> Any:
    """Make the class for an installed trainer."""
    makers = {"LightningEMA": _lightning_ema, "TransformersEMA": _transformers_ema}
    if name not in makers:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return makers[name]()


class AccelerateEMA(PostHocEMA):
    """Averages in a loop of Accelerate: registered for its checkpoints, and updated when the weights have changed.

    To resume, call `accelerator.load_state` after this is made and before the first update.
    """

    def __init__(
        self, accelerator: Any, model: Module, folder: str | os.PathLike[str], every: int, *args: Any, **options: Any
    ) -> None:
        """Start with zero steps seen; further arguments and errors are those of `PostHocEMA`."""
        super().__init__(accelerator.unwrap_model(model), folder, every, *args, **options)
        self._accelerator = accelerator
        accelerator.register_for_checkpointing(self)

    def update(self, images_seen: int, module: Module | None = None) -> None:
        """Update as `PostHocEMA` does; nothing happens while gradients add up."""
        if self._accelerator.sync_gradients:
            super().update(images_seen, module)


class _TrainerEMA:
    """Averages whose module is known when training begins.

    Attributes:
        ema: The averages, once training has begun.
    """

    ema: PostHocEMA | None = None

    def __init__(self, folder: str | os.PathLike[str], every: int, *args: Any, **options: Any) -> None:
        """Remember the arguments of `PostHocEMA`."""
        super().__init__()
        self._arguments = folder, every, *args
        self._options = options
        self._state: Mapping[str, Any] | None = None

    def begin(self, model: Module, step: int) -> None:
        """Begin, or continue, with a model that the optimizer has changed `step` times.

        Raises:
            ValueError: The averages are those of another number of steps, or as `PostHocEMA` does.
        """
        state, self._state = self._state, None
        if self.ema is None:
            self.ema = PostHocEMA(model, *self._arguments, **self._options)
            if state is not None and state["images_seen"] == step:
                self.ema.load_state_dict(state)
            elif step > self._options.get(
                "after", 0
            ):  # refused by the first update where files show that averages had begun before
                self.ema.tracker.begin(step)
        elif state is not None and state["images_seen"] == step:
            self.ema.load_state_dict(state)
        seen = self.ema.images_seen
        if seen != step and (seen or step > self._options.get("after", 0)):
            raise ValueError(
                f"training is at step {step} and its averages are at {seen}: resume from the checkpoint that goes with "
                "them, or begin a new run with a callback and a folder of its own"
            )
        self.ema.tracker.tracked.attach(model)

    def step(self, step: int) -> None:
        """Average, if the optimizer has changed the weights since the last time."""
        assert self.ema is not None  # `begin`
        if step > self.ema.images_seen:
            self.ema.update(step)

    def end(self) -> None:
        """Store the end of the run."""
        assert self.ema is not None  # `begin`
        self.ema.store()


@cache
def _lightning_ema() -> type:
    try:
        lightning = import_module("lightning.pytorch")
    except ImportError:
        lightning = import_module("pytorch_lightning")

    class LightningEMA(_TrainerEMA, lightning.Callback):  # type: ignore[name-defined]  # imported above
        """Post-hoc EMA as a callback of Lightning, whose checkpoints hold its state."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            """Begin; weights are where they will be trained."""
            self.begin(pl_module, trainer.global_step)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            """Average; global_step counts the optimizer's steps, also where gradients add up."""
            self.step(trainer.global_step)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            """Store the end of the run."""
            self.end()

        def state_dict(self) -> dict[str, Any]:
            """State for a checkpoint; empty before training."""
            return dict(self._state or {}) if self.ema is None else self.ema.state_dict()

        def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
            """Remember the state until training begins."""
            self._state = state_dict or None

    return LightningEMA


@cache
def _transformers_ema() -> type:
    transformers = import_module("transformers")

    class TransformersEMA(_TrainerEMA, transformers.TrainerCallback):  # type: ignore[name-defined]
        """Post-hoc EMA as a callback of transformers' Trainer, whose checkpoints get one more file."""

        def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any = None, **_: Any) -> None:
            """Begin, or continue from the checkpoint of this step."""
            file = _state_file(args, state)
            if file.exists():
                self._state = {**read_metadata(file), **load_file(file)}
            self.begin(model, state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            """Average, after the optimizer's step."""
            self.step(state.global_step)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            """Add the state to a checkpoint."""
            if self.ema is not None and self.ema.images_seen == state.global_step:
                own = self.ema.state_dict()
                tensors = dict(whole(own))
                if is_first_process():
                    write_snapshot(_state_file(args, state), tensors, {k: own[k] for k in own.keys() - tensors.keys()})

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            """Store the end of the run."""
            self.end()

    return TransformersEMA


def _state_file(args: Any, state: Any) -> Path:
    """File in the checkpoint of a step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE_FILE
