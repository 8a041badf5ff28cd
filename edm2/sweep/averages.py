"""Networks averaged from a run's snapshots, with any EMA length at any stored time; nothing is written."""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edm2.io.model import filled, is_external, load_to_sample, network_from_state, read_metadata
from edm2.io.snapshots import AnySnapshot, open_run, read_weights, refuse_different_runs
from edm2.networks import NetworkConfig
from edm2.post_hoc_ema import reconstruct
from edm2.post_hoc_ema.reconstruction import Reconstruction
from edm2.sampling.external import DrawnImages, ExternalNetwork
from edm2.training import RunFolder

RAW = 0.0
"""The sigma_rel that stands for no averaging: the weights as the optimizer left them at the end of a run."""

MAX_BYTES = 16 << 30
"""Memory for networks that are reconstructed together."""


class Averages:
    """The averages of one run.

    Args:
        folder: A folder that `open_run` takes: a run folder, or a folder of snapshots, ours or published.
        max_bytes: Memory for networks of one pass over the snapshots.
        make_net: Makes a network of the user's own for snapshots that hold the tensors of one.

    Raises:
        OSError: there are no snapshots.
        SnapshotError: a file is damaged, two of them are of different runs, or `make_net` is needed.
    """

    def __init__(
        self, folder: str | Path, max_bytes: int = MAX_BYTES, make_net: Callable[[], nn.Module] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.snapshots = open_run(folder)
        refuse_different_runs(self.snapshots)
        self.max_bytes = max_bytes
        self._external: Any = None
        if is_external(self.metadata):
            self._external = load_to_sample(self.snapshots[-1].path, make_net=make_net)

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the last snapshot."""
        return self.snapshots[-1].metadata

    @property
    def config(self) -> NetworkConfig | DrawnImages:
        """Configuration of the network; of one of the user's own, the images that it draws."""
        return NetworkConfig.from_json(self.metadata["network"]) if self._external is None else self._external.config

    @property
    def classes(self) -> set[type]:
        """Classes of the layers of a network of the user's own; none for ours."""
        return set() if self._external is None else {type(layer) for layer in self._external.net.modules()}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what the network draws."""
        return (self.config.img_channels, *self.config.size)

    @property
    def last(self) -> int:
        """Last stored time, in images seen."""
        return self.snapshots[-1].images_seen

    @property
    def network_bytes(self) -> int:
        """Memory of one network in float32."""
        last = self.snapshots[-1]
        return sum(4 * last.layout(name).numel for name in last.names)

    @property
    def at_once(self) -> int:
        """Number of networks that fit into `max_bytes`; at least one."""
        return max(1, self.max_bytes // self.network_bytes)

    def check(self, at: int, sigma_rels: Sequence[float]) -> None:
        """Refuse averages that the snapshots cannot give, before anything is read.

        Raises:
            ValueError: no snapshots of that time, too few before it, or an impossible EMA length.
        """
        self._reconstruction(at, [s for s in sigma_rels if self.is_combined(at, s)])

    def _reconstruction(self, at: int, sigma_rels: Sequence[float]) -> Reconstruction | None:
        """Averages that are combined from others; None where there are none."""
        try:
            return Reconstruction(self.snapshots, sigma_rels, at) if sigma_rels else None
        except ValueError as error:
            raise ValueError(f"{self.folder}: {error}") from None

    def is_combined(self, at: int, sigma_rel: float) -> bool:
        """True if an average is combined from stored ones, since it is neither one of them nor the raw weights."""
        return sigma_rel != RAW and self._stored(at, sigma_rel) is None

    def errors(self, at: int, sigma_rels: Sequence[float]) -> dict[float, float]:
        """Relative errors of the reconstructed profiles by sigma_rel; 0 for those that are stored.

        Raises:
            ValueError: as `check`.
        """
        combined = [s for s in sigma_rels if self.is_combined(at, s)]
        errors = dict.fromkeys(sigma_rels, 0.0)
        if reconstruction := self._reconstruction(at, combined):
            forecast, _ = reconstruction.forecast()
            errors |= dict(zip(combined, map(float, forecast.profile_error), strict=True))
        return errors

    def has_raw_weights(self, at: int) -> bool:
        """Return True if the run is finished, and ended at this time."""
        path = RunFolder(self.folder).raw_weights
        return path.is_file() and read_metadata(path).get("images_seen") == at

    def networks(self, at: int, sigma_rels: Sequence[float]) -> list[Any]:
        """Average networks of several EMA lengths in one pass over the snapshots; float32, on the CPU.

        An average that is stored at this time is read from its snapshot, which reconstruction would return too.

        Returns:
            `Precond`s, or `ExternalNetwork`s.

        Raises:
            ValueError: as `check`.
        """
        self.check(at, sigma_rels)
        rest = [s for s in sigma_rels if self.is_combined(at, s)]
        states = dict(zip(rest, reconstruct(self.snapshots, rest, at) if rest else [], strict=True))
        return [self._network(states.get(s) or self._read(at, s)) for s in sigma_rels]

    def _network(self, state: dict[str, Tensor]) -> Any:
        if self._external is None:
            return network_from_state(self.metadata, state)
        return ExternalNetwork(filled(copy.deepcopy(self._external.net), state), self._external.config)

    def fingerprint(self, at: int) -> str:
        """Hash that tells runs apart: of the metadata and a tensor of the last snapshot used, and of all times used."""
        used = [[s.images_seen, s.sigma_rel] for s in self.snapshots if 0 < s.images_seen <= at]
        newest = next(s for s in self.snapshots if s.images_seen == at)
        digest = hashlib.sha256(json.dumps([used, newest.metadata], sort_keys=True, default=str).encode())
        digest.update(_first_weights(newest).numpy().tobytes())
        return digest.hexdigest()[:16]

    def _stored(self, at: int, sigma_rel: float) -> AnySnapshot | None:
        then = (s for s in self.snapshots if s.images_seen == at)
        return next((s for s in then if s.sigma_rel is not None and abs(s.sigma_rel - sigma_rel) < 1e-9), None)

    def _read(self, at: int, sigma_rel: float) -> dict[str, Tensor]:
        if sigma_rel == RAW:
            return dict(read_weights(RunFolder(self.folder).raw_weights)[1])
        snapshot = self._stored(at, sigma_rel)
        assert snapshot is not None  # else `networks` reconstructs it
        tensors = ((name, snapshot.read(name)) for name in snapshot.names)
        return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors}


class KeptAverages(Averages):
    """The averages of one run that keeps networks, as many as memory allows: a search asks for the same ones often."""

    _kept: dict[tuple[int, float], Any] | None = None

    def networks(self, at: int, sigma_rels: Sequence[float]) -> list[Any]:
        kept = {} if self._kept is None else self._kept
        missing = [s for s in sigma_rels if (at, s) not in kept]
        kept |= {(at, s): net for s, net in zip(missing, super().networks(at, missing), strict=True)}
        found = [kept[at, s] for s in sigma_rels]
        self._kept = dict(list(kept.items())[-self.at_once :])
        return found


def _first_weights(snapshot: AnySnapshot) -> Tensor:
    """Read the first tensor with more than one number that training has changed, float32."""
    tensors = (snapshot.read(name) for name in snapshot.names if name not in snapshot.buffers)
    return next(tensor.to(torch.float32) for tensor in tensors if tensor.numel() > 1)
