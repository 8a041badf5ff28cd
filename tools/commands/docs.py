"""`edm2 docs`: the pages of the documentation, which come with the package."""

from pathlib import Path

import click

import edm2

EPILOG = """\b
Examples:
  edm2 docs
  edm2 docs settings
"""


@click.command(epilog=EPILOG)
@click.argument("page", required=False)
def docs(page: str | None) -> None:
    """Print a PAGE of the documentation; without one, list the pages and say where they and their pictures are."""
    folder = pages_folder()
    pages = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md"))}
    if page is None:
        width = max(map(len, pages))
        for name, text in pages.items():
            click.echo(f"{name:<{width}}  {text.partition(chr(10))[0].lstrip('# ')}")
        click.echo(f"\nedm2 docs PAGE prints one; files and pictures: {folder}")
        return
    name = Path(page).stem  # docs/settings.md is settings
    if name not in pages:
        raise click.UsageError(f"there is no page {page!r}; there are {', '.join(pages)}")
    click.echo_via_pager(pages[name])


def pages_folder() -> Path:
    """Folder of the pages: within the installed package, or beside it in a checkout."""
    return next(found for home in edm2.__path__ if (found := Path(home) / "docs").is_dir())
