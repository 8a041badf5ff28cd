"""`edm2 generate`: samples of a network as PNG files or one grid."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edm2.tools.parsing import DEVICE, FILE, FOLDER, INTERVAL, NUMBER, PRECISION, SEEDS

if TYPE_CHECKING:
    from torch import Tensor

    from edm2.generation import Batch
    from edm2.image_folder import ImageFolder
    from edm2.networks import Precond
    from edm2.training import Codec

EPILOG = """\b
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
  # Sharpened by guidance with an earlier snapshot, at medium noise levels only
  edm2 generate best.safetensors --guide early.safetensors --guidance 1.8 --interval 0.19,1.61 --out guided/
"""


@click.command(epilog=EPILOG)
@click.argument("network")
@click.option("--seeds", type=SEEDS, default="0-15", show_default=True, help="One image per seed: 0-63, or 3,5,10-12.")
@click.option("--class", "class_name", help="Class of all images, by number or name; default: drawn from the seed.")
@click.option("--out", type=FOLDER, help="Folder for one PNG per seed, named by it.")
@click.option("--subdirs", is_flag=True, help="In --out, one sub-folder per thousand seeds.")
@click.option("--grid", type=FILE, help="One PNG with all images.")
@click.option("--steps", "num_steps", type=click.IntRange(1), default=32, show_default=True, help="Sampling steps.")
@click.option("--guide", help="Network to guide away from.")
@click.option("--guidance", type=NUMBER, default=1.0, show_default=True, help="Guidance weight; 1 is none.")
@click.option("--interval", type=INTERVAL, help="Noise levels with guidance; default: all.")
@click.option("--churn", "S_churn", type=NUMBER, default=0.0, show_default=True, help="Fresh noise; 0: deterministic.")
@click.option("--batch", "batch_size", type=click.IntRange(1), default=64, show_default=True, help="Images at a time.")
@click.option("--precision", type=PRECISION, help="Precision of activations; default: fp16 on CUDA, else fp32.")
@click.option("--device", type=DEVICE, help="cpu, cuda or mps; default: the fastest here.")
def generate(
    network: str,
    seeds: list[int],
    class_name: str | None,
    out: Path | None,
    subdirs: bool,
    grid: Path | None,
    num_steps: int,
    guide: str | None,
    guidance: float,
    interval: tuple[float, float] | None,
    S_churn: float,
    batch_size: int,
    precision: str | None,
    device: str | None,
) -> None:
    """Draw samples of NETWORK: a snapshot file, or the name of an included network (digits8).

    An image depends on its seed and class alone, whatever the batch. Images that are in --out already are not drawn
    again.
    """
    if out is None and grid is None:
        raise click.UsageError("say where the images go: --out FOLDER for one file per seed, or --grid FILE.png")
    if guidance != 1 and guide is None:
        raise click.UsageError(f"--guidance {guidance:g} needs a network to guide away from: --guide SNAPSHOT")
    if interval is not None and guidance == 1:
        raise click.UsageError("--interval limits guidance, and there is none: give --guide and --guidance")
    import torch
    from tqdm import tqdm

    from edm2.generation import generate as generate_batches
    from edm2.image_folder import ImageFolder
    from edm2.images import save_grid
    from edm2.model import load, read_metadata
    from edm2.networks import fold
    from edm2.tools.run import default_device
    from edm2.training import codec_from_json
    from edm2.training.trainer import DTYPES

    device = device or default_device()
    precision = precision or ("fp16" if device.startswith("cuda") else "fp32")
    net = fold(load(network, device), DTYPES[precision])
    guide_net = None if guide is None else fold(load(guide, device), DTYPES[precision])
    if guide_net is not None and not _same_images(net, guide_net):
        raise ValueError(f"{guide} cannot guide {network}: it is for images or classes of another kind")
    metadata = read_metadata(network)
    codec = codec_from_json(metadata.get("codec", {"kind": "pixels"}))
    class_index = _class_index(class_name, metadata.get("data", {}).get("class_names", ()))

    settings = {
        "network": network, "images_seen": metadata.get("images_seen"), "sigma_rel": metadata.get("sigma_rel"),
        "class": class_index, "steps": num_steps, "guide": guide, "guidance": guidance,
        "interval": interval and list(interval), "churn": S_churn, "precision": precision,
    }  # fmt: skip
    folder = None if out is None else ImageFolder(out, settings, subdirs)
    pending = seeds if folder is None else folder.missing(seeds)
    batches = generate_batches(
        net,
        pending,
        class_index,
        guide_net,
        guidance,
        interval or (0, float("inf")),
        batch_size,
        num_steps=num_steps,
        S_churn=S_churn,
    )
    with tqdm(total=len(seeds), initial=len(seeds) - len(pending), unit="img", leave=False, disable=None) as bar:
        drawn = _draw(batches, codec, folder, bar.update)
    if grid is not None:
        pixels = torch.cat(drawn) if folder is None else folder.read(seeds)
        save_grid(pixels, grid, columns=10 if len(seeds) % 10 == 0 else None)
    click.echo(f"{len(seeds)} images in {' and '.join(str(path) for path in (out, grid) if path)}")


def _draw(
    batches: "Iterable[Batch]", codec: "Codec", folder: "ImageFolder | None", report: Callable[[int], object]
) -> "list[Tensor]":
    """Decode batch by batch, into the folder or, without one, into the list that is returned."""
    drawn = []
    for batch in batches:
        images = codec.to_display(codec.decode(batch.samples)).cpu()
        if folder is None:
            drawn.append(images)
        else:
            for seed, image in zip(batch.seeds, images, strict=True):
                folder.save(seed, image)
        report(len(images))
    return drawn


def _same_images(net: "Precond", guide: "Precond") -> bool:
    """Whether both draw images of one shape, and know the same number of classes or one of them none."""
    a, b = net.config, guide.config
    same_classes = a.label_dim == b.label_dim or 0 in (a.label_dim, b.label_dim)
    return same_classes and (a.img_channels, a.size) == (b.img_channels, b.size)


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
