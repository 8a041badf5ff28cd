"""What people may write on the command line: image counts, EMA lengths, seeds."""

import re

import click

UNITS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def parse_image_count(text: str) -> int:
    """A number of images: "1000", "128Ki", "8Mi", "2Gi" (Ki = 1024).

    Raises:
        ValueError: anything else.
    """
    match = re.fullmatch(r"(\d+)(Ki|Mi|Gi|)", text.strip())
    if not match:
        raise ValueError(f"{text!r} is no image count; write 1000, 128Ki, 8Mi or 2Gi")
    return int(match[1]) * UNITS[match[2]]


def format_image_count(images: int) -> str:
    """The shortest form that `parse_image_count` reads back: 131072 is "128Ki"."""
    for unit in ("Gi", "Mi", "Ki"):
        if images and images % UNITS[unit] == 0:
            return f"{images // UNITS[unit]}{unit}"
    return str(images)


def parse_sigma_rels(text: str) -> list[float]:
    """EMA lengths: "0.1", "0.05,0.1" or "0.01,0.02,...,0.25", ascending, each once.

    Raises:
        ValueError: not a list of numbers between 0 and 0.2886, or an ellipsis without two numbers before it.
    """
    from edm2.post_hoc_ema import sigma_rel_to_gamma  # here, because it brings torch along

    values: list[float] = []
    parts = [part.strip() for part in text.split(",")]
    for i, part in enumerate(parts):
        if part == "...":
            values += _fill(text, values, parts[i + 1 :])
        else:
            values.append(_number(part, text))
    for value in values:
        sigma_rel_to_gamma(value)  # refuses lengths that no power function has
    return sorted(set(values))


def _number(part: str, text: str) -> float:
    try:
        return float(part)
    except ValueError:
        raise ValueError(f"{part!r} in {text!r} is no number; write 0.1, or 0.05,0.10,...,0.25") from None


def _fill(text: str, before: list[float], after: list[str]) -> list[float]:
    """The numbers that an ellipsis stands for: on from the two before it, up to (not including) the one after it."""
    if len(before) < 2 or not after or before[-1] <= before[-2]:
        raise ValueError(f"{text!r}: an ellipsis needs two ascending numbers before it and one after it")
    start, step, last = before[-1], before[-1] - before[-2], _number(after[0], text)
    count = round((last - start) / step) - 1 if last > start else 0
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


IMAGES = _Parsed("images", parse_image_count)
SIGMA_RELS = _Parsed("lengths", parse_sigma_rels)
SEEDS = _Parsed("seeds", parse_seeds)
