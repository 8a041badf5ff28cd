"""Descriptions of a snapshot, a run folder or a dataset, and the table of a dataset's statistics."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from edm2.datasets.conditions import describe_conditions
from edm2.datasets.measuring import Statistics
from edm2.datasets.survey import survey
from edm2.io.guided import is_guided, read_guided
from edm2.io.model import read_metadata, resolve
from edm2.io.snapshots import AnySnapshot, open_run, open_snapshot
from edm2.pipeline.folder import is_pipeline_folder
from edm2.post_hoc_ema import sigma_rel_to_half_life
from edm2.post_hoc_ema.files import plain_line
from edm2.report.records import read_records
from edm2.report.summary import warnings_about
from edm2.sampling.external import ways_to_sample
from edm2.sampling.guidance import EVERYWHERE
from edm2.training import Dataset, DatasetError, open_dataset
from edm2.training.data.archive.files import DESCRIPTION
from edm2.training.data.archive.index import open_archive
from edm2.training.data.vae import latent_codec_of
from edm2.training.imports import is_target
from edm2.training.run.logging import numbers_of

Lines = list[tuple[str, Any]]
"""Pairs of a subject and a phrase."""


def print_lines(lines: Lines, width: int = 15) -> None:
    """Print each subject and phrase on one line, whatever characters an untrusted file put into them."""
    for subject, phrase in lines:
        click.echo(plain_line(f"{subject + ':':<{width}}{phrase}", longest=10_000))


@contextmanager
def senseless_metadata_named(path: str | Path) -> Iterator[None]:
    """Turn errors that senseless metadata cause into one line that names their file or folder."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if str(Path(path)) in str(error):  # without the slash behind a folder
            raise
        reason = f"{type(error).__name__}: {error}"
        line = f"{path}: what it says of itself makes no sense ({reason}); write it again"
        raise ValueError(plain_line(line)) from None


def describe_snapshot(name: str) -> Lines:
    """Describe a snapshot, a published network pickle, a pipeline of diffusers or an included network."""
    path = resolve(name)
    if is_guided(path):
        return _describe_guided(path)
    if is_pipeline_folder(path):
        metadata = read_metadata(path)
        times = (("images seen", "images_seen"), ("EMA length", "sigma_rel"))
        return [
            ("pipeline", path),
            *((what, metadata[key]) for what, key in times if key in metadata),
            *_origin(metadata),
        ]
    snapshot = open_snapshot(path)
    metadata = snapshot.metadata
    lines: Lines = [
        ("snapshot", path),
        ("size", f"{path.stat().st_size / 1e6:.2f} MB, {len(snapshot.names)} tensors"),
        ("images seen", f"{snapshot.images_seen:,}"),
        ("EMA length", _ema_length(snapshot)),
    ]
    if "half_life" in metadata:
        lines.append(("made by", f"traditional EMA with a half-life of {metadata['half_life']:,} images"))
    elif "reconstructed_from" in metadata:
        lines.append(("made from", f"{len(metadata['reconstructed_from']) or 'unnamed'} snapshots"))
    if training := metadata.get("training"):
        lines.append(
            (
                "training",
                f"steps of {training['batch_size']} images, learning rate {training['ref_lr']:g}, "
                f"ln sigma ~ N({training['P_mean']:g}, {training['P_std']:g}²), seed {training['seed']}",
            )
        )
    abilities, levels = ways_to_sample(metadata)
    if set(abilities) != {"denoise"}:
        jumps = "; ".join(",".join(f"{level:g}" for level in some) for some in levels.values())
        lines.append(("draws as", f"{' and '.join(abilities)}, between noise levels {jumps}"))
    return lines + _origin(metadata)


def _describe_guided(path: Path) -> Lines:
    """Describe a guided.json: its weight and interval, then its network."""
    found = read_guided(path)
    by = found.guide.name if found.guide else "itself without classes"
    by = by if found.dropout is None else f"itself with dropout {found.dropout:g}"
    low, high = found.interval
    where = "" if found.interval == EVERYWHERE else f", at noise levels from {low:.3g} to {high:.3g}"
    return [("guided by", by), ("guidance", f"weight {found.weight:g}{where}"), *describe_snapshot(str(found.network))]


def _ema_length(snapshot: AnySnapshot) -> str:
    """EMA length, those of groups of tensors, and the half-life of a traditional EMA with the same `sigma_rel`."""
    if not snapshot.sigma_rel:
        return "none (raw weights)"
    groups = snapshot.metadata.get("sigma_rel_of") or {}
    lengths = ", ".join([f"{snapshot.sigma_rel:g}", *(f"{length:g} for {name}" for name, length in groups.items())])
    if snapshot.images_seen == 0 or "half_life" in snapshot.metadata:
        return lengths
    half_life = float(sigma_rel_to_half_life(snapshot.sigma_rel, snapshot.images_seen))
    return f"{lengths}; as wide as a traditional EMA with a half-life of {half_life:,.0f} images"


def describe_run(name: str) -> Lines:
    """Describe a run folder: its settings, its progress, and what looks wrong."""
    folder = Path(name)
    run = read_records(name, folder)
    config, records, seen = run.config, run.stats, run.images_seen
    try:
        snapshots = [snapshot for snapshot in open_run(folder) if snapshot.path.is_file()]  # not in a checkpoint
    except FileNotFoundError:
        snapshots = []
    lines: Lines = [
        ("run", folder),
        ("data", config.data),
        ("preset", config.preset),
        ("progress", f"{seen:,} of {config.duration:,} images ({100 * seen / config.duration:.0f}%)"),
    ]
    held_out = numbers_of(records, "holdout_error")
    if records and "error" in records[-1]:
        last = f", {held_out[-1][1]:.4f} on held-out images" if held_out else ""
        lines.append(("error", f"{records[-1]['error']:.4f} in training{last}; 1 is a network that knows nothing"))
    if records:
        lines.append(("loss", f"{records[-1]['loss']:.4g}"))
    network = "the user's own" if config.network is None else _compact(config.network.to_json())
    lines += [("snapshots", _times_and_lengths(snapshots)), ("network", network)]
    return [*lines, *(("WARNING", line) for line in warnings_about(run))]


def describe_published_run(name: str) -> Lines:
    """Describe a folder of published network pickles."""
    folder = Path(name)
    snapshots = open_run(folder)
    lines: Lines = [("run", folder), ("snapshots", _times_and_lengths(snapshots))]
    return lines + _origin(snapshots[-1].metadata)


def _origin(metadata: Mapping[str, Any]) -> Lines:
    shown = ("preset", "data", "network", "images", "codec", "license")
    return [(name, _compact(metadata[name])) for name in shown if name in metadata]


def _times_and_lengths(snapshots: list[AnySnapshot]) -> str:
    times = {snapshot.images_seen for snapshot in snapshots}
    lengths = sorted({snapshot.sigma_rel for snapshot in snapshots if snapshot.sigma_rel is not None})
    return f"{len(snapshots)} at {len(times)} times, EMA lengths {_compact(lengths)}"


def describe_dataset(source: str) -> Lines:
    """Describe a dataset; reads its first image."""
    dataset = open_dataset(source)
    names = ", ".join(dataset.class_names[:12]) + (", ..." if dataset.num_classes > 12 else "")
    return [*_images(source, dataset), ("classes", f"{dataset.num_classes}: {names}" if names else "none")]


def describe_classes(source: str, report: Callable[[int, int], None] = lambda done, total: None) -> Lines:
    """Describe a dataset with the number of images of every class, what its files are, and whether all are alike."""
    found = survey(source, report) if _is_archive(source) else None
    if found is not None and found.first_is_unreadable:
        raise DatasetError(f"{source}: {'; '.join(found.notes(source))}")
    dataset = open_dataset(source)
    has_json = _is_archive(source) and DESCRIPTION in open_archive(Path(source))[0].names()
    lines = [
        *_images(source, dataset),
        ("dataset.json", "yes" if has_json else "no"),
        ("classes", dataset.num_classes or "none"),
    ]
    if dataset.num_classes:
        counts = dataset.labels(range(len(dataset))).bincount(minlength=dataset.num_classes).tolist()
        lines += [(f"  {name}", f"{count:,}") for name, count in zip(dataset.class_names, counts, strict=True)]
    notes = dataset.notes
    if _is_archive(source):
        lines += describe_conditions(*open_archive(Path(source)))
    else:
        lines += [(f"condition {name}", "given by the dataset") for name in dataset.condition_names]
    if found is not None:
        lines[3:3] = found.describe()
        notes = (*notes, *found.notes(source))
    return [*lines, *(("Warning", note) for note in notes)]


def _images(source: str, dataset: Dataset) -> Lines:
    channels, height, width = dataset.shape
    dtype = str(dataset.images([0]).dtype).removeprefix("torch.")
    lines: Lines = [
        ("dataset", source),
        ("images", f"{len(dataset):,}"),
        ("size", f"{height}x{width}, {channels} channel{'s' if channels > 1 else ''}, {dataset.kind}"),
        ("stored", f"{dtype}, {_size_on_disk(Path(source)) / 1e6:,.2f} MB on disk" if _is_archive(source) else dtype),
    ]
    return lines + (_latents(dataset) if dataset.kind == "moments" else _statistics(dataset.pixel_stats or {}))


def _is_archive(source: str) -> bool:
    """True for a folder or ZIP; False for the digits and `module:callable`."""
    return source != "digits" and not is_target(source)


def _size_on_disk(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _latents(dataset: Dataset) -> Lines:
    """Scaling of latents as the dataset states it, or as training assumes it."""
    known = dataset.latents or {}
    try:
        codec = latent_codec_of(known, dataset.shape[0], sigma_data=0.5)
    except ValueError as error:
        return [("latents", f"not usable: {error}")]
    unsaid = "not stored, taken to be the paper's: "
    black, white = codec.pixel_range
    lines = [("VAE", ("" if "vae" in known else unsaid) + f"{codec.vae}, pixels from {black:g} to {white:g}")]
    lines += [(key, ("" if key in known else unsaid) + _numbers(getattr(codec, key))) for key in ("mean", "std")]
    return [*lines, ("sigma_data", _compact(known["sigma_data"]))] if "sigma_data" in known else lines


def _statistics(known: Mapping[str, Any]) -> Lines:
    """Mean and standard deviation in levels; sigma_data on the scale where black is -1 and white 1."""
    return [(key, _numbers(value) if isinstance(value, list) else f"{value:.4f}") for key, value in known.items()]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _compact(value: Any) -> str:
    """Write a nested value in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name}={_compact(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_compact, value)) + ("," if len(value) == 1 else "") + ")"
    return str(value)


def print_statistics(statistics: Statistics, levels: int | None) -> None:
    """Print a dataset's statistics, and what they mean for training; `levels` of a pixel are None for latents."""
    if levels is None:
        unit, scale, command = "as the VAE gives them", ", all channels together", "edm2 train"
    else:
        unit, scale = f"levels 0 to {levels - 1}", " with black at -1 and white at 1"
        command = "edm2 train --standardize"
    click.echo(f"channel {'mean':>9} {'std':>9}  ({unit})")
    for channel, (mean, std) in enumerate(zip(statistics.mean, statistics.std, strict=True)):
        remark = "  never varies: there is nothing to learn from" if std == 0 else ""
        click.echo(f"{channel:>7} {mean:9.4f} {std:9.4f}{remark}")
    click.echo(
        f"sigma_data {statistics.sigma_data:.4f}{scale}: the networks expect 0.5, and "
        f"{command} scales every channel to that by these values"
    )
