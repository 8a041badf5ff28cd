"""`edm2 info`: describe a file or folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edm2.post_hoc_ema.files import visible_files

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
    """Describe PATH.

    It is a snapshot, a guided.json, a run folder, a dataset, a published network pickle, a folder of such pickles, a
    pipeline of diffusers, or the name of an included network.
    """
    from edm2.pipeline.folder import is_pipeline_folder
    from edm2.tools.reports import description

    describe: Callable[[str], list[tuple[str, Any]]]
    if path == "digits" or path.endswith(".zip"):
        describe = description.describe_dataset
    elif (Path(path) / "config.json").is_file():
        describe = description.describe_run
    elif visible_files(path, "*.pkl"):
        describe = description.describe_published_run
    elif Path(path).is_dir() and not is_pipeline_folder(path):
        describe = description.describe_dataset
    else:
        describe = description.describe_snapshot
    with description.senseless_metadata_named(path):
        lines = describe(path)
    description.print_lines(lines, width=14)
