"""`edm2 generate`: draw samples of a network."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2.post_hoc_ema.files import plain_line
from edm2.sampling.presets import FAMILIES
from edm2.tools.options.groups import GroupedCommand, option_group
from edm2.tools.options.parsing import FILE, FOLDER, PNG_FILE
from edm2.tools.options.sampling import (
    SampleGenerator,
    SamplingOptions,
    sample_options,
    sampling_options,
    warn_of_few_evaluations,
)

if TYPE_CHECKING:
    from edm2.sampling.drawing import Decoder

MAX_GRID = 4096
"""Most images in a grid; programs fail to open larger pictures."""

EPILOG = (
    """\b
Examples:
  # Eighty digits of the network that comes with the package
  edm2 generate digits8 --seeds 0-79 --grid digits.png
\n\b
  # Sixteen sevens, one file each
  edm2 generate digits8 --seeds 0-15 --class 7 --out sevens/
\n\b
  # With 24 evaluations of the network in place of 63, at the same quality
  edm2 generate digits8 --seeds 0-79 --solver deis --steps 24 --grid fast.png
\n\b
  # With a few evaluations, by a network that was distilled (edm2 distill)
  edm2 generate runs/map --steps 2 --seeds 0-79 --grid two.png
\n\b
  # Fifty thousand images; interrupted, run it again and it goes on
  edm2 generate best.safetensors --seeds 0-49999 --out images/ --subdirs --batch 256
\n\b
  # Autoguidance by an earlier snapshot, at medium noise levels only
  edm2 generate best.safetensors --guide early.safetensors --guidance 1.8 --interval 0.19,1.61 --out guided/
\n\b
  # Classifier-free guidance by the network itself
  edm2 generate best.safetensors --unlabelled-guide --guidance 1.4 --out guided/
\n\b
  # With conditions besides the class, guided by the network itself without one of them
  edm2 generate told.safetensors --condition lowres=small/ --condition caption="a hat" --grid told.png
  edm2 generate told.safetensors --condition caption="a hat" --unguided caption --guidance 2 --grid guided.png
\n\b
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


_where = option_group("Where it goes; one or more")


@click.command(cls=GroupedCommand, epilog=EPILOG)
@click.argument("network", required=False)
@sample_options(seeds="0-15")
@_where("--out", type=FOLDER, help="Folder for one PNG per seed, named after the seed.")
@_where("--subdirs", is_flag=True, help="In --out, one sub-folder per thousand seeds.")
@_where("--npz", type=FILE, help="NPZ file with all images (arr_0) and their classes (arr_1).")
@_where("--grid", type=PNG_FILE, help="PNG file with all images side by side.")
@_where("--latents", is_flag=True, help="Write samples as the network draws them: NPY files in --out, or an NPZ file.")
@sampling_options
def generate(
    network: str | None,
    out: Path | None,
    subdirs: bool,
    npz: Path | None,
    grid: Path | None,
    latents: bool,
    **options_given: Any,
) -> None:
    """Draw samples of NETWORK.

    It is a snapshot, a run folder, a guided.json, a published network pickle, a pipeline of diffusers (a folder, or a
    repository of the Hugging Face hub), or the name of an included network (digits8).

    An image depends on its seed and class alone, whatever the batch. Images that exist already are not drawn again:
    if interrupted, run the same command again. Several processes, started by torchrun, divide the seeds among them.
    """
    _check_targets(out, npz, grid, subdirs, latents, len(options_given["seeds"]))
    options = SamplingOptions.from_given(network, options_given)
    from edm2.sampling.drawing import batches_of, store_images, undecoded, unfinished
    from edm2.sampling.generation import classes_of_seeds, drawn_by_default
    from edm2.tools.options.targets import Targets
    from edm2.tools.progress import progress_bar
    from edm2.training.distributed.processes import joined_processes

    targets = Targets(out, npz, grid, subdirs, latents)
    with joined_processes() as processes:
        generator = SampleGenerator(options, processes)
        store = targets.store(generator.settings | {"latents": latents}, processes.count)
        pending = unfinished(processes.shard(batches_of(options.seeds, options.batch_size)), store)
        batches = generator.batches(pending)
        decode = undecoded if latents else generator.decode
        if pending:
            _try_vae(generator, decode)
        with progress_bar(len(pending), hidden=not processes.is_first) as bar:
            store_images(batches, decode, store, bar.update)
        processes.wait()
        if processes.is_first:
            seeds = options.seeds
            labels = None if npz is None else classes_of_seeds(generator.net, seeds, generator.classes(seeds))
            # seed modulo number of classes: a column per class, where there are rows for that
            classes = len(drawn_by_default(generator.net)) if options.balanced else 0
            columns = classes if classes < len(seeds) else None
            targets.finish(store, seeds, labels, columns)
            what = f"{'latents' if latents else 'images'}{generator.class_shown}"
            done = f"{len(seeds)} {what} in {targets} ({generator.cost})"
            click.echo(plain_line(done))  # names of classes are untrusted
            warn_of_few_evaluations(generator.sampler, generator.num_steps)


def _check_targets(
    out: Path | None, npz: Path | None, grid: Path | None, subdirs: bool, latents: bool, count: int
) -> None:
    if out is None and npz is None and grid is None:
        raise click.UsageError(
            "say where the images go: --out FOLDER for one file per seed, --npz FILE.npz or --grid FILE.png"
        )
    if subdirs and out is None:
        raise click.UsageError("--subdirs divides the folder --out: give that, too")
    if grid is not None and latents:
        raise click.UsageError("--grid shows pictures, and --latents are none: give --out or --npz")
    if grid is not None and count > MAX_GRID:
        raise click.UsageError(f"--grid shows at most {MAX_GRID} images, not {count}: give --out or --npz")


def _try_vae(generator: SampleGenerator, decode: "Decoder") -> None:
    from edm2.training.data.vae import VAEError

    try:
        generator.try_out(decode)
    except VAEError as error:
        raise VAEError(f"{error}; --latents needs no VAE") from error
