"""The open EDM2: magnitude-preserving diffusion models and post-hoc EMA (Karras et al. 2024, arXiv 2312.02696v2).

This is the parent package of every folder, so it imports nothing by itself; public names are loaded on first use:

    import edm2
    net = edm2.load("digits8")                               # a Precond network in evaluation mode
    for batch in edm2.generate(net, seeds=range(16)): ...    # batches of images
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__version__ = "0.1.0"

# In a bare checkout (nothing installed, or an installed wheel hidden by this folder) the sub-packages lie beside us.
_root = Path(__file__).resolve().parent.parent
if (_root / "setup.py").is_file() and (_root / "networks" / "__init__.py").is_file() and str(_root) not in __path__:
    __path__.append(str(_root))


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Make `__getattr__` and `__dir__` of a package that loads its public names on first use (PEP 562).

    Args:
        package: Name of the package.
        homes: Public names by the module that defines them.
    """
    home_of = {name: module for module, names in homes.items() for name in names}

    def __getattr__(name: str) -> object:
        if name in home_of:
            return getattr(importlib.import_module(home_of[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__, lambda: sorted(home_of)


_HOMES = {
    "edm2.io.model": ["load", "save", "read_metadata"],
    "edm2.sampling.samplers.heun": ["sigma_steps", "sample_heun"],
    "edm2.sampling.samplers.deis": ["sample_deis"],
    "edm2.sampling.samplers.dpmpp": ["sample_dpmpp_2m"],
    "edm2.sampling.samplers.euler": ["sample_euler"],
    "edm2.sampling.guidance": ["guided", "without_labels"],
    "edm2.sampling.generation": ["generate"],
    "edm2.pipeline": ["EDM2Pipeline"],
}

__all__ = ["__version__", *(name for names in _HOMES.values() for name in names)]
__getattr__, _ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
