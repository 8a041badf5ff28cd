"""Networks that `edm2 generate` samples from: the main one, the guide, and the guidance weight."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2.sampling.presets import GenerationPreset

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edm2.sampling.external import SampledNetwork
    from edm2.sampling.samplers.heun import Denoiser

NET_FROM_HELP = "MODULE:CALLABLE that makes a network of your own, for snapshots that hold its tensors."


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
    net_from: str | None = None
    """What makes a network of the user's own, as `network_maker` takes it."""

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
    ) -> "tuple[SampledNetwork, Denoiser | None]":
        """Load the network and its guide, folded; with `warn`, print a warning about a guide of other data.

        Raises:
            OSError, ValueError: a file is no network, or one that cannot guide the other.
        """
        from edm2.io.model import load_to_sample, read_metadata
        from edm2.sampling.generation import check_guide
        from edm2.sampling.guidance import without_labels

        assert self.network is not None  # see `check`
        check_external(self.network, read_metadata(self.network), self.net_from)
        make_net = network_maker(self.net_from)
        net = load_to_sample(self.network, device, dtype, make_net)
        if self.unlabelled_guide:
            check_label_dropout(self.network, read_metadata(self.network), warn)
            return net, without_labels(net)
        if self.guide is None:
            return net, None
        guide = load_to_sample(self.guide, device, dtype, make_net)
        check_guide(net, guide, self.network, self.guide)
        if warn:
            self._warn_of_other_data(self.network, self.guide)
        return net, guide

    def _warn_of_other_data(self, network: str, guide: str) -> None:
        from edm2.io.model import read_metadata

        if read_metadata(network).get("codec") != read_metadata(guide).get("codec"):
            _warn(f"{guide} was trained on data scaled differently from {network}: guidance mixes the two")


def network_maker(net_from: str | None) -> "Callable[[], nn.Module] | None":
    """Import what --net-from names, to be called for every network that is loaded; None if it is not given.

    Raises:
        ValueError: it cannot be imported, or is no function.
    """
    if net_from is None:
        return None
    from torch import nn

    from edm2.metrics.detectors import import_callable

    make = import_callable(net_from, "a network")

    def make_net() -> nn.Module:
        net = make()
        if not isinstance(net, nn.Module):
            raise ValueError(f"{net_from}: makes a {type(net).__name__}, not a torch.nn.Module")
        return net

    return make_net


def check_external(name: str | Path, metadata: dict[str, Any], net_from: str | None) -> None:
    """Raise click.UsageError if --net-from is given for a network that needs none."""
    from edm2.io.model import is_external

    if net_from is not None and not is_external(metadata):
        raise click.UsageError(f"{name}: describes its network itself; leave out --net-from")


def check_own_precision(precision: str | None, net_from: str | None) -> None:
    """Raise click.UsageError if a network of the user's own is to compute in half precision."""
    if net_from is not None and precision not in (None, "fp32"):
        raise click.UsageError(f"--precision {precision} is for networks that edm2 builds; --net-from needs none")


def chosen_precision(precision: str | None, device: "torch.device", net_from: str | None) -> str:
    """Precision of activations: as asked for, else half where that is fast; a network of the user's own has its own."""
    return precision or ("fp16" if device.type == "cuda" and net_from is None else "fp32")


def check_label_dropout(name: str, metadata: dict[str, Any], warn: bool = True) -> None:
    """Refuse a network as its own guide if it was never trained without labels.

    Raises:
        ValueError: it was not, or has no classes at all.
    """
    from edm2.io.model import drawn_images

    if drawn_images(metadata).label_dim == 0:
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
