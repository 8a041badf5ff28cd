"""Import of what a user names as `module:callable`: a dataset, a network, a detector. Never of what a file names."""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any


def import_target(target: str) -> Any:
    """Import `module:attribute`, also from the current folder, which the console script leaves out of sys.path."""
    module_name, _, attribute = target.rpartition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    return getattr(importlib.import_module(module_name), attribute)


def import_callable(target: str, what: str) -> Callable[..., Any]:
    """Import what a user names on the command line to make or to be `what`, such as "a detector"."""
    try:
        found = import_target(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{target}: cannot be imported ({error}); {what} is given as module:callable") from error
    if not callable(found):
        raise ValueError(f"{target}: is no function that could be called; {what} is given as module:callable")
    return found


def source_digest(target: str, classes: Iterable[type] = ()) -> str:
    """Hash of the source files of `module:callable` and of the classes of what it made, but for those of torch."""
    files: set[str] = set()
    for thing in (import_target(target), *classes):
        if not str(thing.__module__).startswith("torch."):
            with suppress(TypeError):  # a class that no file defines
                files.add(inspect.getsourcefile(thing) or "")
    digest = hashlib.sha256()
    for file in sorted(files - {""}):
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:16]


def is_target(text: str) -> bool:
    """True if a text is of the form `module:callable`, and no path."""
    module_name, separator, attribute = text.rpartition(":")
    names = [*module_name.split("."), attribute]
    return bool(separator) and all(name.isidentifier() for name in names) and not Path(text).exists()
