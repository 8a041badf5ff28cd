"""What people may write on the command line: image counts, EMA lengths, weights, numbers, sizes, devices, seeds."""

import math
import re
import threading
from collections.abc import Callable
from pathlib import Path

import click

UNITS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}

LETTERS = tuple("ABCDEFG")
"""Steps of the paper's ladder."""


def parse_image_count(text: str) -> int:
    """A number of images: "1000", "128Ki", "8Mi", "2Gi" (Ki = 1024).

    Raises:
        ValueError: anything else.
    """
    match = re.fullmatch(r"(\d+)(Ki|Mi|Gi|)", text.strip())
    if not match:
        raise ValueError(f"{text!r} is no image count; write 1000, 128Ki, 8Mi or 2Gi")
    return int(match[1]) * UNITS[match[2]]


def parse_sigma_rels(text: str) -> list[float]:
    """EMA lengths: "0.1", "0.05,0.1" or "0.01,0.02,...,0.25", ascending, each once.

    Raises:
        ValueError: not a list of numbers between 0 and 0.2886, or an ellipsis without two numbers before it.
    """
    return _parse_list(text, _length)


def parse_weights(text: str) -> list[float]:
    """Guidance weights: "1.5", "1,1.5,2" or "1,1.2,...,3", ascending, each once.

    Raises:
        ValueError: not a list of numbers, or an ellipsis without two numbers before it.
    """
    return _parse_list(text, lambda part, text: parse_number(part))


def parse_times(text: str) -> list[int]:
    """Times in images seen: "2Mi", "2Mi,4Mi" or "2Mi,4Mi,...,16Mi", ascending, each once.

    Raises:
        ValueError: not a list of image counts, or an ellipsis without two of them before it.
    """
    return [round(value) for value in _parse_list(text, lambda part, text: parse_image_count(part))]


def _parse_list(text: str, parse_one: Callable[[str, str], float]) -> list[float]:
    """Numbers separated by commas, ascending, each once; `parse_one` gets a part and the whole text."""
    values: list[float] = []
    parts = [part.strip() for part in text.split(",")]
    for i, part in enumerate(parts):
        if part == "...":
            values += _fill(text, values, [parse_one(after, text) for after in parts[i + 1 : i + 2]])
        else:
            values.append(parse_one(part, text))
    return sorted(set(values))


def _length(part: str, text: str) -> float:
    from edm2.post_hoc_ema import sigma_rel_to_gamma  # here, because it brings torch along

    try:
        value = float(part)
    except ValueError:
        raise ValueError(f"{part!r} in {text!r} is no number; write 0.1, or 0.05,0.10,...,0.25") from None
    sigma_rel_to_gamma(value)  # refuses lengths that no power function has
    return value


def _fill(text: str, before: list[float], after: list[float]) -> list[float]:
    """The numbers that an ellipsis stands for: on from the two before it, up to (not including) the one after it."""
    around = [*before[-2:], *after]
    if len(before) < 2 or not after or around != sorted(set(around)):
        raise ValueError(f"{text!r}: an ellipsis stands between two numbers and a third, ascending: 0.05,0.10,...,0.25")
    previous, start, last = around
    step = start - previous
    count = round((last - start) / step) - 1
    return [round(start + i * step, 10) for i in range(1, count + 1)]


def parse_seeds(text: str) -> list[int]:
    """Seeds: "7", "0-63" or "0-63,100", in the order given.

    Raises:
        ValueError: anything else, or a range upside down.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise ValueError(f"{part!r} in {text!r} is neither a seed nor a range of seeds; write 7, 0-63 or 0-63,100")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"seed range {part!r} is upside down; write {last}-{first}")
        seeds += range(first, last + 1)
    return seeds


def parse_number(text: str) -> float:
    """A finite number.

    Raises:
        ValueError: anything else; Python itself would take "nan" and "inf" for numbers.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is no finite number; write 0.01 or 1e-2")
    return value


def parse_resolution(text: str) -> tuple[int, int]:
    """Height and width of an image: "64" for a square, "64x96" for 64 rows and 96 columns.

    Raises:
        ValueError: anything else, or nothing to see.
    """
    match = re.fullmatch(r"\s*(\d+)(?:x(\d+))?\s*", text)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not height or not width:
        raise ValueError(f"{text!r} is no size of an image; write 64, or HEIGHTxWIDTH such as 64x96")
    return height, width


def parse_device(text: str) -> str:
    """A device of this machine: "cpu", "cuda", "cuda:1" or "mps".

    Raises:
        ValueError: there is no such device here.
    """
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
    """An interval of noise levels (low, high]: "0.19,1.61".

    Raises:
        ValueError: anything else, or upside down.
    """
    low, comma, high = text.partition(",")
    interval = (parse_number(low), parse_number(high)) if comma else (0.0, 0.0)
    if not 0 <= interval[0] < interval[1]:
        raise ValueError(
            f"{text!r} is no interval of noise levels; write LOW,HIGH with 0 <= LOW < HIGH, as in 0.19,1.61"
        )
    return interval


def parse_letter(text: str) -> str:
    """A step of the paper's ladder, "A" to "G", in either case.

    Raises:
        ValueError: anything else.
    """
    letter = text.strip().upper()
    if letter not in LETTERS:
        raise ValueError(f"{text!r} is not one of {', '.join(LETTERS)}")
    return letter


def parse_initial_network(text: str) -> str:
    """Where the network lies that training starts from: a file, or an included network, such as "digits8".

    Raises:
        ValueError: there is nothing of this name.
    """
    if Path(text).exists():
        return text
    from edm2.io.model import ASSETS  # here, because it brings torch along

    included = ASSETS / f"{text}.safetensors"
    if Path(text).name != text or not included.is_file():
        names = ", ".join(sorted(file.stem for file in ASSETS.glob("*.safetensors")))
        raise ValueError(f"{text}: no such file, and not the name of an included network ({names})")
    return str(included)


def parse_time(text: str) -> float:
    """Seconds: "90s", "30m", "11.5h" or "2d".

    Raises:
        ValueError: anything else.
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([smhd])\s*", text)
    seconds = float(match[1]) * units[match[2]] if match else 0.0
    if not 0 < seconds < threading.TIMEOUT_MAX:
        raise ValueError(f"{text!r} is no time; write 90s, 30m, 11.5h or 2d")
    return seconds


def parse_share(text: str) -> tuple[int, int]:
    """A share of some work: "1/2" for the first of two, up to "2/2".

    Raises:
        ValueError: anything else.
    """
    match = re.fullmatch(r"\s*(\d+)/(\d+)\s*", text)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise ValueError(f"{text!r} is no share; write 1/2 for the first of two, 2/2 for the second")
    return number, count


class _Parsed(click.ParamType):
    """A parameter type made of a parsing function; its ValueErrors become usage errors."""

    def __init__(self, name: str, parse) -> None:
        self.name = name
        self.parse = parse

    def convert(self, value, param, ctx):
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _PNGFile(click.Path):
    """A file to write a picture to; its name has to say what it will be."""

    def convert(self, value, param, ctx):
        path = super().convert(value, param, ctx)
        if path.suffix.lower() != ".png":
            self.fail(f"{path}: pictures are written as PNG files; write {path.with_suffix('.png')}", param, ctx)
        return path


IMAGES = _Parsed("images", parse_image_count)
SIGMA_RELS = _Parsed("lengths", parse_sigma_rels)
TIMES = _Parsed("images,...", parse_times)
WEIGHTS = _Parsed("weights", parse_weights)
NUMBER = _Parsed("number", parse_number)
RESOLUTION = _Parsed("resolution", parse_resolution)
DEVICE = _Parsed("device", parse_device)
SEED = click.IntRange(0, (1 << 32) - 1)
SEEDS = _Parsed("seeds", parse_seeds)
INTERVAL = _Parsed("low,high", parse_interval)
TIME = _Parsed("time", parse_time)
SHARE = _Parsed("k/n", parse_share)
LETTER = _Parsed("letter", parse_letter)
INITIAL_NETWORK = _Parsed("snapshot", parse_initial_network)
PRECISION = click.Choice(["fp32", "bf16", "fp16"])
FILE = click.Path(path_type=Path, dir_okay=False)
PNG_FILE = _PNGFile(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
