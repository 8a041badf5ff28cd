"""What a snapshot, a run folder or a dataset is, in pairs of a subject and a phrase."""

from pathlib import Path
from typing import Any

from edm2.model import read_metadata, resolve
from edm2.post_hoc_ema import SafetensorsSnapshot, find_snapshots
from edm2.training import Dataset, open_dataset, read_run_config
from edm2.training.archive import open_files
from edm2.training.monitor import read_stats

Lines = list[tuple[str, Any]]


def describe_snapshot(name: str) -> Lines:
    """A snapshot or an included network."""
    path = resolve(name)
    snapshot = SafetensorsSnapshot(path)
    metadata = read_metadata(path)
    lines: Lines = [
        ("snapshot", path),
        ("size", f"{path.stat().st_size / 1e6:.2f} MB, {len(snapshot.names)} tensors"),
        ("images seen", f"{snapshot.images_seen:,}"),
        ("EMA length", f"{snapshot.sigma_rel:g}" if snapshot.sigma_rel else "none (raw weights)"),
    ]
    if "reconstructed_from" in metadata:
        lines.append(("made from", f"{len(metadata['reconstructed_from'])} snapshots"))
    if training := metadata.get("training"):
        lines.append(
            (
                "training",
                f"steps of {training['batch_size']} images, learning rate {training['ref_lr']:g}, "
                f"ln sigma ~ N({training['P_mean']:g}, {training['P_std']:g}²), seed {training['seed']}",
            )
        )
    lines += [(name, _compact(metadata[name])) for name in ("preset", "data", "network", "codec") if name in metadata]
    return lines


def describe_run(folder: Path) -> Lines:
    """A run folder: what was asked for, and how far it is."""
    config = read_run_config(folder)
    stats = folder / "stats.jsonl"
    records = read_stats(stats) if stats.exists() else []
    try:
        snapshots = find_snapshots(folder)
    except FileNotFoundError:
        snapshots = []
    seen = records[-1]["images_seen"] if records else 0
    lines: Lines = [
        ("run", folder),
        ("data", config.data),
        ("preset", config.preset),
        ("progress", f"{seen:,} of {config.duration:,} images ({100 * seen / config.duration:.0f}%)"),
    ]
    if records:
        lines.append(("loss", f"{records[-1]['loss']:.4g}"))
    times = sorted({snapshot.images_seen for snapshot in snapshots})
    lengths = sorted({snapshot.sigma_rel for snapshot in snapshots})
    lines.append(("snapshots", f"{len(snapshots)} at {len(times)} times, EMA lengths {_compact(lengths)}"))
    lines.append(("network", _compact(config.network.to_json())))
    return lines


def describe_dataset(source: str) -> Lines:
    """A dataset, after a look at its first image."""
    dataset = open_dataset(source)
    labels = f"{dataset.num_classes}: {', '.join(dataset.class_names[:12])}" if dataset.num_classes else "none"
    return [*_images(source, dataset), ("classes", labels + (", ..." if dataset.num_classes > 12 else ""))]


def describe_classes(source: str) -> Lines:
    """A dataset with the number of images of every class, and where the labels come from."""
    dataset = open_dataset(source)
    has_json = source != "digits" and "dataset.json" in open_files(Path(source)).names()
    lines = [
        *_images(source, dataset),
        ("dataset.json", "yes" if has_json else "no"),
        ("classes", dataset.num_classes or "none"),
    ]
    if dataset.num_classes:
        counts = dataset.labels(range(len(dataset))).bincount(minlength=dataset.num_classes).tolist()
        lines += [(f"  {name}", f"{count:,}") for name, count in zip(dataset.class_names, counts, strict=True)]
    return lines


def _images(source: str, dataset: Dataset) -> Lines:
    channels, height, width = dataset.shape
    return [
        ("dataset", source),
        ("images", f"{len(dataset):,}"),
        ("size", f"{height}x{width}, {channels} channel{'s' if channels > 1 else ''}, {dataset.kind}"),
    ]


def _compact(value: Any) -> str:
    """A nested value in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name}={_compact(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_compact, value)) + ")"
    return str(value)
