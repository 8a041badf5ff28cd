"""Networks that `edm2 generate` samples from: the main one, the guide, and the guidance weight."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2.sampling.presets import GenerationPreset

if TYPE_CHECKING:
    import torch

    from edm2.networks import Precond
    from edm2.sampling.samplers.heun import Denoiser


@dataclass(frozen=True)
class NetworkChoice:
    """Networks and guidance that a user asks for; None where an option is not given."""

    network: str | None
    """Network to sample from."""
    guide: str | None
    """Network to guide away from."""
    unlabelled_guide: bool
    """True to guide away from `network` itself without labels."""
    guidance: float | None
    """Guidance weight."""
    interval: tuple[float, float] | None
    """Noise levels with guidance."""

    @property
    def weight(self) -> float:
        """Guidance weight; 1 is none."""
        return 1.0 if self.guidance is None else self.guidance

    def completed_by(self, preset: GenerationPreset, folder: Path) -> "NetworkChoice":
        """Take everything that is not given from a preset, whose networks are files in `folder`.

        Raises:
            FileNotFoundError: a file that is needed is missing.
        """
        completed = self
        if self.network is None:
            completed = replace(completed, network=str(preset.network.find(folder)))
        if preset.guide is None or self.guidance == 1:
            return completed
        if self.guidance is None:
            completed = replace(completed, guidance=preset.guidance)
        if self.guide is None and not self.unlabelled_guide:
            completed = replace(completed, guide=str(preset.guide.find(folder)))
        if self.interval is None and preset.interval_steps is not None:
            from edm2.sampling.guidance import interval_of_steps

            completed = replace(completed, interval=interval_of_steps(*preset.interval_steps))
        return completed

    def check(self) -> None:
        """Refuse contradictory options.

        Raises:
            click.UsageError: no network, or options that exclude or need each other.
        """
        if self.network is None:
            raise click.UsageError("which NETWORK? Give a snapshot, an included network (digits8), or --preset NAME")
        if self.guide is not None and self.unlabelled_guide:
            raise click.UsageError("--guide and --unlabelled-guide are two guides: give one of them")
        has_guide = self.guide is not None or self.unlabelled_guide
        if has_guide and self.guidance is None:
            raise click.UsageError("a guide needs a weight: give --guidance, such as 1.5")
        if self.weight != 1 and not has_guide:
            raise click.UsageError(
                f"--guidance {self.weight:g} needs a network to guide away from: --guide SNAPSHOT or --unlabelled-guide"
            )
        if self.interval is not None and self.weight == 1:
            raise click.UsageError("--interval limits guidance, and there is none: give --guide and --guidance")

    def load(
        self, device: "torch.device", dtype: "torch.dtype", warn: bool = True
    ) -> "tuple[Precond, Denoiser | None]":
        """Load the network and its guide, folded; with `warn`, print a warning about a guide of other data.

        Raises:
            OSError, ValueError: a file is no network, or one that cannot guide the other.
        """
        from edm2.io.model import load, read_metadata
        from edm2.networks import fold
        from edm2.sampling.generation import check_guide
        from edm2.sampling.guidance import without_labels

        assert self.network is not None  # see `check`
        net = fold(load(self.network, device), dtype)
        if self.unlabelled_guide:
            check_label_dropout(self.network, read_metadata(self.network), warn)
            return net, without_labels(net)
        if self.guide is None:
            return net, None
        guide = fold(load(self.guide, device), dtype)
        check_guide(net, guide, self.network, self.guide)
        if warn:
            self._warn_of_other_data(self.network, self.guide)
        return net, guide

    def _warn_of_other_data(self, network: str, guide: str) -> None:
        from edm2.io.model import read_metadata

        if read_metadata(network).get("codec") != read_metadata(guide).get("codec"):
            _warn(f"{guide} was trained on data scaled differently from {network}: guidance mixes the two")


def check_label_dropout(name: str, metadata: dict[str, Any], warn: bool = True) -> None:
    """Refuse a network as its own guide if it was never trained without labels.

    Raises:
        ValueError: it was not, or has no classes at all.
    """
    if metadata["network"]["label_dim"] == 0:
        raise ValueError(f"{name}: has no classes that --unlabelled-guide could leave out")
    label_dropout = (metadata.get("training") or {}).get("label_dropout")
    if label_dropout == 0:
        raise ValueError(
            f"{name}: was trained with the class of every image, so it cannot guide itself; "
            "give a network to guide away from (--guide), or train with --label-dropout 0.1"
        )
    if label_dropout is None and warn:
        _warn(f"{name} does not say that it was trained with --label-dropout, which --unlabelled-guide needs")


def _warn(message: str) -> None:
    click.echo(f"Warning: {message}", err=True)
