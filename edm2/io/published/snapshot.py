"""A network pickle as a snapshot."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from edm2.io.published.inert_pickle import PickleFile, PickleRefused
from edm2.io.published.metadata import clock, describe
from edm2.io.published.objects import collect_tensors, read_contents
from edm2.post_hoc_ema import PartialSnapshot, SnapshotError, TensorLayout


class PublishedSnapshot(PartialSnapshot):
    """A network pickle as a snapshot: it loads, and `reconstruct` combines several."""

    path: Path
    metadata: dict[str, Any]
    """Entries of our own snapshots: network, codec, buffers, data; preset for a network of the paper; images_seen and
    sigma_rel if the file's name has them; reconstructed_from for weights that the published program reconstructed.
    Besides, license, and under `published` the file's other settings."""

    def __init__(self, path: str | Path) -> None:
        """Read everything but the weights.

        Raises:
            SnapshotError: not a network pickle, damaged, or holding anything that such a pickle does not hold.
            OSError: the file cannot be read.
        """
        self.path = Path(path)
        with _refusals_named(self.path), self.path.open("rb") as file:
            pickles = PickleFile(file)
            contents = read_contents(pickles)
            self._tensors, self.buffers = collect_tensors(contents["ema"], pickles)
            self.metadata = describe(contents, pickles) | clock(self.path.name) | {"buffers": self.buffers}
        self.names = tuple(self._tensors)

    @property
    def images_seen(self) -> int:  # type: ignore[override]  # nobody sets it
        """Images seen, from the file's name. Raises SnapshotError if that has none."""
        return self._from_name("images_seen")

    @property
    def sigma_rel(self) -> float:  # type: ignore[override]  # nobody sets it
        """EMA length, from the file's name. Raises SnapshotError if that has none."""
        return self._from_name("sigma_rel")

    def _from_name(self, key: str) -> Any:
        if key not in self.metadata:
            raise SnapshotError(
                f"{self.path}: the name does not tell images seen and EMA length; "
                "give the file the name it was published under, such as network-snapshot-0008388-0.100.pkl"
            )
        return self.metadata[key]

    def read(self, name: str) -> Tensor:
        """Read one tensor, in the dtype in which it is stored; the file is open only meanwhile."""
        with _refusals_named(self.path):
            return self._tensors[name].read(self.path)

    def layout(self, name: str) -> TensorLayout:
        return self._tensors[name].layout

    def read_part(self, name: str, start: int, stop: int) -> Tensor:
        """Read numbers `start` to `stop` of a tensor, in the dtype in which it is stored."""
        with _refusals_named(self.path):
            return self._tensors[name].read_part(self.path, start, stop)


@contextmanager
def _refusals_named(path: Path) -> Iterator[None]:
    """Turn a refusal into a SnapshotError that names the file."""
    try:
        yield
    except EOFError:
        raise SnapshotError(f"{path}: ends too early: it was truncated while it was read") from None
    except PickleRefused as error:
        raise SnapshotError(f"{path}: refused, because it {error}") from None
