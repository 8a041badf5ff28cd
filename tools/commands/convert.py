"""`edm2 convert`: published networks to snapshots, any network to a diffusers pipeline."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from edm2.post_hoc_ema.files import plain_line, visible_files

EPILOG = """\b
Examples:
  # A published network as a snapshot
  edm2 convert edm2-img512-xs-2147483-0.135.pkl xs.safetensors
\n\b
  # The same, fetched from where it is published
  edm2 convert https://example.org/edm2-img512-xs-2147483-0.135.pkl xs.safetensors
\n\b
  # A folder for diffusers, of a published network or a snapshot of yours
  edm2 convert best.safetensors my-pipeline/ --to diffusers
"""


@click.command(epilog=EPILOG)
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "form",
    type=click.Choice(["safetensors", "diffusers"]),
    default="safetensors",
    show_default=True,
    help="Form of OUT: a snapshot of this program, or a folder with a diffusers pipeline.",
)
def convert(source: str, out: Path, form: str) -> None:
    """Write the network in SOURCE to OUT in another form.

    SOURCE is a network pickle of the published EDM2 program (.pkl), by its path or its URL; for diffusers also a
    snapshot or the name of an included network. Nothing in a pickle is ever executed; a pickle that holds anything
    but a network is refused. Keep its published file name: it says how many thousand images the network has seen, and
    its EMA length.

    `edm2 generate`, `edm2 reconstruct` and `edm2 info` read such pickles directly, `edm2 generate` and `edm2 info`
    also pipelines. If the VAE of a network cannot be loaded, its pipeline is written without it, with a warning.
    """
    from edm2.io.model import convert_published, read_metadata
    from edm2.pipeline import EDM2Pipeline

    _check_out(out, form)
    with _local_file(source, out.parent) as path:
        metadata = read_metadata(path)
        if form == "diffusers":
            EDM2Pipeline.from_snapshot(path).save_pretrained(out)
        else:
            convert_published(path, out)
    click.echo(f"{out}: made from {source}")
    if "license" in metadata:
        whose = "License of published EDM2 weights, and so of these" if "published" in metadata else "License"
        click.echo(plain_line(f"{whose}: {metadata['license']}."))  # untrusted


def _check_out(out: Path, form: str) -> None:
    """Refuse an OUT of the wrong kind, before anything is downloaded."""
    if form == "safetensors" and (out.suffix != ".safetensors" or out.is_dir()):
        raise click.UsageError(f"{out}: snapshots are files named *.safetensors")
    if form == "diffusers" and (out.is_file() or (out.is_dir() and visible_files(out, "*"))):
        raise FileExistsError(f"{out}: there already; remove it, or choose another name for the pipeline's folder")


@contextmanager
def _local_file(source: str, folder: Path) -> Iterator[Path]:
    """Path of the source; a URL is downloaded into `folder`, and the copy removed at the end."""
    from edm2.io.hub import downloaded, is_url
    from edm2.io.model import resolve

    if not is_url(source):
        yield resolve(source)
        return
    with downloaded(source, folder) as path:
        yield path
