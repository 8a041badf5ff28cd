"""JSON from anybody."""

import json
from typing import Any

DEEPEST = 64
"""Lists and objects inside each other; whoever walks through them has a stack of finite depth."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is none, or lists and objects lie in more than `DEEPEST` others.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"more than {DEEPEST} lists or objects inside each other") from None
    _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [item for holder in level if isinstance(holder, dict | list) for item in _items(holder)]
        if not level:
            return
    raise ValueError(f"more than {DEEPEST} lists or objects inside each other")


def _items(holder: dict[str, Any] | list[Any]) -> list[Any]:
    return list(holder.values()) if isinstance(holder, dict) else holder
