"""Values of options: image counts, EMA lengths, seeds, sizes, devices and other texts, and their types for click.

Each `parse_` function raises ValueError for a text that it cannot read; the message shows what to write instead.
"""

import math
import re
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

MOST_SEEDS, MOST_VALUES, LARGEST_SIDE = 10_000_000, 10_000, 16_384
"""Seeds of a range, numbers of an ellipsis, and pixels of a side, beyond which a text is taken for a slip."""


def parse_image_count(text: str) -> int:
    """Parse a number of images: "1000", "128Ki", "8Mi", "2Gi" (1024, 1024², 1024³)."""
    match = re.fullmatch(r"(\d+)(Ki|Mi|Gi|)", text.strip())
    if not match:
        raise ValueError(f"{text!r} is no image count; write 1000, 128Ki, 8Mi or 2Gi")
    return int(match[1]) << {"": 0, "Ki": 10, "Mi": 20, "Gi": 30}[match[2]]


def parse_sigma_rels(text: str) -> list[float]:
    """Parse EMA lengths between 0 and 0.2886: "0.1", "0.05,0.1" or "0.01,0.02,...,0.25"; ascending, each once."""
    return _parse_list(text, _parse_sigma_rel)


def parse_tracked(text: str) -> list[float]:
    """Parse EMA lengths in the order in which they are numbered: "0.05,0.10"."""
    return [_parse_sigma_rel(part.strip(), text) for part in text.split(",")]


def parse_weights(text: str) -> list[float]:
    """Parse guidance weights: "1.5", "1,1.5,2" or "1,1.2,...,3"; ascending, each once."""
    return _parse_list(text, lambda part, text: parse_number(part))


def parse_times(text: str) -> list[int]:
    """Parse times in images seen: "2Mi", "2Mi,4Mi" or "2Mi,4Mi,...,16Mi"; ascending, each once."""
    return [round(value) for value in _parse_list(text, lambda part, text: parse_image_count(part))]


def _parse_list(text: str, parse_one: Callable[[str, str], float]) -> list[float]:
    """Parse numbers separated by commas, ascending, each once; `parse_one` gets a part and the whole text."""
    values: list[float] = []
    parts = [part.strip() for part in text.split(",")]
    for i, part in enumerate(parts):
        if part == "...":
            values += _fill(text, values, [parse_one(after, text) for after in parts[i + 1 : i + 2]])
        else:
            values.append(parse_one(part, text))
    return sorted(set(values))


def _parse_sigma_rel(part: str, text: str) -> float:
    from edm2.post_hoc_ema import sigma_rel_to_gamma  # here, because it imports torch

    try:
        value = float(part)
    except ValueError:
        raise ValueError(f"{part!r} in {text!r} is no number; write 0.1, or 0.05,0.10,...,0.25") from None
    sigma_rel_to_gamma(value)  # refuses lengths that no power function has
    return value


def _fill(text: str, before: list[float], after: list[float]) -> list[float]:
    """Numbers in place of an ellipsis: on from the two before it, up to (not including) the one after it."""
    around = [*before[-2:], *after]
    if len(before) < 2 or not after or around != sorted(set(around)):
        raise ValueError(f"{text!r}: an ellipsis stands between two numbers and a third, ascending: 0.05,0.10,...,0.25")
    previous, start, last = around
    step = start - previous
    if last - start > step * (MOST_VALUES + 1):
        raise ValueError(f"{text!r} stands for more than {MOST_VALUES:,} numbers; write a wider step")
    count = round((last - start) / step) - 1
    return [round(start + i * step, 10) for i in range(1, count + 1)]


def parse_seeds(text: str) -> list[int]:
    """Parse seeds: "7", "0-63" or "0-63,100", in the order given."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise ValueError(f"{part!r} in {text!r} is neither a seed nor a range of seeds; write 7, 0-63 or 0-63,100")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"seed range {part!r} is upside down; write {last}-{first}")
        if last - first >= MOST_SEEDS:  # before they are written out, which would take all memory
            raise ValueError(f"seed range {part!r} has more than {MOST_SEEDS:,} seeds; draw them in several calls")
        seeds += range(first, last + 1)
    return seeds


def parse_levels(text: str) -> tuple[float, ...]:
    """Parse the noise levels of a flow map, which fall to 0: "80,0.3,0"."""
    levels = tuple(parse_number(part) for part in text.split(","))
    if len(levels) < 2 or levels[-1] != 0 or any(not a > b for a, b in pairwise(levels)):
        raise ValueError(f"{text!r} are no levels of a flow map: they fall and end with 0, such as 80,0.3,0")
    return levels


def parse_steps(text: str) -> list[int]:
    """Parse numbers of steps: "32" or "1,2,4"."""
    steps = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in steps):
        raise ValueError(f"{text!r} are no numbers of steps; write 32, or 1,2,4")
    return list(dict.fromkeys(map(int, steps)))


def parse_number(text: str) -> float:
    """Parse a finite number; Python itself takes "nan" and "inf" for numbers."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is no finite number; write 0.01 or 1e-2")
    return value


def parse_resolution(text: str) -> tuple[int, int]:
    """Parse height and width of an image: "64" for a square, "64x96" for 64 rows and 96 columns."""
    match = re.fullmatch(r"\s*(\d+)(?:x(\d+))?\s*", text)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 0 < min(height, width) <= max(height, width) <= LARGEST_SIDE:
        raise ValueError(
            f"{text!r} is no size of an image; write 64, or HEIGHTxWIDTH such as 64x96, up to {LARGEST_SIDE} each"
        )
    return height, width


def parse_shape(text: str) -> tuple[int, int, int]:
    """Parse channels, height and width: "3x64x64"."""
    match = re.fullmatch(r"\s*(\d+)x(\d+)x(\d+)\s*", text)
    channels, height, width = map(int, match.groups()) if match else (0, 0, 0)
    if not channels or not height or not width:
        raise ValueError(f"{text!r} is no shape; write CHANNELSxHEIGHTxWIDTH, such as 3x64x64")
    return channels, height, width


def parse_device(text: str) -> str:
    """Parse a device of this machine: "cpu", "cuda", "cuda:1" or "mps"."""
    import torch

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError):  # the latter where torch was built without that kind of device
        known = False
    else:
        known = torch.device(text).type in ("cpu", "cuda", "mps")
    if not known:
        raise ValueError(f"there is no device {text!r} here; write cpu, cuda, cuda:1 or mps, or leave the option out")
    return text


def parse_interval(text: str) -> tuple[float, float]:
    """Parse an interval of noise levels (low, high]: "0.19,1.61"."""
    low, comma, high = text.partition(",")
    interval = (parse_number(low), parse_number(high)) if comma else (0.0, 0.0)
    if not 0 <= interval[0] < interval[1]:
        raise ValueError(
            f"{text!r} is no interval of noise levels; write LOW,HIGH with 0 <= LOW < HIGH, as in 0.19,1.61"
        )
    return interval


def parse_initial_network(text: str) -> str:
    """Path of the network that training starts from: a file, or an included network, such as "digits8"."""
    if Path(text).suffix == ".json":
        raise ValueError(f"{text}: is a network with its guide; start from the network that it names")
    if Path(text).exists():
        return text
    from edm2.io.model import ASSETS  # here, because it imports torch

    included = ASSETS / f"{text}.safetensors"
    if Path(text).name != text or not included.is_file():
        names = ", ".join(sorted(file.stem for file in ASSETS.glob("*.safetensors")))
        raise ValueError(f"{text}: no such file, and not the name of an included network ({names})")
    return str(included)


def parse_time(text: str) -> float:
    """Parse a duration in seconds: "90s", "30m", "11.5h" or "2d"."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([smhd])\s*", text)
    seconds = float(match[1]) * units[match[2]] if match else 0.0
    if not 0 < seconds < threading.TIMEOUT_MAX:
        raise ValueError(f"{text!r} is no time; write 90s, 30m, 11.5h or 2d")
    return seconds


def parse_shard(text: str) -> tuple[int, int]:
    """Parse a part of some work: "1/2" for the first of two, up to "2/2"."""
    match = re.fullmatch(r"\s*(\d+)/(\d+)\s*", text)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise ValueError(f"{text!r} is no share; write 1/2 for the first of two, 2/2 for the second")
    return number, count


def parse_bytes(text: str) -> int:
    """Parse an amount of memory in bytes: "512M", "4G" (1024², 1024³), "1000"."""
    match = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?", text.strip())
    if not match or not int(match[1]):
        raise ValueError(f"{text!r} is no amount of memory; write 512M or 4G")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[match[2]]


def parse_parameter_count(text: str) -> int:
    """Parse a number of parameters: "125M", "1.5B" (10⁶, 10⁹), "722443"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", text.strip())
    count = round(float(match[1]) * {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}[match[2]]) if match else 0
    if not count:
        raise ValueError(f"{text!r} is no number of parameters; write 125M or 1.5B")
    return count


def parse_group(text: str) -> tuple[str, float]:
    """Parse a pattern of tensor names and their EMA length: "*.emb_gain=0.05"."""
    pattern, equals, length = text.rpartition("=")
    if not (pattern and equals):
        raise ValueError(
            f"{text!r} does not say which tensors have which length; write PATTERN=LENGTH: *.emb_gain=0.05"
        )
    return pattern, _parse_sigma_rel(length, text)


def parse_efficiency(text: str) -> float | Path:
    """Parse a fraction of a GPU's peak in (0, 1], or the path of a file of `edm2 bench --out`."""
    try:
        efficiency = float(text)
    except ValueError:
        return Path(text)
    if not 0 < efficiency <= 1:
        raise ValueError(f"{text} is no fraction of a peak; write a number between 0 and 1, such as 0.45")
    return efficiency


def parse_named_number(text: str) -> tuple[str, float]:
    """Parse a name and its number: "caption=0.1"."""
    name, equals, number = text.partition("=")
    if not (name and equals):
        raise ValueError(f"{text!r}: write NAME=NUMBER, such as caption=0.1")
    return name, parse_number(number)


class _Parsed(click.ParamType):
    """Parameter type made of a parsing function; its ValueErrors become usage errors."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _PNGFile(click.Path):
    """Path of a picture to write, which must be named *.png."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path: Any = super().convert(value, param, ctx)
        if path.suffix.lower() != ".png":
            self.fail(f"{path}: pictures are written as PNG files; write {path.with_suffix('.png')}", param, ctx)
        return path


IMAGES = _Parsed("images", parse_image_count)
SIGMA_REL = _Parsed("length", lambda text: _parse_sigma_rel(text, text))
SIGMA_RELS = _Parsed("lengths", parse_sigma_rels)
TRACKED = _Parsed("lengths", parse_tracked)
TIMES = _Parsed("images,...", parse_times)
WEIGHTS = _Parsed("weights", parse_weights)
NUMBER = _Parsed("number", parse_number)
NAMED_NUMBER = _Parsed("name=number", parse_named_number)
RESOLUTION = _Parsed("resolution", parse_resolution)
SHAPE = _Parsed("shape", parse_shape)
DEVICE = _Parsed("device", parse_device)
SEED = click.IntRange(0, (1 << 32) - 1)
SEEDS = _Parsed("seeds", parse_seeds)
LEVELS = _Parsed("levels", parse_levels)
STEPS = _Parsed("steps", parse_steps)
INTERVAL = _Parsed("low,high", parse_interval)
TIME = _Parsed("time", parse_time)
SHARD = _Parsed("k/n", parse_shard)
ARCHITECTURE = click.Choice(list("ABCDEFG"), case_sensitive=False)
BYTES = _Parsed("bytes", parse_bytes)
PARAMETER_COUNT = _Parsed("count", parse_parameter_count)
GROUP = _Parsed("pattern=length", parse_group)
EFFICIENCY = _Parsed("fraction|file", parse_efficiency)
PRECISION = click.Choice(["fp32", "bf16", "fp16"])
SAMPLING_PRECISION = click.Choice([*PRECISION.choices, "auto"])
SAMPLING_PRECISION_HELP = "Precision of activations; auto: half where that is fast; default: fp16 on CUDA, else fp32."
FILE = click.Path(path_type=Path, dir_okay=False)
PNG_FILE = _PNGFile(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
