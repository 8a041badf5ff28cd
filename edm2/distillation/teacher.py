"""The teacher of a distillation: a network, or one that is guided away from another."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edm2.io.guided import main_network
from edm2.io.model import digest_of, load_to_sample, read_metadata, resolve
from edm2.sampling.external import SampledNetwork
from edm2.sampling.generation import check_guide
from edm2.sampling.guidance import EVERYWHERE, guided, without_labels
from edm2.sampling.guided_network import GuidedNetwork
from edm2.sampling.samplers.heun import Denoiser
from edm2.training import DatasetError, TrainingConfig


@dataclass(frozen=True)
class Teacher:
    """Names of the networks that teach, and how the first is guided."""

    name: str
    """The network."""
    guide: str | None = None
    """Network to guide away from."""
    unlabelled_guide: bool = False
    """Guide away from the network itself without labels."""
    guidance: float = 1.0
    """Guidance weight; 1 is none."""
    interval: tuple[float, float] | None = None
    """Noise levels (low, high] with guidance; None: all."""

    @classmethod
    def of_run(cls, config: TrainingConfig) -> "Teacher":
        """Teacher that the configuration of a run describes. Raises ValueError if the run distils none."""
        distillation = config.distillation
        if distillation is None or config.teacher is None:
            raise ValueError(f"{config.out}: distils nothing")
        unlabelled = distillation.guidance != 1 and config.guide is None
        return cls(config.teacher, config.guide, unlabelled, distillation.guidance, distillation.interval)

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the network."""
        return read_metadata(self.name)

    def contents(self) -> str:
        """Digest of all files, whatever their paths are.

        Raises:
            OSError: one is missing.
        """
        names = [name for name in (self.name, self.guide) if name is not None]
        digests = [digest_of(resolve(name)) for name in names]
        return hashlib.sha256(repr([*digests, self.unlabelled_guide]).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """JSON of everything that decides what it teaches."""
        guided = {"guidance": self.guidance, "interval": self.interval and list(self.interval)}
        return {"teacher": self.contents(), **({} if self.guidance == 1 else guided)}

    def load(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Denoiser:
        """Load the denoiser, guided if it is, for inference.

        Raises:
            OSError, ValueError: as `networks`.
        """
        main, guide = self.networks(device, dtype)
        return main if guide is None else guided(main, guide, self.guidance, self.interval or EVERYWHERE)

    def networks(
        self, device: torch.device | str, dtype: torch.dtype = torch.float32
    ) -> tuple[SampledNetwork, Denoiser | None]:
        """Load the network, folded, and its guide; a guided.json is one network.

        Raises:
            OSError, ValueError: a file is missing or no network, or the guide is for other images.
        """
        main = load_to_sample(self.name, device, dtype)
        if "denoise" not in getattr(main, "abilities", ("denoise",)):
            raise ValueError(f"{self.name}: is no denoiser, so it cannot teach")
        if self.guidance == 1:
            return main, None
        if isinstance(main, GuidedNetwork):
            raise ValueError(f"{self.name}: is guided already; leave out the guide")
        if self.guide is None:
            return main, without_labels(main)
        guide = load_to_sample(self.guide, device, dtype)
        check_guide(main, guide, self.name, self.guide)
        return main, guide

    def snapshot(self) -> Path:
        """Snapshot of the network, without its guide."""
        return main_network(resolve(self.name))


def teacher_of_run(config: TrainingConfig, device: torch.device | str, dtype: torch.dtype) -> Denoiser:
    """Load the teacher of a run.

    Raises:
        OSError: a file is missing.
        ValueError: it is another one than the run began with.
    """
    teacher = Teacher.of_run(config)
    assert config.distillation is not None  # `of_run` says so
    if teacher.contents() != config.distillation.contents:
        raise ValueError(f"{config.out}: was begun with another teacher than {teacher.name}; give that one")
    return teacher.load(device, dtype)


def check_data(teacher: Teacher, shape: Sequence[int], class_names: Sequence[str], data: str) -> None:
    """Refuse a teacher of other images than those to distil it on.

    Args:
        teacher: The teacher.
        shape: (C, H, W) of what its codec makes of the images.
        class_names: Names of their classes.
        data: Name of the images in messages.

    Raises:
        DatasetError: another shape, or other classes.
    """
    metadata = teacher.metadata
    network = metadata.get("network") or {}
    size = network.get("img_resolution")
    drawn = (network.get("img_channels"), *((size, size) if isinstance(size, int) else tuple(size or ())))
    if tuple(shape) != drawn:
        raise DatasetError(
            f"{data}: images are {tuple(shape)} (channels, height, width), but {teacher.name} draws {drawn}"
        )
    classes = network.get("label_dim", 0)
    if classes and classes != len(class_names):
        raise DatasetError(f"{data}: has {len(class_names)} classes, but {teacher.name} knows {classes}")
    names = (metadata.get("data") or {}).get("class_names")
    if classes and names and list(names) != list(class_names):
        raise DatasetError(f"{data}: its classes have other names than those of {teacher.name}")
