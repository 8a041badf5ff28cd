"""Options of the commands that draw samples, and the generator of samples that they configure."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2.sampling.presets import GENERATION_PRESETS, describe_presets
from edm2.sampling.samplers import HEUN, MAP, SAMPLERS, Sampler
from edm2.sampling.samplers.registry import default_sampler, default_steps
from edm2.tools.options.conditions import (
    CONDITION_HELP,
    conditions_to_score,
    named_paths,
    read_conditions,
    stated_levels,
)
from edm2.tools.options.groups import option_group, with_options
from edm2.tools.options.networks import (
    CODEC_HELP,
    NET_FROM_HELP,
    check_guidance,
    check_own_precision,
    chosen_precision,
    complete_by_preset,
    load_networks,
    source_digests,
)
from edm2.tools.options.parsing import (
    DEVICE,
    FOLDER,
    INTERVAL,
    LEVELS,
    NUMBER,
    PRECISION,
    SAMPLING_PRECISION,
    SAMPLING_PRECISION_HELP,
    SEEDS,
    SIGMA_REL,
)

if TYPE_CHECKING:
    import torch

    from edm2.sampling.drawing import Decoder
    from edm2.sampling.external import SampledNetwork
    from edm2.sampling.generation import SampleBatch
    from edm2.sampling.samplers.heun import Denoiser
    from edm2.training.distributed.processes import Processes


class SamplerName(click.ParamType):
    """Name of a registered sampler, looked up when the command runs; becomes the `Sampler`.

    Args:
        of_maps: Whether that of flow maps is one of them.
    """

    name = "sampler"

    def __init__(self, of_maps: bool) -> None:
        self.of_maps = of_maps

    @property
    def known(self) -> dict[str, Sampler]:
        return {MAP.name: MAP, **SAMPLERS} if self.of_maps else SAMPLERS

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(self.known)}]"

    def convert(self, value: "str | Sampler", param: click.Parameter | None, ctx: click.Context | None) -> Sampler:
        if isinstance(value, Sampler):
            return value
        return self.known[click.Choice(list(self.known)).convert(value, param, ctx)]


def sampler_option(group: Callable, default: str | None = None, of_maps: bool = True) -> Callable:
    """Option --solver under the heading of `group`; the command receives a `Sampler`, or None for the network's own."""
    return group(
        "--solver",
        "sampler",
        type=SamplerName(of_maps),
        default=default,
        help="Heun's method evaluates the network twice per step, the others once; default: heun"
        + ("; map for a distilled network." if of_maps else "."),
    )


def check_levels_alone(levels: Sequence[float] | None, sampler: Sampler | None, steps: Any) -> None:
    """Raise click.UsageError for --levels beside another solver, or beside --steps."""
    if levels is not None and (sampler not in (None, MAP) or steps is not None):
        raise click.UsageError("--levels are those of --solver map, and their number is that of its steps")


def warn_of_few_evaluations(sampler: Sampler, num_steps: int) -> None:
    """Print a warning where a solver takes too few steps to draw well."""
    advice = sampler.advice(num_steps)
    if advice is not None:
        click.echo(advice, err=True)


def way_of_sampling(
    name: str,
    abilities: Collection[str],
    known: Mapping[int, Sequence[float]],
    sampler: Sampler | None,
    steps: int | None,
    levels: tuple[float, ...] | None,
    is_guided: bool,
) -> tuple[Sampler, int, tuple[float, ...] | None]:
    """Choose sampler, steps and, of a flow map, levels: as asked for, else those that suit the network.

    Args:
        name: Name of the network in messages.
        abilities: What it can do, of `edm2.networks.precond.ABILITIES`.
        known: Its levels by number of steps.
        sampler, steps, levels: Those that are asked for.
        is_guided: It has a guide.

    Raises:
        ValueError: they do not suit it.
    """
    from edm2.sampling.samplers.flow_map import check_levels, levels_for

    if levels is not None and default_sampler(abilities) != MAP:
        raise ValueError(f"{name}: --levels are for flow maps, and this is none")
    sampler = sampler or (MAP if levels else HEUN if is_guided else default_sampler(abilities))
    if sampler != MAP:
        if "denoise" not in abilities:
            raise ValueError(f"{name}: is no denoiser: draw with --solver map")
        return sampler, steps or default_steps(sampler), None
    if is_guided:
        raise ValueError("--solver map takes no guide: distil the guided network, or draw with --solver heun")
    levels = levels or levels_for(known, steps or default_steps(MAP, abilities))
    check_levels(abilities, levels, name)
    return MAP, len(levels) - 1, levels


def _list_presets(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo("\n".join(describe_presets()))
        context.exit()


_what, _guidance, _sampling, _machine = map(option_group, ("What is drawn", "Guidance", "Sampling", "Machine"))

SAMPLE_OPTIONS = (
    _what("--class", "class_name", help="Class of all images, by number or name; default: a random one for each seed."),
    _what("--balanced", is_flag=True, help="As many images of each class: seed modulo number of classes."),
    _what("--ema", type=SIGMA_REL, help="EMA length, where NETWORK is a run; default: the best that a sweep found."),
    _what(
        "--preset",
        type=click.Choice(list(GENERATION_PRESETS)),
        metavar="NAME",
        help="Settings of a published result (see --list-presets).",
    ),
    _what(
        "--condition",
        "conditions",
        multiple=True,
        metavar="NAME=VALUE",
        help=CONDITION_HELP,
    ),
    _what("--net-from", metavar="MODULE:CALLABLE", help=NET_FROM_HELP),
    _what("--codec", "codec_from", metavar="MODULE:CALLABLE", help=CODEC_HELP),
    _what("--networks", type=FOLDER, default=".", help="Folder with the networks of --preset; default: here."),
    _what(
        "--list-presets",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_list_presets,
        help="Print all presets and exit.",
    ),
)

SAMPLING_OPTIONS = (
    _guidance("--guide", help="Network to guide away from: a snapshot or an included network."),
    _guidance("--unlabelled-guide", is_flag=True, help="Guide away from NETWORK itself without classes."),
    _guidance(
        "--unguided",
        "unguided",
        multiple=True,
        metavar="NAME",
        help="Guide away from NETWORK itself without this condition. Repeatable.",
    ),
    _guidance("--guidance", type=NUMBER, help="Guidance weight; default: 1, no guidance."),
    _guidance("--interval", type=INTERVAL, help="Noise levels (LOW,HIGH) at which guidance acts; default: all."),
    _sampling(
        "--steps", "num_steps", type=click.IntRange(1), help="Sampling steps; default: 32, of a map 2, its evaluations."
    ),
    _sampling("--levels", type=LEVELS, help="Noise levels that a map jumps between; default: its own for --steps."),
    sampler_option(_sampling),
    _sampling("--churn", "S_churn", type=NUMBER, default=0.0, show_default=True, help="Fresh noise per step; 0: none."),
    _sampling("--vae", help="VAE to decode latents with, folder or hub id; default: the one that NETWORK names."),
    _machine("--batch", "batch_size", type=click.IntRange(1), default=64, show_default=True, help="Images per batch."),
    _machine(
        "--decode-batch", type=click.IntRange(1), default=8, show_default=True, help="Images per batch of the VAE."
    ),
    _machine("--precision", type=SAMPLING_PRECISION, help=SAMPLING_PRECISION_HELP),
    _machine("--compile", is_flag=True, help="Compile the networks: faster, after a minute or more per batch size."),
    _machine("--vae-precision", type=PRECISION, default="fp32", show_default=True, help="Precision of the VAE."),
    _machine("--device", type=DEVICE, help="cpu, cuda or mps; default: the fastest here."),
)


def sample_options(seeds: str) -> Callable[[Callable], Callable]:
    """Return a decorator that adds --seeds, with this default, and `SAMPLE_OPTIONS`."""
    option = _what(
        "--seeds", type=SEEDS, default=seeds, show_default=True, help="Seeds, one image each: 0-63 or 3,5,10-12."
    )
    return with_options(option, *SAMPLE_OPTIONS)


sampling_options = with_options(*SAMPLING_OPTIONS)
"""Decorator that adds `SAMPLING_OPTIONS`."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Values of --seeds, `SAMPLE_OPTIONS` and `SAMPLING_OPTIONS`, by parameter name, completed by --preset."""

    network: str
    seeds: list[int]
    class_name: str | None
    balanced: bool
    preset: str | None
    net_from: str | None
    codec_from: str | None
    networks: Path
    guide: str | None
    unlabelled_guide: bool
    unguided: tuple[str, ...]
    guidance: float
    interval: tuple[float, float] | None
    num_steps: int | None
    levels: tuple[float, ...] | None
    sampler: Sampler | None
    S_churn: float
    vae: str | None
    ema: float | None
    conditions: tuple[str, ...]
    batch_size: int
    decode_batch: int
    precision: str | None
    compile: bool
    vae_precision: str
    device: str | None

    @classmethod
    def from_given(cls, network: str | None, given: dict[str, Any]) -> "SamplingOptions":
        """Decide on the networks and all else, before anything is loaded.

        Raises:
            click.UsageError: options that exclude or need each other, or no network.
            FileNotFoundError: a preset's file is missing.
        """
        given = {"network": network, **given}
        sampler: Sampler | None = given["sampler"]
        check_levels_alone(given["levels"], sampler, given["num_steps"])
        if given["class_name"] is not None and given["balanced"]:
            raise click.UsageError("--class asks for one class and --balanced for all: give one of them")
        sampler = sampler if given["levels"] is None else MAP
        if given["S_churn"] < 0:
            raise click.UsageError(f"--churn {given['S_churn']:g} must not be negative")
        if given["S_churn"] and sampler is not None and not sampler.churns:
            raise click.UsageError(f"--churn needs --solver {HEUN.name}: {sampler.name} adds no fresh noise")
        check_own_precision(given["precision"], given["net_from"])
        if given["preset"] is not None:
            complete_by_preset(given, GENERATION_PRESETS[given["preset"]])
        if given["network"] is None:
            raise click.UsageError("which NETWORK? Give a snapshot, an included network (digits8), or --preset NAME")
        weight = given["guidance"]
        own_guide = given["unlabelled_guide"] or bool(given["unguided"])
        check_guidance(given["guide"], own_guide, None if weight is None else [weight], given["interval"])
        return cls(**given | {"guidance": 1.0 if weight is None else weight})


class SampleGenerator:
    """Networks on this process's device, and the settings to draw samples with them.

    Args:
        options: Networks and settings.
        processes: Processes that draw.
        held_out: Take conditions that are not given from images that a run holds out, where the network is a run.

    Raises:
        OSError, ValueError: a file is no network, or options do not suit it.
    """

    def __init__(self, options: SamplingOptions, processes: "Processes", held_out: bool = False) -> None:
        from edm2.io.model import read_metadata
        from edm2.networks.precond import MAP_LEVELS
        from edm2.sampling.conditions import SampleConditions
        from edm2.sampling.generation import class_index
        from edm2.tools.options.run_network import is_run, network_of_run
        from edm2.tools.run import use_device

        run = Path(options.network)
        held_out = held_out and is_run(run)
        if is_run(run):
            steps = options.num_steps if options.levels is None else len(options.levels) - 1
            solver = options.sampler or (HEUN if options.S_churn or options.guidance != 1 else None)
            options = replace(options, network=network_of_run(run, options.ema, processes, steps, solver))
        elif options.ema is not None:
            raise click.UsageError(f"--ema chooses an average of a run, and {options.network} is a network already")
        self.options = options
        self.contents = processes.broadcast(self._contents() if processes.is_first else {})
        self.device: torch.device = use_device(processes, options.device)
        self.precision = chosen_precision(options.precision, self.device.type, options.net_from)
        self.net: SampledNetwork
        self.guide: Denoiser | None
        self.net, self.guide = load_networks(options, self.device, self._dtype(self.precision), processes.is_first)
        self.contents |= source_digests(options.net_from, options.codec_from, map(type, self.net.modules()))
        if options.compile:
            _compile(self.net, self.guide)
        self.metadata: dict[str, Any] = read_metadata(options.network)
        self.sampler, self.num_steps, _ = way_of_sampling(
            options.network,
            getattr(self.net, "abilities", ("denoise",)),
            getattr(self.net, "map_levels", MAP_LEVELS),
            options.sampler or (HEUN if options.S_churn else None),
            options.num_steps,
            options.levels,
            self.guide is not None,
        )
        if options.balanced and self.net.config.label_dim == 0:
            raise ValueError("--balanced: this network has no classes: it was trained without labels")
        self.class_names = (self.metadata.get("data") or {}).get("class_names") or ()
        known = getattr(self.net.config, "conditions", ())
        self._conditions: SampleConditions | None = None
        if held_out:
            self._conditions = conditions_to_score(run, options.conditions, len(options.seeds), known)
            if self._conditions is not None:
                self.contents["conditions"] = self._conditions.digest()
        elif (rows := read_conditions(options.conditions, options.seeds, known)) is not None:
            self._conditions = SampleConditions(rows)
        if processes.is_first:
            for line in stated_levels(known, self._conditions):
                click.echo(line)
        self._rows = {seed: row for row, seed in enumerate(options.seeds)}
        name = options.class_name
        self.class_index = None if name is None else class_index(name, self.class_names)

    @property
    def class_shown(self) -> str:
        """Name and number of the class that is drawn; nothing where it is not one class with a name."""
        if self.class_index is None or self.class_index >= len(self.class_names):
            return ""
        return f" of class {self.class_names[self.class_index]} (number {self.class_index})"

    def classes(self, seeds: Sequence[int]) -> int | list[int] | None:
        """Classes of these seeds, as the argument of `edm2.sampling.generation.generate`."""
        from edm2.sampling.generation import drawn_by_default

        if not self.options.balanced:
            if self.class_index is None and self._conditions is not None:
                return self._conditions.classes_of([self._rows[seed] for seed in seeds])
            return self.class_index
        classes = drawn_by_default(self.net)
        return [classes[seed % len(classes)] for seed in seeds]

    def batches(self, seeds: Sequence[int]) -> "Iterator[SampleBatch]":
        """Draw the samples of seeds, batch by batch. Raises SamplingError if one is not finite."""
        from edm2.sampling.generation import generate, require_finite
        from edm2.sampling.guidance import EVERYWHERE

        conditions = None
        if self._conditions is not None:
            conditions = self._conditions.of([self._rows[seed] for seed in seeds])
        given: dict[str, Any] = {"S_churn": self.options.S_churn, "levels": self.options.levels}
        given = {name: value for name, value in given.items() if value}
        batches = generate(
            self.net,
            seeds,
            self.classes(seeds),
            self.guide,
            self.options.guidance,
            self.options.interval or EVERYWHERE,
            self.options.batch_size,
            self.sampler.sample,
            conditions=conditions,
            num_steps=self.num_steps,
            **given,
        )
        guided_by = f", guided by {self.options.guide}" if self.options.guide else ""
        return require_finite(batches, f"{self.options.network}{guided_by}")

    @property
    def cost(self) -> str:
        """Number of evaluations as text."""
        return self.sampler.cost(self.num_steps)

    def _contents(self) -> dict[str, str]:
        """Digests of the files that decide the images, whatever their paths are."""
        from edm2.io.model import digest_of

        names = {"network": self.options.network, "guide": self.options.guide, "vae": self.options.vae}
        names |= named_paths(self.options.conditions)
        return {kind: digest for kind, name in names.items() if name is not None and (digest := digest_of(name))}

    @cached_property
    def decode(self) -> "Decoder":
        """Function that turns samples into pixels; raises for --vae if the network draws pixels already."""
        from edm2.sampling.drawing import decoder
        from edm2.tools.options.evaluators import codec_of

        codec = codec_of(self.options.network, self.metadata, self.options.vae, self.options.codec_from)
        return decoder(codec, self.options.decode_batch, self._dtype(self.options.vae_precision))

    def try_out(self, decode: "Decoder") -> None:
        """Decode one image of zeros: a missing VAE or too little memory shows now, not after hours of sampling."""
        import torch

        decode(torch.zeros(1, self.net.config.img_channels, *self.net.config.size, device=self.device))

    @property
    def settings(self) -> dict[str, Any]:
        """JSON of what the images depend on besides their seeds."""
        options = self.options
        return {
            "network": options.network, "images_seen": self.metadata.get("images_seen"),
            "sigma_rel": self.metadata.get("sigma_rel"), "class": "balanced" if options.balanced else self.class_index,
            "steps": self.num_steps, "solver": self.sampler.name, "churn": options.S_churn,
            "guide": options.guide, "unlabelled_guide": options.unlabelled_guide, "guidance": options.guidance,
            "interval": options.interval and list(options.interval), "precision": self.precision, "vae": options.vae,
            "vae_precision": options.vae_precision, "contents": self.contents,
            **{name: value for name in ("net_from", "codec_from") if (value := getattr(options, name)) is not None},
            **({"conditions": options.conditions} if options.conditions else {}),
            **({"unguided": options.unguided} if options.unguided else {}),
            **({"levels": options.levels} if options.levels else {}),
        }  # fmt: skip

    @staticmethod
    def _dtype(precision: str) -> "torch.dtype":
        from edm2.training.config import DTYPES

        return DTYPES[precision]


def _compile(*denoisers: "Denoiser | None") -> None:
    """Compile the denoisers that are networks; each batch size is compiled on its own."""
    import torch

    from edm2.sampling import cuda_graphs
    from edm2.sampling.guided_network import GuidedNetwork

    for denoiser in denoisers:
        for part in denoiser.children() if isinstance(denoiser, GuidedNetwork) else [denoiser]:
            if not isinstance(part, torch.nn.Module):
                continue
            if cuda_graphs.CAPTURE and any(buffer.is_cuda for buffer in part.buffers()):
                cuda_graphs.capture_(part, compiled=True)
            else:
                part.compile(dynamic=False)
