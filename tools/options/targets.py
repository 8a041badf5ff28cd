"""Where `edm2 generate` puts its images: a folder, one NPZ file, one grid."""

import glob
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from edm2.io.images import save_grid
from edm2.io.npz import write_npz
from edm2.sampling.output import ImageFolder, ImagesInMemory, ImageStore, NpyFiles, PngFiles
from edm2.tools.run import progress_bar


@dataclass(frozen=True)
class Targets:
    """What is asked for; at least one of `out`, `npz` and `grid`."""

    out: Path | None
    """Folder with one file per seed."""
    npz: Path | None
    """One NPZ file."""
    grid: Path | None
    """One PNG file."""
    subdirs: bool = False
    """In `out`, one sub-folder per thousand seeds."""
    latents: bool = False
    """Not pictures, but what the network draws."""

    def __post_init__(self) -> None:
        if self.npz is not None and self.npz.exists():
            raise FileExistsError(f"{self.npz}: is there already; remove it, or choose another --npz")

    def store(self, settings: dict[str, Any], processes: int) -> ImageStore:
        """Where the images are kept while they are drawn.

        Without `out`, many images or several processes need a folder too: a hidden one beside the result, named by the
        settings, that `finish` removes.
        """
        if self.out is not None:
            return ImageFolder(self.out, settings, self.subdirs, NpyFiles() if self.latents else PngFiles())
        if self.npz is None and processes == 1:
            return ImagesInMemory()
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
        return ImageFolder(self._hidden(digest), settings, subdirs=True, files=NpyFiles())

    def finish(self, store: ImageStore, seeds: Sequence[int], classes: Tensor | None) -> None:
        """Write the NPZ file and the grid, from a store that has all images."""
        if self.npz is not None:
            labels = None if classes is None else classes.numpy()
            write_npz(self.npz, self._rows(store, seeds), len(seeds), labels)
        if self.grid is not None:
            save_grid(store.read(seeds), self.grid, columns=10 if len(seeds) % 10 == 0 else None)
        if self.out is None:
            for leftover in glob.glob(glob.escape(str(self._hidden("STAR"))).replace("STAR", "*")):
                shutil.rmtree(leftover)

    def __str__(self) -> str:
        return " and ".join(str(path) for path in (self.out, self.npz, self.grid) if path is not None)

    def _hidden(self, name: str) -> Path:
        result = self.npz or self.grid
        return result.with_name(f".{result.name}.{name}.parts")

    def _rows(self, store: ImageStore, seeds: Sequence[int]) -> Iterator[np.ndarray]:
        """Images as an NPZ file has them: pixels [H, W, C], latents [C, H, W]."""
        for seed in progress_bar("writing")(seeds):
            image = store.read([seed])[0].numpy()
            yield image if self.latents else image.transpose(1, 2, 0)
