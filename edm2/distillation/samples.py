"""Samples of the teacher as a dataset to distil on, for networks whose training data one does not have."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from edm2.distillation.teacher import Teacher
from edm2.sampling.drawing import batches_of, store_images, unfinished
from edm2.sampling.generation import drawn_by_default, generate, require_finite
from edm2.sampling.guidance import EVERYWHERE
from edm2.sampling.output import ImageFolder, NpyFiles, PngFiles
from edm2.training import LatentCodec, codec_from_json
from edm2.training.distributed.processes import ONE_PROCESS, Processes
from edm2.training.run.files import write_json

BATCH = 64
"""Samples that are drawn together."""


def draw_samples(
    teacher: Teacher,
    count: int,
    folder: Path,
    device: torch.device | str = "cpu",
    processes: Processes = ONE_PROCESS,
    report: Callable[[int], object] = lambda n: None,
) -> None:
    """Draw seeds 0, 1, ... of the teacher, each class in turn, into a folder that is a dataset; what is there remains.

    Pixels are stored in the teacher's own levels, latents as moments without spread, so its codec gives the samples
    back, and no VAE is needed.

    Args:
        teacher: The teacher.
        count: Number of samples.
        folder: The folder.
        device: Device to draw on.
        processes: Processes that share the work.
        report: Called with numbers of finished samples.

    Raises:
        OSError, ValueError: as `Teacher.networks`; a folder with other or more images; or a codec of the user's own.
    """
    metadata = teacher.metadata
    codec = codec_from_json(metadata.get("codec") or {"kind": "pixels"})
    net, guide = teacher.networks(device)
    classes = drawn_by_default(net)
    latents = isinstance(codec, LatentCodec)
    store = ImageFolder(folder, teacher.to_json(), True, NpyFiles() if latents else PngFiles())
    if store.file(count).is_file():
        raise ValueError(f"{folder}: holds more than {count:,} samples; give it as the data, or remove it")

    def stored(samples: Tensor) -> Tensor:
        if isinstance(codec, LatentCodec):
            z = codec.to_vae(samples)
            return torch.cat([z, torch.zeros_like(z)], dim=1).cpu()
        return codec.decode(samples).cpu()

    pending = unfinished(processes.shard(batches_of(range(count), BATCH)), store)
    batches = generate(
        net,
        pending,
        [classes[seed % len(classes)] for seed in pending] if classes else None,
        guide,
        teacher.guidance,
        teacher.interval or EVERYWHERE,
        BATCH,
    )
    store_images(require_finite(batches, teacher.name), stored, store, report)
    processes.wait()
    if processes.is_first:
        names = [store.file(seed).relative_to(folder).as_posix() for seed in range(count)]
        labels = [[name, classes[seed % len(classes)]] for seed, name in enumerate(names)] if classes else None
        known = (metadata.get("data") or {}).get("class_names") or list(map(str, range(net.config.label_dim)))
        write_json(folder / "dataset.json", {"labels": labels, **({"class_names": known} if classes else {})})
    processes.wait()
