"""Training on although some files are broken: another image stands in the place of each, and every one is told of.

Which one stands in, the index alone decides: the next usable one, after the last the first. So it is the same in every
worker and process, before and after a resume, and no random number moves. A file that the storage does not hand out for
a while is not a broken one; that ends the run, as another attempt might succeed and give another image.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from edm2.training.data.dataset import Dataset, Indices, LabelledImages
from edm2.training.data.files import DatasetError, StorageError


class TolerantDataset(Dataset):
    """A dataset with other images in the place of broken ones.

    `batch` gives every image the label of the file it came from; `labels` knows nothing of broken files.

    Args:
        dataset: Images, some of which may be broken.
        limit: How many there may be.
    """

    def __init__(self, dataset: Dataset, limit: int) -> None:
        super().__init__(dataset.name, dataset.shape, dataset.kind, dataset.levels, dataset.class_names)
        self.latents = dataset.latents
        self.pixel_stats = dataset.pixel_stats
        self.dataset = dataset
        self.limit = limit

    def __len__(self) -> int:
        return len(self.dataset)

    def images(self, indices: Indices) -> Tensor:
        return self.batch(indices).images

    def labels(self, indices: Indices) -> Tensor:
        return self.dataset.labels(indices)

    def fingerprint(self) -> str | None:
        return self.dataset.fingerprint()

    def batch(self, indices: Indices) -> LabelledImages:
        """Images, labels, and what is wrong with those that others stand in for.

        Raises:
            StorageError: The storage gives no answer.
            DatasetError: More than `limit` broken ones follow each other.
        """
        try:
            return self.dataset.batch(indices)
        except StorageError:
            raise
        except DatasetError:  # one of them is broken, perhaps several
            images, labels, broken = zip(*(self._usable(int(index)) for index in indices), strict=True)
            return LabelledImages(torch.cat(images), torch.cat(labels), sum(broken, ()))

    def _usable(self, index: int) -> LabelledImages:
        """The image of an index, or the next that is not broken."""
        broken: list[str] = []
        while True:
            try:
                images, labels, _ = self.dataset.batch([(index + len(broken)) % len(self)])
                return LabelledImages(images, labels, tuple(broken))
            except StorageError:
                raise
            except DatasetError as error:
                broken.append(str(error))
                if len(broken) > self.limit:
                    raise


class BrokenFiles:
    """What is wrong with the files of a run's data, one line each, and how many there may be.

    Args:
        limit: At most so many.
        path: Where to keep the lines, for the run when it is resumed and for all its processes; None: here only.
        tell: Hears of each once.
    """

    def __init__(self, limit: int = 0, path: Path | None = None, tell: Callable[[str], None] = tqdm.write) -> None:
        self.limit = limit
        self.path = path
        self.tell = tell
        self._known: dict[str, None] = {}
        self._read()

    def __len__(self) -> int:
        """How many are known."""
        return len(self._known)

    def add(self, lines: Iterable[str]) -> None:
        """Take note of broken files, known or not.

        Raises:
            DatasetError: They are more than `limit`.
        """
        for line in lines:
            if line not in self._known:
                self._read()  # another process may have met it meanwhile
            if line not in self._known:
                self._add_new(line)

    def _add_new(self, line: str) -> None:
        self._known[line] = None
        self._write(line)
        if len(self) > self.limit:
            listed = "" if self.path is None else f", all listed in {self.path}"
            raise DatasetError(
                f"{line}; {len(self)} files are broken{listed}, and --skip-broken allows {self.limit}: "
                "mend or remove them, or allow more"
            )
        self.tell(f"{line}; another image takes its place ({len(self)} of {self.limit} that --skip-broken allows)")

    def _read(self) -> None:
        if self.path is not None and self.path.exists():
            self._known |= dict.fromkeys(self.path.read_text(encoding="utf-8", errors="replace").splitlines())

    def _write(self, line: str) -> None:
        """At the end of the file, in one piece: other processes may write there too."""
        if self.path is None:
            return
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, f"{line}\n".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
