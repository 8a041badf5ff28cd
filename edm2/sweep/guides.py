"""Guides of a sweep: the network itself without labels or with dropout, a fixed network, or the averages of a run.

`load` prepares the guides of some EMA lengths, `of` returns one of them.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from edm2.io.guided import is_guided
from edm2.io.model import digest_of, load_to_sample, read_metadata, resolve
from edm2.networks import Precond
from edm2.sampling.external import SampledNetwork, ready_to_sample
from edm2.sampling.generation import check_guide
from edm2.sampling.guidance import without_labels
from edm2.sampling.guided_network import with_dropout
from edm2.sampling.samplers.heun import Denoiser
from edm2.sweep.averages import Averages


class Guide(Protocol):
    """Source of networks to guide away from."""

    at_once: int
    """Number of EMA lengths that may be loaded together."""

    def load(self, sigma_rels: Sequence[float], device: torch.device | str, dtype: torch.dtype) -> None:
        """Prepare the guides of these EMA lengths, and drop those loaded before."""

    def of(self, net: SampledNetwork, sigma_rel: float) -> Denoiser:
        """Return the guide of a (folded) network with this EMA length of the guide."""

    def to_json(self) -> Any:
        """JSON that tells guides apart."""


class UnlabelledGuide:
    """The network itself without labels (classifier-free guidance)."""

    at_once = 1 << 20

    def load(self, sigma_rels: Sequence[float], device: torch.device | str, dtype: torch.dtype) -> None:
        """Do nothing: every network is its own guide."""

    def of(self, net: SampledNetwork, sigma_rel: float) -> Denoiser:
        return without_labels(net)

    def to_json(self) -> Any:
        return "unlabelled"


class DropoutGuide:
    """The network itself with dropout, its masks chosen by the noise level (in-situ autoguidance)."""

    at_once = 1 << 20

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def load(self, sigma_rels: Sequence[float], device: torch.device | str, dtype: torch.dtype) -> None:
        """Do nothing: every network is its own guide."""

    def of(self, net: SampledNetwork, sigma_rel: float) -> Denoiser:
        if not isinstance(net, Precond):
            raise ValueError("dropout guides networks that edm2 builds; a network of your own needs another guide")
        return with_dropout(net, self.rate)

    def to_json(self) -> Any:
        return ["dropout by level", self.rate]


class FixedGuide:
    """One network for all EMA lengths, loaded as by `load_to_sample`."""

    at_once = 1 << 20

    def __init__(self, name: str | Path, make_net: Callable[[], nn.Module] | None = None) -> None:
        self.name = str(name)
        self.make_net = make_net
        self._net: SampledNetwork | None = None

    def load(self, sigma_rels: Sequence[float], device: torch.device | str, dtype: torch.dtype) -> None:
        if self._net is None:
            self._net = load_to_sample(self.name, device, dtype, self.make_net)

    def of(self, net: SampledNetwork, sigma_rel: float) -> Denoiser:
        assert self._net is not None  # `load` comes first
        check_guide(net, self._net, guide_name=self.name)
        return self._net

    def to_json(self) -> Any:
        path = resolve(self.name)
        if is_guided(path):
            return digest_of(path)  # of the networks that it names, too
        digest = hashlib.sha256(repr(read_metadata(path)).encode())
        if path.is_file():
            contents = hashlib.sha256()  # a hash of its own: keys of known scores depend on it
            with path.open("rb") as file:
                while part := file.read(1 << 20):
                    contents.update(part)
            digest.update(contents.digest())
        return digest.hexdigest()[:16]


class GuideRun:
    """The averages of a run, which may be the guided one, at one time: autoguidance by a smaller or earlier network."""

    def __init__(self, averages: Averages, at: int) -> None:
        self.averages = averages
        self.at = at
        self.at_once = averages.at_once
        self._nets: dict[float, SampledNetwork] = {}

    def load(self, sigma_rels: Sequence[float], device: torch.device | str, dtype: torch.dtype) -> None:
        if set(sigma_rels) != set(self._nets):
            self._nets = {}  # freed first: old and new guides together may not fit
            nets = self.averages.networks(self.at, sigma_rels)
            # copied first, as the averages may be kept, then moved
            self._nets = {s: ready_to_sample(net, dtype).to(device) for s, net in zip(sigma_rels, nets, strict=True)}

    def of(self, net: SampledNetwork, sigma_rel: float) -> Denoiser:
        guide = self._nets[sigma_rel]
        check_guide(net, guide, guide_name=str(self.averages.folder))
        return guide

    def to_json(self) -> Any:
        return [self.averages.fingerprint(self.at), self.at, "tails"]
