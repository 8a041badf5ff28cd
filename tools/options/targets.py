"""Destinations of the images of `edm2 generate`: a folder, one NPZ file, one grid."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from edm2.io.images import save_grid
from edm2.io.npz import write_npz
from edm2.sampling.output import ImageFolder, ImagesInMemory, ImageStore, NpyFiles, PngFiles


@dataclass(frozen=True)
class Targets:
    """Requested results; at least one of `out`, `npz` and `grid`."""

    out: Path | None
    """Folder with one file per seed."""
    npz: Path | None
    grid: Path | None
    subdirs: bool = False
    """One sub-folder of `out` per thousand seeds."""
    latents: bool = False
    """Keep samples as the network draws them, not decoded to pixels."""

    def __post_init__(self) -> None:
        if self.npz is not None and self.npz.exists():
            raise FileExistsError(f"{self.npz}: is there already; remove it, or choose another --npz")

    def store(self, settings: dict[str, Any], processes: int) -> ImageStore:
        """Storage for the images while they are drawn.

        Without `out`, an NPZ file or several processes need a folder too: a hidden one beside the result, named after
        a digest of the settings, that `finish` removes.
        """
        if self.out is not None:
            return ImageFolder(self.out, settings, self.subdirs, NpyFiles() if self.latents else PngFiles())
        if self.npz is None and processes == 1:
            return ImagesInMemory()
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
        folder = self._result.with_name(f".{self._result.name}.{digest}.parts")
        return ImageFolder(folder, settings, subdirs=True, files=NpyFiles())

    def finish(
        self, store: ImageStore, seeds: Sequence[int], classes: Tensor | None, columns: int | None = None
    ) -> None:
        """Write the NPZ file and the grid, of so many columns, from a store that has all images."""
        if self.npz is not None:
            labels = None if classes is None else classes.numpy()
            write_npz(self.npz, self._rows(store, seeds), len(seeds), labels)
        if self.grid is not None:
            columns = columns or (10 if len(seeds) % 10 == 0 else None)
            save_grid(store.read(seeds), self.grid, columns)
        if self.out is None:
            for folder in self._hidden_folders():
                shutil.rmtree(folder)

    def __str__(self) -> str:
        return " and ".join(str(path) for path in (self.out, self.npz, self.grid) if path is not None)

    @property
    def _result(self) -> Path:
        """File after which hidden folders are named."""
        result = self.npz or self.grid
        assert result is not None  # one of them where there is no --out
        return result

    def _hidden_folders(self) -> list[Path]:
        """Hidden folders of this result, whatever settings they were drawn with."""
        name = re.compile(re.escape(f".{self._result.name}.") + r"[0-9a-f]{12}\.parts")
        return [path for path in self._result.parent.iterdir() if name.fullmatch(path.name)]

    def _rows(self, store: ImageStore, seeds: Sequence[int]) -> Iterator[np.ndarray]:
        """Images in the layout of an NPZ file: pixels [H, W, C], latents [C, H, W]."""
        for seed in tqdm(seeds, desc="writing", leave=False, disable=None):
            image = store.read([seed])[0].numpy()
            yield image if self.latents else image.transpose(1, 2, 0)
