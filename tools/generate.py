"""`edm2 generate`: samples of a network as PNG files, one NPZ file or one grid."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edm2.generation_presets import FAMILIES, GENERATION_PRESETS, describe_presets
from edm2.tools.choice import Choice
from edm2.tools.option_groups import GroupedCommand, GroupedOption
from edm2.tools.parsing import DEVICE, FILE, FOLDER, INTERVAL, NUMBER, PRECISION, SEEDS

if TYPE_CHECKING:
    from torch import Tensor

    from edm2.drawing import Decoder
    from edm2.training import Codec

MAX_GRID = 4096
"""Images in a grid; more make a picture that nothing opens."""

EPILOG = (
    """\b
Examples:
  # Eighty digits of the network that comes with the package
  edm2 generate digits8 --seeds 0-79 --grid digits.png
\b
  # Sixteen sevens, one file each
  edm2 generate digits8 --seeds 0-15 --class 7 --out sevens/
\b
  # Fifty thousand images; interrupted, run it again and it goes on
  edm2 generate best.safetensors --seeds 0-49999 --out images/ --subdirs --batch 256
\b
  # Autoguidance by an earlier snapshot, at medium noise levels only
  edm2 generate best.safetensors --guide early.safetensors --guidance 1.8 --interval 0.19,1.61 --out guided/
\b
  # Classifier-free guidance by the network itself
  edm2 generate best.safetensors --unlabelled-guide --guidance 1.4 --out guided/
\b
  # The paper's settings, with its files in networks/; for an evaluation suite
  edm2 generate --preset edm2-img512-s-guid-fid --networks networks/ --seeds 0-49999 --npz samples.npz

\b
On eight GPUs, put this before the command:
  torchrun --standalone --nproc-per-node 8 -m

\b
Presets (--list-presets shows each with its networks and its score in the paper):
"""
    + FAMILIES
)


def _list_presets(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo("\n".join(describe_presets()))
        context.exit()


def _options(group: str) -> Callable:
    """Makes options that stand under one heading."""
    return partial(click.option, cls=GroupedOption, group=group)


_what, _where = _options("What is drawn"), _options("Where it goes; one or more")
_guidance, _sampling, _machine = _options("Guidance"), _options("Sampling"), _options("Machine")


@click.command(cls=GroupedCommand, epilog=EPILOG)
@click.argument("network", required=False)
@_what("--seeds", type=SEEDS, default="0-15", show_default=True, help="One image per seed: 0-63, or 3,5,10-12.")
@_what("--class", "class_name", help="Class of all images, by number or name; default: drawn from the seed.")
@_what("--balanced", is_flag=True, help="As many images of each class: seed modulo number of classes.")
@_what("--preset", type=click.Choice(list(GENERATION_PRESETS)), metavar="NAME", help="Published settings (see below).")
@_what("--networks", type=FOLDER, default=".", help="Folder with the files that --preset names; default: this one.")
@_what(
    "--list-presets",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_presets,
    help="Show all presets, and stop.",
)
@_where("--out", type=FOLDER, help="Folder for one PNG per seed, named by it.")
@_where("--subdirs", is_flag=True, help="In --out, one sub-folder per thousand seeds.")
@_where("--npz", type=FILE, help="NPZ file with all images (arr_0) and their classes (arr_1).")
@_where("--grid", type=FILE, help="PNG file with all images side by side.")
@_where("--latents", is_flag=True, help="What the network draws, not decoded: NPY files in --out, or an NPZ file.")
@_where("--vae", help="VAE to decode with, folder or hub id; default: the one that NETWORK names.")
@_guidance("--guide", help="Network to guide away from.")
@_guidance("--unlabelled-guide", is_flag=True, help="Guide away from NETWORK itself without classes.")
@_guidance("--guidance", type=NUMBER, help="Weight; default: 1, which is none.")
@_guidance("--interval", type=INTERVAL, help="Noise levels with guidance; default: all.")
@_sampling("--steps", "num_steps", type=click.IntRange(1), default=32, show_default=True, help="Sampling steps.")
@_sampling("--churn", "S_churn", type=NUMBER, default=0.0, show_default=True, help="Fresh noise; 0: deterministic.")
@_machine("--batch", "batch_size", type=click.IntRange(1), default=64, show_default=True, help="Images at a time.")
@_machine("--decode-batch", type=click.IntRange(1), default=8, show_default=True, help="The same for the VAE.")
@_machine("--precision", type=PRECISION, help="Precision of activations; default: fp16 on CUDA, else fp32.")
@_machine("--vae-precision", type=PRECISION, default="fp32", show_default=True, help="The same for the VAE.")
@_machine("--device", type=DEVICE, help="cpu, cuda or mps; default: the fastest here.")
def generate(
    network: str | None,
    preset: str | None,
    networks: Path,
    seeds: list[int],
    class_name: str | None,
    balanced: bool,
    out: Path | None,
    subdirs: bool,
    npz: Path | None,
    grid: Path | None,
    latents: bool,
    vae: str | None,
    num_steps: int,
    guide: str | None,
    unlabelled_guide: bool,
    guidance: float | None,
    interval: tuple[float, float] | None,
    S_churn: float,
    batch_size: int,
    decode_batch: int,
    precision: str | None,
    vae_precision: str,
    device: str | None,
) -> None:
    """Draw samples of NETWORK: a snapshot file, or the name of an included network (digits8).

    An image depends on its seed and class alone, whatever the batch. Images that are there already are not drawn
    again: interrupted, run the same again. Several processes, started by torchrun, share the work.
    """
    _check_targets(out, npz, grid, latents, len(seeds))
    if class_name is not None and balanced:
        raise click.UsageError("--class asks for one class and --balanced for all: give one of them")
    choice = Choice(network, guide, unlabelled_guide, guidance, interval)
    if preset is not None:
        choice = choice.completed_by(GENERATION_PRESETS[preset], networks)
    choice.check()
    import torch
    from tqdm import tqdm

    from edm2.drawing import batches_of, decoder, keep_all, undecoded, unfinished
    from edm2.generation import classes_of_seeds
    from edm2.generation import generate as generate_batches
    from edm2.guidance import EVERYWHERE
    from edm2.model import read_metadata
    from edm2.tools.run import default_device
    from edm2.tools.targets import Targets
    from edm2.training.distributed import joined_processes
    from edm2.training.trainer import DTYPES

    targets = Targets(out, npz, grid, subdirs, latents)
    with joined_processes() as processes:
        place = processes.device(device or default_device())
        precision = precision or ("fp16" if place.type == "cuda" else "fp32")
        net, guide_net = choice.load(place, DTYPES[precision], warn=processes.is_first)
        metadata = read_metadata(choice.network)
        class_index = _class_index(class_name, (metadata.get("data") or {}).get("class_names", ()))
        classes = _balanced(net.config.label_dim) if balanced else lambda part: class_index

        settings = {
            "network": choice.network, "images_seen": metadata.get("images_seen"),
            "sigma_rel": metadata.get("sigma_rel"), "class": "balanced" if balanced else class_index,
            "steps": num_steps, "guide": choice.guide, "unlabelled_guide": choice.unlabelled_guide,
            "guidance": choice.weight, "interval": choice.interval and list(choice.interval), "churn": S_churn,
            "precision": precision, "vae": vae, "vae_precision": vae_precision, "latents": latents,
        }  # fmt: skip
        store = targets.store(settings, processes.count)
        pending = unfinished(processes.share(batches_of(seeds, batch_size)), store)
        batches = generate_batches(
            net,
            pending,
            classes(pending),
            guide_net,
            choice.weight,
            choice.interval or EVERYWHERE,
            batch_size,
            num_steps=num_steps,
            S_churn=S_churn,
        )
        decode = undecoded if latents else decoder(_codec(choice.network, vae), decode_batch, DTYPES[vae_precision])
        if pending:
            _try(decode, torch.zeros(1, net.config.img_channels, *net.config.size, device=place))
        with tqdm(total=len(pending), unit="img", leave=False, disable=None if processes.is_first else True) as bar:
            keep_all(batches, decode, store, bar.update)
        processes.wait()
        if processes.is_first:
            labels = None if npz is None else classes_of_seeds(net, seeds, classes(seeds))
            targets.finish(store, seeds, labels)
            click.echo(f"{len(seeds)} {'latents' if latents else 'images'} in {targets}")


def _check_targets(out: Path | None, npz: Path | None, grid: Path | None, latents: bool, count: int) -> None:
    if out is None and npz is None and grid is None:
        raise click.UsageError(
            "say where the images go: --out FOLDER for one file per seed, --npz FILE.npz or --grid FILE.png"
        )
    if grid is not None and latents:
        raise click.UsageError("--grid shows pictures, and --latents are none: give --out or --npz")
    if grid is not None and count > MAX_GRID:
        raise click.UsageError(f"--grid shows at most {MAX_GRID} images, not {count}: give --out or --npz")


def _balanced(label_dim: int) -> Callable[[Sequence[int]], list[int]]:
    """Classes of seeds in turn."""
    if label_dim == 0:
        raise ValueError("--balanced: this network has no classes: it was trained without labels")
    return lambda seeds: [seed % label_dim for seed in seeds]


def _codec(network: str, vae: str | None) -> "Codec":
    """The network's way to pixels, by another VAE if one is given."""
    from edm2.model import read_metadata
    from edm2.training import LatentCodec, codec_from_json

    codec = codec_from_json(read_metadata(network).get("codec") or {"kind": "pixels"})
    if vae is None:
        return codec
    if not isinstance(codec, LatentCodec):
        raise ValueError(f"{network}: draws pixels, which no --vae has to decode")
    return replace(codec, vae=vae)


def _try(decode: "Decoder", nothing: "Tensor") -> None:
    """A VAE that cannot be loaded, or needs more memory than there is, shows now, not after hours of drawing."""
    from edm2.training.latents import VAEError

    try:
        decode(nothing)
    except VAEError as error:
        raise VAEError(f"{error}; --latents needs no VAE") from error


def _class_index(text: str | None, names: Sequence[str]) -> int | None:
    """A class by name, else by number."""
    if text is None:
        return None
    if text in names:
        return list(names).index(text)
    try:
        return int(text)
    except ValueError:
        known = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise ValueError(f"class {text!r} is neither a number nor one of the network's classes ({known})") from None
