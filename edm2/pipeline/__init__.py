"""Networks as pipelines of diffusers: `EDM2Pipeline.from_pretrained(folder)`, and `.save_pretrained(folder)`.

    denoiser.py    EDM2Denoiser, the network as diffusers stores it
    scheduler.py   EDM2HeunScheduler, the solver of `edm2.sample_heun` in diffusers' steps
    pipeline.py    EDM2Pipeline: from seeds and classes to images
    arguments.py   what it is called with, in all the forms that users of diffusers know
    storing.py     to and from folders and the hub
    card.py        the model card in a saved folder
    folder.py      a saved folder read without diffusers

diffusers takes seconds to import, so names are loaded on first use; folder.py and card.py do without it.
A saved folder names the modules that its classes are in: `edm2.pipeline.denoiser` and `edm2.pipeline.scheduler`.
"""

import importlib

_HOME_OF = {
    "EDM2Denoiser": "edm2.pipeline.denoiser",
    "EDM2HeunScheduler": "edm2.pipeline.scheduler",
    "EDM2Pipeline": "edm2.pipeline.pipeline",
    "is_pipeline_folder": "edm2.pipeline.folder",
    "read_pipeline_metadata": "edm2.pipeline.folder",
    "read_pipeline_tensors": "edm2.pipeline.folder",
}

__all__ = list(_HOME_OF)


def __getattr__(name: str) -> object:
    """Load a public name from its module the first time somebody asks for it."""
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'edm2.pipeline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
