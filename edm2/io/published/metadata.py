"""Metadata of a snapshot, from a network pickle's contents and its name."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edm2.io.published.arrays import read_array
from edm2.io.published.inert_pickle import PickleFile, PickleRefused, shown
from edm2.io.published.objects import recorded
from edm2.networks import NetworkConfig
from edm2.planning.presets import PRESETS
from edm2.training import Codec, PixelCodec
from edm2.training.data.vae import LatentCodec

LICENSE = "CC BY-NC-SA 4.0, non-commercial"
"""License of the published weights, and of everything that is made from them."""

FILE_NAME = re.compile(r"-(?P<kimg>\d{7,})-(?P<sigma_rel>\d+\.\d{3})\.pkl$")
"""End of the published program's file names: thousands of images seen, EMA length."""

MAX_TEXT = 1000
MAX_ENTRIES = 100
"""Largest number of characters in a text, and of entries in a list or dict, of a configuration."""


def describe(contents: dict[str, Any], file: PickleFile) -> dict[str, Any]:
    """Describe the network, its codec, its data and its training."""
    config = network_config(contents["ema"])
    dataset, loss = contents.get("dataset_kwargs"), contents.get("loss_fn")
    dataset_options = plain(dataset) if isinstance(dataset, dict) else {}
    loss_options = plain(recorded(loss)[1]) if loss is not None else {}
    loss_options.pop("_init_args", None)
    return {
        "network": config.to_json(),
        "codec": codec_of(contents["encoder"], file).to_json(),
        **preset_of(config),
        "data": {"name": dataset_options.get("path", "unknown")},
        "license": LICENSE,
        "published": {"dataset_kwargs": dataset_options, "loss_fn": loss_options},
    }


def network_config(net: Any) -> NetworkConfig:
    """Configuration of the network, from the arguments that it was constructed with."""
    match recorded(net):
        case ("Precond", {"_init_args": (), "_init_kwargs": dict(arguments)}):
            known = plain(arguments)
        case _:
            raise PickleRefused("is damaged: its network is not recorded as a Precond made of named arguments")
    if len(known) < len(arguments):
        raise PickleRefused("is damaged: its network was constructed with something else than numbers")
    known.pop("use_fp16", None)  # a setting of the program, not of the network
    try:
        return NetworkConfig.from_json(known)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # untrusted
        raise PickleRefused(f"does not describe a network that can be built ({shown(str(error), 300)})") from None


def preset_of(config: NetworkConfig) -> dict[str, str]:
    """Entry `preset` if the network is one of the paper's, with any number of classes."""
    for name, preset in PRESETS.items():
        if preset.shape == (config.img_channels, *config.size) and config == NetworkConfig(
            config.img_resolution, config.img_channels, config.label_dim, **preset.network
        ):
            return {"preset": name}
    return {}


def images_seen_at(kimg: int) -> int:
    """Images seen, from the thousands of them in a file's name; whole batches, so a multiple of 1024."""
    return (kimg * 1000 + 999) // 1024 * 1024


def clock(file_name: str) -> dict[str, Any]:
    """Entries images_seen and sigma_rel, if the name has them, and reconstructed_from for a reconstruction."""
    match = FILE_NAME.search(file_name)
    time = {"images_seen": images_seen_at(int(match["kimg"])), "sigma_rel": float(match["sigma_rel"])} if match else {}
    return time | ({"reconstructed_from": []} if is_reconstruction(file_name) else {})


def is_reconstruction(file_name: str) -> bool:
    """True if this is how the published program names its reconstructions."""
    return file_name.startswith("phema-")


def plain(entries: dict[str, Any]) -> dict[str, Any]:
    """Entries that are numbers, short texts or short lists of numbers, as in configurations."""
    if len(entries) > MAX_ENTRIES:
        raise PickleRefused("is damaged: a configuration with too many entries")
    return {key: entry for key, entry in entries.items() if len(key) <= MAX_TEXT and _is_plain(entry)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    if isinstance(value, list | tuple):
        return len(value) <= MAX_ENTRIES and all(isinstance(entry, int | float) and _is_plain(entry) for entry in value)
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 62)


# ------------------------------------------------------------------------------------------------ codec


def codec_of(encoder: Any, file: PickleFile) -> Codec:
    """Codec that encodes as the recorded encoder does."""
    match recorded(encoder):
        case "StandardRGBEncoder", _:
            return PixelCodec()  # its defaults are the published encoder
        case "StabilityVAEEncoder", {"vae_name": str(vae), "scale": scale, "bias": bias} if len(vae) <= MAX_TEXT:
            return _latent_codec(vae, _per_channel(scale, file), _per_channel(bias, file))
    raise PickleRefused("is damaged: its encoder is neither of the two published ones")


def _per_channel(value: Any, file: PickleFile) -> npt.NDArray[np.float32]:
    """One number per channel of a latent, [C]."""
    array = read_array(value, file)
    if array.ndim != 1 or not 0 < len(array) <= MAX_ENTRIES:
        raise PickleRefused("is damaged: its encoder has no number per channel")
    return array.astype(np.float32)


def _latent_codec(vae: str, scale: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> LatentCodec:
    """Codec of x = z scale + bias, with scale = sigma_data / std and bias = -mean scale, each float32 [C]."""
    if len(scale) != len(bias) or not ((scale > 1e-6) & (scale < 1e6) & (abs(bias) < 1e6)).all():
        raise PickleRefused("is damaged: its encoder scales latents by impossible numbers")
    mean, std = zip(*map(_mean_and_std, scale, bias), strict=True)
    return LatentCodec(vae, mean, std)


def _mean_and_std(scale: np.float32, bias: np.float32) -> tuple[float, float]:
    """Mean and standard deviation of a channel, of which `LatentCodec` makes this scale and bias to the bit."""
    sigma_data = np.float32(LatentCodec.sigma_data)
    std = _simplest(sigma_data / scale, lambda std: sigma_data / np.float32(std) == scale)
    mean = _simplest(-bias / scale, lambda mean: -np.float32(mean) * scale == bias)
    return mean, std


def _simplest(value: np.float32, fits: Callable[[float], bool]) -> float:
    """Decimal with the fewest digits that rounds to the stored number."""
    shorter = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next((decimal for decimal in shorter if fits(decimal)), float(value))
