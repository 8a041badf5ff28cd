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
    from edm2.post_hoc_ema.files import plain_line
    from edm2.tools.reports import description

    if path == "digits" or path.endswith(".zip"):
        describe = description.describe_dataset
    elif (Path(path) / "config.json").is_file():
        describe = description.describe_run
    elif any(Path(path).glob("*.pkl")):
        describe = description.describe_published_run
    elif Path(path).is_dir():
        describe = description.describe_dataset
    else:
        describe = description.describe_snapshot
    with description.nonsense_named(path):
        lines = describe(path)
    for subject, value in lines:
        click.echo(plain_line(f"{subject + ':':<14}{value}", longest=10_000))  # whatever a stranger has written into it
