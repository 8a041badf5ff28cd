"""Checking the fields of a dataclass against their annotations."""

import dataclasses
import math
import types
from typing import Any, Union, cast, get_args, get_origin, get_type_hints


def mistyped_fields(record: Any) -> list[str]:
    """Names of the fields of a dataclass object whose values do not fit their annotations.

    Numbers must be finite, and whole ones fit 63 bits; where a float is expected, a whole number is fine.
    """
    hints = get_type_hints(type(record))
    names = [field.name for field in dataclasses.fields(record)]
    return [name for name in names if not _fits(getattr(record, name), hints[name])]


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, kind) for kind in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and _are_items(value, get_args(hint))
    if dataclasses.is_dataclass(hint):
        return isinstance(value, cast(type, hint)) and not mistyped_fields(value)
    if hint is float and type(value) is float:
        return math.isfinite(value)
    if hint in (int, float):
        return type(value) is int and abs(value) < 1 << 63  # bool is an int for isinstance
    return hint is Any or isinstance(value, hint)


def _are_items(values: tuple[Any, ...], hints: tuple[Any, ...]) -> bool:
    if len(hints) == 2 and hints[1] is Ellipsis:
        return all(_fits(value, hints[0]) for value in values)
    return len(values) == len(hints) and all(map(_fits, values, hints))
