"""Networks from and to files. A snapshot describes itself: `load` needs nothing but the file."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn

from edm2 import __version__
from edm2.io import snapshots as files
from edm2.io.guided import is_guided, read_guided
from edm2.io.hub import fetch, is_hub_id
from edm2.io.snapshots import AnySnapshot
from edm2.networks import NetworkConfig, Precond, build_network, is_folded
from edm2.pipeline.folder import is_pipeline_folder
from edm2.post_hoc_ema import SnapshotError, write_snapshot
from edm2.post_hoc_ema.files import visible_files
from edm2.sampling.external import (
    DrawnImages,
    ExternalNetwork,
    SampledNetwork,
    empty_classes_of,
    ready_to_sample,
    ways_to_sample,
)
from edm2.sampling.generation import check_guide
from edm2.sampling.guided_network import GuidedNetwork, with_dropout
from edm2.training.field_types import mistyped_fields
from edm2.training.run.inputs import describe_file
from edm2.training.run.output import EXTERNAL

Network = TypeVar("Network", bound=nn.Module)

ASSETS = Path(__file__).parents[1] / "assets"
"""Folder of the networks that come with the package."""


def resolve(name: str | Path) -> Path:
    """Find a network by path or name.

    It is a file or a pipeline's folder as given, an included network such as "digits8", or a repository of the hub,
    which is fetched.

    Raises:
        OSError: there is nothing of this name.
    """
    path = Path(name)
    if path.is_file() or is_pipeline_folder(path):
        return path
    included = ASSETS / f"{name}.safetensors"
    if path.parent == Path(".") and included.is_file():
        return included
    if is_hub_id(str(name)) and not path.parent.exists():  # else a mistyped path
        return Path(fetch(str(name)))
    if (path / "snapshots").is_dir():
        raise FileNotFoundError(f"{name}: is a run; edm2 reconstruct {name} --std 0.10 makes a network of it")
    names = ", ".join(sorted(file.stem for file in ASSETS.glob("*.safetensors"))) or "there are none"
    what = "a folder, not a file or a pipeline of diffusers" if path.is_dir() else "no such file"
    raise FileNotFoundError(f"{name}: {what}, and not the name of an included network ({names})")


def digest_of(name: str | Path) -> str | None:
    """SHA-256 of a network's or a VAE's files, which their paths do not enter; None for a repository of the hub."""
    path = Path(name)
    if not path.is_dir():
        try:
            path = resolve(name)
        except OSError:
            return None
    files_of_it = [path] if path.is_file() else [file for file in visible_files(path, "**/*") if file.is_file()]
    digests = [(file.relative_to(path).as_posix(), describe_file(file)) for file in files_of_it]
    if path.is_file() and is_guided(path):
        digests += [(file.name, describe_file(file)) for file in read_guided(path).files]
    return hashlib.sha256(repr(digests).encode()).hexdigest()


def read_metadata(name: str | Path) -> dict[str, Any]:
    """Read what a file says about its network: architecture, codec, images seen, EMA length, training settings.

    Those of a guided.json are its main network's, and its own contents under "guided"; a pipeline's folder is its main
    network alone.

    Raises:
        OSError, SnapshotError: as `load`.
    """
    path = resolve(name)
    if not path.is_file() or not is_guided(path):
        return {key: value for key, value in files.read_metadata(path).items() if key != "guided"}
    found = read_guided(path)
    return files.read_metadata(found.network) | {"guided": found.to_json()}


@overload
def load(
    name: str | Path, device: torch.device | str | None = None, dtype: torch.dtype | None = None, net: None = None
) -> Precond: ...
@overload
def load(
    name: str | Path, device: torch.device | str | None = None, dtype: torch.dtype | None = None, *, net: Network
) -> Network: ...
def load(
    name: str | Path,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    net: Network | None = None,
) -> Precond | Network:
    """Load a network for inference.

    Args:
        name: A snapshot (.safetensors), a network pickle of the published program (.pkl; nothing in it is executed), a
            folder that `EDM2Pipeline.save_pretrained` wrote or a repository of the hub that holds one ("user/name"),
            the name of an included network ("digits8"), or a guided.json of `edm2 autoguide`.
        device: Device of the parameters; default: the CPU.
        dtype: dtype to compute in and to convert the parameters to; None for float32, however they are stored. Fourier
            features keep float32 at least.
        net: A network of the user's own, for snapshots of a run that trained it (`Trainer(config, net=...)`): they hold
            its tensors, but no description. It gets these tensors, and is returned.

    Returns:
        The denoiser, a `Precond`, or `net`, in evaluation mode, without gradients. `fold` makes it faster. Of a
        guided.json a `GuidedNetwork`, which is called and sampled like the others; its part `main` is a `Precond`.

    Raises:
        OSError: no such file, and no such repository.
        SnapshotError: not a snapshot, damaged, or of an unknown kind of network; of a network of the user's own without
            `net`, or the other way round; or a pickle with anything in it that no network needs.
    """
    path, dtype = resolve(name), dtype or torch.float32
    if path.is_file() and is_guided(path):
        if net is not None:
            raise SnapshotError(f"{path}: describes its networks itself; leave out net")
        return _load_guided(path, device, dtype)  # type: ignore[return-value]  # said above
    metadata, weights = files.read_weights(path)
    dtypes = dict.fromkeys(metadata.get("buffers", ()), torch.promote_types(dtype, torch.float32))
    tensors = {key: tensor.to(device or "cpu", dtypes.get(key, dtype)) for key, tensor in weights}
    try:
        if net is not None:
            if not is_external(metadata):
                raise SnapshotError("describes its network itself; leave out net")
            return filled(net, tensors)
        loaded = network_from_state(metadata, tensors)
    except SnapshotError as error:
        raise SnapshotError(f"{path}: {error}") from None
    loaded.compute_dtype = dtype
    return loaded


def _load_guided(path: Path, device: torch.device | str | None, dtype: torch.dtype) -> GuidedNetwork:
    """Load the networks of a guided.json. Raises SnapshotError if the guide draws other images or classes."""
    found = read_guided(path)
    main = load(found.network, device, dtype)
    guide = None if found.guide is None else load(found.guide, device, dtype)
    try:
        if found.dropout is not None:
            guide = with_dropout(main, found.dropout)
        elif guide is not None:
            check_guide(main, guide)
    except ValueError as error:
        raise SnapshotError(f"{path}: {error}") from None
    return GuidedNetwork(main, guide, found.weight, found.interval)


def load_to_sample(
    name: str | Path,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    make_net: Callable[[], nn.Module] | None = None,
) -> SampledNetwork:
    """Load a network that `generate` takes: ours folded, to compute in `dtype`, or one of the user's own.

    Args:
        name: As of `load`.
        device: Device of the parameters; default: the CPU.
        dtype: dtype that ours computes in; None for float32.
        make_net: Makes the network for snapshots that hold the tensors of one of the user's own.
    """
    metadata = read_metadata(name)
    if not is_external(metadata) or make_net is None:
        return ready_to_sample(load(name, device), dtype)
    net = load(name, device, net=make_net())
    try:
        drawn = DrawnImages.from_metadata(metadata)
        return ExternalNetwork(net, drawn, empty_classes_of(metadata, drawn.label_dim))
    except ValueError as error:
        raise SnapshotError(f"{name}: {error}") from None


def is_external(metadata: Mapping[str, Any]) -> bool:
    """True if a snapshot holds tensors of a network of the user's own, which it does not describe."""
    return metadata.get("architecture") == EXTERNAL


def drawn_images(metadata: Mapping[str, Any]) -> NetworkConfig | DrawnImages:
    """Shape and classes of the images of the network that a snapshot's metadata describes."""
    if is_external(metadata):
        return DrawnImages.from_metadata(metadata)
    return NetworkConfig.from_json(metadata["network"])


def filled(net: Network, tensors: Mapping[str, Tensor]) -> Network:
    """Overwrite the tensors of a network of the user's own, for inference."""
    if (own := net.state_dict().keys()) != tensors.keys():
        different = sorted(own ^ tensors.keys())[:3]
        raise SnapshotError(f"holds tensors of another network than net: {', '.join(different)}")
    for tensor_name, tensor in net.state_dict().items():
        if tensor.shape != tensors[tensor_name].shape:
            raise SnapshotError(f"holds tensors of another network than net: {tensor_name} has another shape")
    net.load_state_dict(tensors)
    device = next(iter(tensors.values())).device
    return net.to(device).eval().requires_grad_(False)


def network_from_state(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> Precond:
    """Build the network that a snapshot's metadata describes, with these tensors; for inference."""
    if is_external(metadata):
        raise SnapshotError(
            "holds tensors of a network of the user's own; name what makes that (--net-from module:callable), or make "
            "it and edm2.load(path, net=net)"
        )
    try:
        config = NetworkConfig.from_json(metadata["network"])
        if wrong := mistyped_fields(config):
            raise ValueError(f"{', '.join(wrong)} of another type than the network needs")
        if config.num_blocks * len(config.channel_mult) > len(tensors):  # else an untrusted file builds for hours
            raise ValueError(f"num_blocks={config.num_blocks} describes more blocks than there are tensors")
        with torch.device("meta"):
            net = build_network(config)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:  # untrusted JSON
        reason = str(error).partition("\n")[0]
        raise SnapshotError(f"does not describe a network that this version can build ({reason})") from None
    try:
        net.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()[:300]  # it may list hundreds of names
        raise SnapshotError(f"its tensors do not fit the network that it describes ({reason})") from None
    net.empty_classes = empty_classes_of(metadata, config.label_dim)
    net.abilities, net.map_levels = ways_to_sample(metadata)
    return net.eval().requires_grad_(False)


def save(net: Precond, path: str | Path, metadata: dict[str, Any], dtype: torch.dtype | None = None) -> None:
    """Write a snapshot that `load` reads, completely or not at all.

    Args:
        net: Any network but a folded one.
        path: File to write.
        metadata: JSON; `network` and `buffers` are filled in. Reconstruction needs `images_seen` and `sigma_rel`, and
            `edm2 generate` needs `codec` to decode images.
        dtype: dtype to store parameters in; None keeps theirs.

    Raises:
        ValueError: the network is folded.
    """
    if is_folded(net):
        raise ValueError(f"{path}: a folded network cannot be saved; save the network it was folded from")
    buffers = [name for name, _ in net.named_buffers()]
    described = metadata | {"network": net.config.to_json(), "buffers": buffers}
    write_snapshot(path, net.state_dict(), described, dtype=dtype)


def convert_published(path: str | Path, out: str | Path) -> dict[str, Any]:
    """Convert a network pickle of the published program to a snapshot, every number as it is.

    Args:
        path: The pickle; nothing in it is executed. Its name gives images seen and EMA length.

    Returns:
        The metadata written, with the license.

    Raises:
        SnapshotError: a snapshot already, or a pickle with anything in it that no network needs.
        OSError: a file cannot be read or written.
    """
    if not files.is_published(path):
        raise SnapshotError(f"{path}: a snapshot already, which needs no conversion")
    metadata, weights = files.read_weights(path)
    state = dict(weights)
    try:
        network_from_state(metadata, state)
    except SnapshotError as error:
        raise SnapshotError(f"{path}: {error}") from None
    write_snapshot(out, state, metadata | {"edm2_version": __version__})
    return metadata


def reconstructed_metadata(
    snapshots: Sequence[AnySnapshot], at: int, sigma_rel: float, method: str = "tails"
) -> dict[str, Any]:
    """Metadata of weights reconstructed from `snapshots`: the last one's, with the inputs of the reconstruction."""
    used = [s for s in snapshots if s.images_seen <= at and (s.images_seen > 0 or s.sigma_rel == 0)]
    lengths = (s.profile.to_json() if s.sigma_rel is None else s.sigma_rel for s in used)
    inputs = [[snapshot.images_seen, length] for snapshot, length in zip(used, lengths, strict=True)]
    said = {"images_seen": at, "sigma_rel": sigma_rel, "reconstructed_from": inputs, "method": method}
    return {key: value for key, value in used[-1].metadata.items() if key != "profile"} | said
