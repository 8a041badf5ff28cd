"""Networks that `edm2 generate` samples from: the main one, the guide, and the guidance weight."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2.sampling.presets import GenerationPreset

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edm2.sampling.external import SampledNetwork
    from edm2.sampling.samplers.heun import Denoiser
    from edm2.tools.options.sampling import SamplingOptions

NET_FROM_HELP = "MODULE:CALLABLE that makes a network of your own, for snapshots that hold its tensors."
CODEC_HELP = "MODULE:CALLABLE that makes the codec of your own that the network was trained with."


def complete_by_preset(given: dict[str, Any], preset: GenerationPreset) -> None:
    """Take networks and guidance that are not given from a preset, whose networks are files in `given["networks"]`."""
    folder = given["networks"]
    if given["network"] is None:
        given["network"] = str(preset.network.find(folder))
    if preset.guide is None or given["guidance"] == 1:
        return
    if given["guidance"] is None:
        given["guidance"] = preset.guidance
    if given["guide"] is None and not given["unlabelled_guide"]:
        given["guide"] = str(preset.guide.find(folder))
    if given["interval"] is None and preset.interval_steps is not None:
        from edm2.sampling.guidance import interval_of_steps

        given["interval"] = interval_of_steps(*preset.interval_steps)


def check_guidance(
    guide: str | None,
    unlabelled_guide: bool,
    weights: Sequence[float] | None,
    interval: tuple[float, float] | None = None,
) -> None:
    """Raise click.UsageError for options that exclude or need each other; `weights` are those of --guidance."""
    if guide is not None and unlabelled_guide:
        raise click.UsageError("--guide and --unlabelled-guide or --unguided are two guides: give one of them")
    has_guide = guide is not None or unlabelled_guide
    if has_guide and weights is None:
        raise click.UsageError("a guide needs a weight: give --guidance, such as 1.5")
    if not has_guide and any(weight != 1 for weight in weights or ()):
        given = ",".join(f"{weight:g}" for weight in weights or ())
        raise click.UsageError(f"--guidance {given} needs a network to guide away from: --guide or --unlabelled-guide")
    if interval is not None and all(weight == 1 for weight in weights or ()):
        raise click.UsageError("--interval limits guidance, and there is none: give --guide and --guidance")


def load_networks(
    options: "SamplingOptions", device: "torch.device", dtype: "torch.dtype", warn: bool = True
) -> "tuple[SampledNetwork, Denoiser | None]":
    """Load a network and its guide, folded; with `warn`, print a warning about a guide of other data."""
    from edm2.io.model import load_to_sample, read_metadata, resolve
    from edm2.sampling.generation import check_guide
    from edm2.sampling.guidance import without_conditions, without_labels

    metadata = read_metadata(options.network)
    if "guided" in metadata and (options.guide or options.unlabelled_guide or options.unguided):
        raise click.UsageError(f"{options.network}: is guided already; leave out the guide, or name the network in it")
    if warn and (resolve(options.network) / "guide").is_dir():
        _warn(f"{options.network}: is drawn without the guide in it, which EDM2Pipeline takes")
    check_external(options.network, metadata, options.net_from)
    make_net = network_maker(options.net_from)
    net = load_to_sample(options.network, device, dtype, make_net)
    own_guide: Denoiser | None = None
    if options.unlabelled_guide:
        check_label_dropout(options.network, metadata, warn)
        own_guide = without_labels(net)
    if options.unguided:
        check_condition_dropout(options.network, net, options.unguided)
        own_guide = without_conditions(own_guide or net, options.unguided)
    if own_guide is not None:
        return net, own_guide
    if options.guide is None:
        return net, None
    guide = load_to_sample(options.guide, device, dtype, make_net)
    check_guide(net, guide, options.network, options.guide)
    if warn:
        warn_of_scaling(options.network, options.guide)
    return net, guide


def warn_of_scaling(network: str, guide: str) -> None:
    """Print a warning if a guide was trained on other numbers for the same images."""
    from edm2.io.model import read_metadata
    from edm2.training.data.codecs import are_alike

    if not are_alike(read_metadata(network).get("codec"), read_metadata(guide).get("codec")):
        _warn(f"{guide} was trained on data scaled differently from {network}: guidance mixes the two")


def network_maker(net_from: str | None) -> "Callable[[], nn.Module] | None":
    """Import what --net-from names, to be called for every network that is loaded; None if it is not given."""
    if net_from is None:
        return None
    from torch import nn

    from edm2.training.imports import import_callable

    make = import_callable(net_from, "a network")

    def make_net() -> nn.Module:
        net = make()
        if not isinstance(net, nn.Module):
            raise ValueError(f"{net_from}: makes a {type(net).__name__}, not a torch.nn.Module")
        return net

    return make_net


def source_digests(net_from: str | None, codec_from: str | None, layers: "Iterable[type]") -> dict[str, str]:
    """Digests of the programs of --net-from, whose network has these classes of layers, and of --codec."""
    from edm2.training.imports import source_digest

    programs = {"net_from": (net_from, layers), "codec_from": (codec_from, ())}
    return {name: source_digest(target, classes) for name, (target, classes) in programs.items() if target is not None}


def check_external(name: str | Path, metadata: dict[str, Any], net_from: str | None) -> None:
    """Raise click.UsageError if --net-from is given for a network that needs none."""
    from edm2.io.model import is_external

    if net_from is not None and not is_external(metadata):
        raise click.UsageError(f"{name}: describes its network itself; leave out --net-from")


def check_own_precision(precision: str | None, net_from: str | None) -> None:
    """Raise click.UsageError if a network of the user's own is to compute in half precision."""
    if net_from is not None and precision not in (None, "fp32", "auto"):
        raise click.UsageError(f"--precision {precision} is for networks that edm2 builds; --net-from needs none")


def chosen_precision(precision: str | None, device: str, net_from: str | None = None) -> str:
    """Precision of activations: as asked for, else fp16 on CUDA and fp32 elsewhere, or with "auto" bf16 if it is fast.

    A network of the user's own chooses for itself.
    """
    from edm2.tools.run import has_bf16

    if precision not in (None, "auto"):
        return precision
    if net_from is not None:
        return "fp32"
    if device.startswith("cuda"):
        return "fp16"
    return "bf16" if precision == "auto" and has_bf16(device) else "fp32"


def check_label_dropout(name: str, metadata: dict[str, Any], warn: bool = True) -> None:
    """Refuse a network as its own guide if it was never trained without labels."""
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


def check_condition_dropout(name: str, net: "SampledNetwork", dropped: Sequence[str]) -> None:
    """Raise ValueError if a network was never trained without the conditions that its guide is to go without."""
    for condition in getattr(net.config, "conditions", ()):
        if condition.name in dropped and not condition.dropout:
            raise ValueError(
                f"{name}: was trained with condition {condition.name} for every image, so it cannot guide itself "
                f"without; give another network (--guide), or train with --condition-dropout {condition.name}=0.1"
            )


def _warn(message: str) -> None:
    click.echo(f"Warning: {message}", err=True)
