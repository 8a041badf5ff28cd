"""A look at a dataset as the network will see it, and near-duplicates among its images."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from edm2.datasets.parts import in_threads
from edm2.io.images import image_grid
from edm2.post_hoc_ema import atomic_output
from edm2.training import Dataset, PixelCodec
from edm2.training.data.codecs import Codec, ValueCodec
from edm2.training.data.dataset import evenly_spaced_indices, value_statistics
from edm2.training.data.vae import latent_codec_of

SIDE = 64
"""Pixels of an image in the picture, about: smaller ones are enlarged by whole factors."""

ROWS, COLUMNS = 10, 10
"""Classes that are shown, and images of each; without classes, a square of images."""

THUMBNAIL = 8
"""Side of the thumbnails that near-duplicates are told by."""

ALIKE = 0.12
"""Root-mean-square difference of the thumbnails of near-duplicates, in standard deviations of their pixels."""

NEIGHBOURS = 16
"""Images of similar brightness that each one is compared with, among those with a part of its hash."""

CHUNK = 16
"""Images that a thread reads at a time."""


def display_codec(dataset: Dataset) -> Codec:
    """Codec that turns what a dataset stores into what the network sees, and back into pixels."""
    if dataset.kind == "moments":
        return latent_codec_of(dataset.latents, dataset.shape[0], 0.5)
    if dataset.kind == "values":
        return ValueCodec.standardized(*value_statistics(dataset), 0.5)
    half = (dataset.levels - 1) / 2
    return PixelCodec((half,), (half,), dataset.levels)


def save_look(dataset: Dataset, path: str | Path) -> int:
    """Write `look` to a PNG file.

    Returns:
        Number of images in it.
    """
    picture, count = look(dataset)
    with atomic_output(path) as temporary:
        picture.save(temporary, format="PNG")
    return count


def look(dataset: Dataset) -> tuple[Image.Image, int]:
    """Draw some images, evenly spaced: a row for each of the first classes, with its name; and count them."""
    rows = _rows(dataset)
    codec = display_codec(dataset)
    strips = []
    for name, indices in rows:
        pixels = _rgb(codec.to_display(codec.decode(codec.encode(dataset.images(indices)))))
        scale = max(1, SIDE // max(pixels.shape[-2:]))
        strips.append((name, Image.fromarray(image_grid(pixels, COLUMNS, scale, gap=2).permute(1, 2, 0).numpy())))
    return _under_each_other(strips), sum(len(indices) for _, indices in rows)


def _rows(dataset: Dataset) -> list[tuple[str, np.ndarray]]:
    """Names and indices of the images of each row."""
    labels = dataset.labels(range(len(dataset))).numpy()
    classes = [c for c in range(dataset.num_classes) if (labels == c).any()]
    if not classes:
        return [("", evenly_spaced_indices(len(dataset), ROWS * COLUMNS))]
    members = (np.flatnonzero(labels == c) for c in classes[:ROWS])
    chosen = [m[evenly_spaced_indices(len(m), COLUMNS)] for m in members]
    return [(dataset.class_names[c], indices) for c, indices in zip(classes, chosen, strict=False)]


def _rgb(pixels: Tensor) -> Tensor:
    """[N, C, H, W] of any channels -> RGB: gray is repeated, all after the third left out."""
    return pixels[:, :1].expand(-1, 3, -1, -1) if pixels.shape[1] < 3 else pixels[:, :3]


def _under_each_other(strips: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Strips with their names on the left."""
    font, gap = ImageFont.load_default(size=14), 4
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name, _ in strips]
    left = max(round(font.getlength(name)) for name in names) + (2 * gap if any(names) else 0)
    width = left + max(strip.width for _, strip in strips)
    picture = Image.new("RGB", (width, sum(strip.height + gap for _, strip in strips)), "white")
    draw, top = ImageDraw.Draw(picture), 0
    for name, (_, strip) in zip(names, strips, strict=True):
        draw.text((gap, top + strip.height // 2), name, "black", font, anchor="lm")
        picture.paste(strip, (left, top))
        top += strip.height + gap
    return picture


# ----------------------------------------------------------------------------------------------------------------------
# Near-duplicates


def near_duplicates(
    dataset: Dataset,
    indices: np.ndarray,
    workers: int = 1,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[tuple[int, int]]:
    """Find images that look like an earlier one, such as copies of other sizes or qualities.

    Candidates share a quarter of a difference hash (is each of 8x8 areas brighter than its neighbour?) and are of
    similar brightness; they are near-duplicates if their thumbnails are alike.

    Returns:
        Pairs of indices of an image and an earlier one that it is like; each image at most once.
    """
    if len(indices) == 0:
        return []
    chunks = [indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK)]
    codec, read = display_codec(dataset), 0
    parts = []
    for part in in_threads(partial(_thumbnails, dataset, codec), chunks, workers):
        parts.append(part)
        read += len(part)
        report(read, len(indices))
    thumbnails = np.concatenate(parts)  # [N, 3, 8, 9]
    earlier = np.full(len(indices), len(indices))
    for first, second in _candidates(thumbnails):
        alike = _are_alike(thumbnails[first], thumbnails[second])
        np.minimum.at(earlier, second[alike], first[alike])
    return [(int(indices[k]), int(indices[twin])) for k, twin in enumerate(earlier) if twin < len(indices)]


def _thumbnails(dataset: Dataset, codec: Codec, indices: np.ndarray) -> np.ndarray:
    """Averages over areas: float32 [N, 3, 8, 9], one column more than rows so that neighbours can be compared."""
    data = dataset.images(indices)
    # Of latents and values mean ± 2 standard deviations, of the dataset: an image has one thumbnail wherever it stands.
    pixels = codec.to_display(data) if dataset.kind == "pixels" else (codec.encode(data) + 1) * 127.5
    return adaptive_avg_pool2d(_rgb(pixels).float(), (THUMBNAIL, THUMBNAIL + 1)).numpy()


def _candidates(thumbnails: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of indices (earlier, later) to compare."""
    gray = thumbnails.mean(axis=1)  # [N, 8, 9]
    bits = (gray[:, :, 1:] > gray[:, :, :-1]).reshape(len(gray), 4, 16)  # four parts of the hash
    values = bits @ (1 << np.arange(16))
    brightness = gray.mean(axis=(1, 2))
    pairs = []
    for part in values.T:
        order = np.lexsort((brightness, part))
        for distance in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
            one, other = order[:-distance], order[distance:]
            same = part[one] == part[other]
            pairs.append((np.minimum(one, other)[same], np.maximum(one, other)[same]))
    return pairs


def _are_alike(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """True for each pair of thumbnails [N, 3, 8, 9] that show the same; single colors may differ by a level."""
    axes = (1, 2, 3)
    difference = np.sqrt(np.square(one - other).mean(axis=axes))
    return difference <= np.maximum(1, ALIKE * np.minimum(one.std(axis=axes), other.std(axis=axes)))
