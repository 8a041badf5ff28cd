"""Many images into a store: decoded on the way, by several processes, in several runs if interrupted."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from edm2.sampling.generation import SampleBatch
from edm2.sampling.output import ImageStore
from edm2.training import Codec

Decoder = Callable[[Tensor], Tensor]
"""decode(samples [N, C, H, W]) -> images to store, on the CPU."""

WRITERS = 8
"""Threads that write images while the next ones are drawn: compressing a large PNG takes 0.2 seconds."""


def decoder(codec: Codec, batch_size: int = 8, dtype: torch.dtype = torch.float32) -> Decoder:
    """Make a decoder of samples to pixels of image files, uint8.

    Args:
        codec: Codec of the network.
        batch_size: Images that a VAE decodes at a time.
        dtype: Precision of the VAE; half precision costs a level here and there.
    """

    def decode(samples: Tensor) -> Tensor:
        with torch.autocast(samples.device.type, dtype, enabled=dtype != torch.float32):
            return codec.to_display(codec.decode(samples, batch_size)).cpu()

    return decode


def undecoded(samples: Tensor) -> Tensor:
    """Leave samples undecoded, float32; a `Decoder`."""
    return samples.float().cpu()


def batches_of(seeds: Sequence[int], batch_size: int) -> list[list[int]]:
    """Split seeds, each once, into batches that depend on nothing else.

    The rounding of convolutions depends on the other images in a batch. So processes take whole batches, and one that
    is stored in part is drawn as a whole again: however the work was divided, the images are the same to the bit.
    """
    distinct = list(dict.fromkeys(seeds))
    return [distinct[start : start + batch_size] for start in range(0, len(distinct), batch_size)]


def unfinished(batches: Sequence[Sequence[int]], store: ImageStore) -> list[int]:
    """Seeds of the batches that are not completely in the store."""
    return [seed for batch in batches if store.missing(batch) for seed in batch]


def store_images(
    batches: Iterable[SampleBatch], decode: Decoder, store: ImageStore, report: Callable[[int], object] = lambda n: None
) -> None:
    """Decode batch by batch into the store; images that it already has stay as they are.

    Args:
        batches: Samples of `generate`.
        decode: Such as `decoder` makes.
        store: Destination.
        report: Called with the number of images of each batch.
    """
    with ThreadPoolExecutor(WRITERS) as pool:
        writing: list[Future] = []
        for batch in batches:
            images = decode(batch.samples)
            _wait_for(writing)  # at most one batch is being written while the next one is drawn
            store.claim()
            missing = set(store.missing(batch.seeds))
            pairs = zip(batch.seeds, images, strict=True)
            writing = [pool.submit(store.save, seed, image) for seed, image in pairs if seed in missing]
            report(len(images))
        _wait_for(writing)


def _wait_for(writing: Sequence[Future]) -> None:
    """Wait until all images are written; raises the error of the first that failed."""
    for future in writing:
        future.result()
