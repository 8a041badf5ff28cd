"""`edm2 info`: what a file or folder is."""

from pathlib import Path

import click

EPILOG = """\b
Examples:
  edm2 info digits8
  edm2 info runs/mine
  edm2 info my-images.zip
  edm2 info edm2-img512-xs-2147483-0.135.pkl
"""


@click.command(epilog=EPILOG)
@click.argument("path")
def info(path: str) -> None:
    """Say what PATH is: a snapshot, a run folder or a dataset; or a published network pickle, or a folder of them."""
    from edm2.tools.description import describe_dataset, describe_published_run, describe_run, describe_snapshot

    if path == "digits" or path.endswith(".zip"):
        lines = describe_dataset(path)
    elif (Path(path) / "config.json").is_file():
        lines = describe_run(Path(path))
    elif any(Path(path).glob("*.pkl")):
        lines = describe_published_run(Path(path))
    elif Path(path).is_dir():
        lines = describe_dataset(path)
    else:
        lines = describe_snapshot(path)
    for subject, value in lines:
        click.echo(f"{subject + ':':<14}{value}")
