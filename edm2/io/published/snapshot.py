"""A network pickle as a snapshot."""

from pathlib import Path
from typing import Any

from torch import Tensor

from edm2.io.published.inert_pickle import PickleRefused
from edm2.io.published.metadata import clock, describe
from edm2.io.published.objects import collect_tensors, read_contents
from edm2.post_hoc_ema import PartialSnapshot, SnapshotError, TensorLayout


class PublishedSnapshot(PartialSnapshot):
    """A network pickle as a snapshot: it loads, and `reconstruct` combines several."""

    path: Path
    metadata: dict[str, Any]
    """As our own snapshots have it: network, codec, buffers, data; where the network is one of the paper's, preset;
    where the file's name tells them, images_seen and sigma_rel; `reconstructed_from` for weights that the published
    program reconstructed. Besides, license, and under `published` what else the file says."""

    def __init__(self, path: str | Path) -> None:
        """Read everything but the weights.

        Raises:
            SnapshotError: not a network pickle, damaged, or holding anything that such a pickle does not hold.
            OSError: the file cannot be read.
        """
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                contents = read_contents(file)
                self._tensors, self.buffers = collect_tensors(contents["ema"], self.path.stat().st_size)
                self.metadata = describe(contents, file) | clock(self.path.name) | {"buffers": self.buffers}
        except PickleRefused as error:
            raise _refusal(self.path, error) from None
        self.names = tuple(self._tensors)

    @property
    def images_seen(self) -> int:
        """Images seen, from the file's name. Raises SnapshotError if it does not tell."""
        return self._told_by_name("images_seen")

    @property
    def sigma_rel(self) -> float:
        """EMA length, from the file's name. Raises SnapshotError if it does not tell."""
        return self._told_by_name("sigma_rel")

    def _told_by_name(self, key: str) -> Any:
        if key not in self.metadata:
            raise SnapshotError(
                f"{self.path}: the name does not tell the time and the EMA length; "
                "give the file the name it was published under, such as network-snapshot-0008388-0.100.pkl"
            )
        return self.metadata[key]

    def read(self, name: str) -> Tensor:
        """One tensor, in the type in which it is stored; the file is open only meanwhile."""
        try:
            with self.path.open("rb") as file:
                return self._tensors[name].read(file)
        except PickleRefused as error:
            raise _refusal(self.path, error) from None

    def layout(self, name: str) -> TensorLayout:
        """Type and shape of a tensor."""
        tensor = self._tensors[name]
        return TensorLayout(tensor.dtype, tensor.shape)

    def read_part(self, name: str, start: int, stop: int) -> Tensor:
        """Numbers `start` to `stop` of a tensor, in the type in which it is stored."""
        try:
            with self.path.open("rb") as file:
                return self._tensors[name].read_part(file, start, stop)
        except PickleRefused as error:
            raise _refusal(self.path, error) from None


def _refusal(path: Path, error: PickleRefused) -> SnapshotError:
    return SnapshotError(f"{path}: refused, because it {error}")
