"""The open EDM2: magnitude-preserving diffusion models and post-hoc EMA (Karras et al. 2024, arXiv 2312.02696v2).

This is the parent package of every folder, so it imports nothing by itself; public names are loaded on first use:

    import edm2
    net = edm2.load("digits8")                               # a Precond network in evaluation mode
    for batch in edm2.generate(net, seeds=range(16)): ...    # batches of images
"""

import importlib
from pathlib import Path

__version__ = "0.1.0"

_HOME_OF = {
    "load": "edm2.model",
    "save": "edm2.model",
    "read_metadata": "edm2.model",
    "sigma_steps": "edm2.sampling",
    "sample_heun": "edm2.sampling",
    "sample_deis": "edm2.solvers.deis",
    "sample_dpmpp_2m": "edm2.solvers.dpmpp",
    "sample_euler": "edm2.solvers.euler",
    "guided": "edm2.guidance",
    "without_labels": "edm2.guidance",
    "generate": "edm2.generation",
    "EDM2Pipeline": "edm2.pipeline",
}

__all__ = ["__version__", *_HOME_OF]

# In a bare checkout (nothing installed, or an installed wheel hidden by this folder) the sub-packages lie beside us.
_root = Path(__file__).resolve().parent.parent
if (_root / "setup.py").is_file() and (_root / "networks" / "__init__.py").is_file() and str(_root) not in __path__:
    __path__.append(str(_root))


def __getattr__(name: str) -> object:
    """Load a public name from its module the first time somebody asks for it."""
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'edm2' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
