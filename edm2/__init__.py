"""The open EDM2: magnitude-preserving diffusion models and post-hoc EMA (Karras et al. 2024, arXiv 2312.02696v2).

This is the parent package of every folder, so it imports nothing by itself; public names are loaded on first use:

    import edm2
    net = edm2.load("digits8")                               # a Precond network in evaluation mode
    for batch in edm2.generate(net, seeds=range(16)): ...    # batches of images
"""

import ast
import importlib
from collections.abc import Callable
from pathlib import Path

__version__ = "0.1.0"

# In a bare checkout (nothing installed, or an installed wheel hidden by this folder) the sub-packages lie beside us.
_root = Path(__file__).resolve().parent.parent
if (_root / "setup.py").is_file() and (_root / "networks" / "__init__.py").is_file() and str(_root) not in __path__:
    __path__.append(str(_root))


def lazy_names(package: str, file: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Make `__getattr__`, `__dir__` and `__all__` of a package that loads its public names on first use (PEP 562).

    The stub beside the package's `__init__.py` lists the names once: as imports, which type checkers and editors
    understand, and which are followed here.

    Args:
        package: Name of the package.
        file: Its `__init__.py`.
    """
    imports = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8")).body
    home_of = {
        alias.asname: node.module
        for node in imports
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.asname
    }

    def __getattr__(name: str) -> object:
        if name in home_of:
            return getattr(importlib.import_module(home_of[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    names = list(home_of)
    return __getattr__, lambda: names, names


__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
__all__.append("__version__")
