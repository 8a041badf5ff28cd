"""`edm2 generate`: samples of a network as PNG files or one grid."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edm2.tools.parsing import DEVICE, FILE, FOLDER, NUMBER, SEEDS

if TYPE_CHECKING:
    from edm2.networks import Precond

EPILOG = """\b
Examples:
  # Eighty digits of the network that comes with the package
  edm2 generate digits8 --seeds 0-79 --grid digits.png
\b
  # Sixteen sevens, one file each
  edm2 generate digits8 --seeds 0-15 --class 7 --out sevens/
\b
  # Your own network, sharpened by guidance with an earlier snapshot of it
  edm2 generate best.safetensors --guide early.safetensors --guidance 1.8 --out guided/
"""


def _same_images(net: "Precond", guide: "Precond") -> bool:
    """Whether both draw images of one shape, and know the same number of classes or one of them none."""
    a, b = net.config, guide.config
    same_classes = a.label_dim == b.label_dim or 0 in (a.label_dim, b.label_dim)
    return same_classes and (a.img_channels, a.size) == (b.img_channels, b.size)


@click.command(epilog=EPILOG)
@click.argument("network")
@click.option("--seeds", type=SEEDS, default="0-15", show_default=True, help="One image per seed: 0-63, or 3,5,10-12.")
@click.option("--class", "class_index", type=int, help="Class of all images; default: every seed has one of its own.")
@click.option("--out", type=FOLDER, help="Folder for one PNG per seed, named by it.")
@click.option("--grid", type=FILE, help="One PNG with all images.")
@click.option("--steps", "num_steps", type=click.IntRange(1), default=32, show_default=True, help="Sampling steps.")
@click.option("--guide", help="Network to guide away from.")
@click.option("--guidance", type=NUMBER, default=1.0, show_default=True, help="Guidance weight; 1 is none.")
@click.option("--churn", "S_churn", type=NUMBER, default=0.0, show_default=True, help="Fresh noise; 0: deterministic.")
@click.option("--batch", "batch_size", type=click.IntRange(1), default=64, show_default=True, help="Images at a time.")
@click.option("--device", type=DEVICE, help="cpu, cuda or mps; default: the fastest here.")
def generate(
    network: str,
    seeds: list[int],
    class_index: int | None,
    out: Path | None,
    grid: Path | None,
    num_steps: int,
    guide: str | None,
    guidance: float,
    S_churn: float,
    batch_size: int,
    device: str | None,
) -> None:
    """Draw samples of NETWORK: a snapshot file, or the name of an included network (digits8).

    An image depends on its seed and class alone, whatever the batch.
    """
    if out is None and grid is None:
        raise click.UsageError("say where the images go: --out FOLDER for one file per seed, or --grid FILE.png")
    if guidance != 1 and guide is None:
        raise click.UsageError(f"--guidance {guidance:g} needs a network to guide away from: --guide SNAPSHOT")
    import torch
    from tqdm import tqdm

    from edm2.generation import generate as generate_batches
    from edm2.images import save_grid, save_png
    from edm2.model import load, read_metadata
    from edm2.networks import fold
    from edm2.tools.run import default_device
    from edm2.training import codec_from_json

    device = device or default_device()
    net = fold(load(network, device))
    guide_net = None if guide is None else fold(load(guide, device))
    if guide_net is not None and not _same_images(net, guide_net):
        raise ValueError(f"{guide} cannot guide {network}: it is for images or classes of another kind")
    codec = codec_from_json(read_metadata(network).get("codec", {"kind": "pixels"}))
    pixels = []
    with tqdm(total=len(seeds), unit="img", leave=False, disable=None) as bar:
        for batch in generate_batches(
            net,
            seeds,
            class_index,
            guide_net,
            guidance,
            batch_size=batch_size,
            num_steps=num_steps,
            S_churn=S_churn,
        ):
            images = codec.to_display(codec.decode(batch.samples)).cpu()
            if out is not None:
                for seed, image in zip(batch.seeds, images, strict=True):
                    save_png(image, out / f"{seed:06d}.png")
            pixels.append(images)
            bar.update(len(images))
    if grid is not None:
        columns = 10 if len(seeds) % 10 == 0 else None
        save_grid(torch.cat(pixels), grid, columns)
    click.echo(f"{len(seeds)} images in {' and '.join(str(path) for path in (out, grid) if path)}")
