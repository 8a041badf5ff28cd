"""Networks as pipelines of diffusers: `EDM2Pipeline.from_pretrained(folder)`, and `.save_pretrained(folder)`.

    denoiser.py    EDM2Denoiser, the network as diffusers stores it
    scheduler.py   EDM2HeunScheduler and EDM2MapScheduler: `edm2.sample_heun` and `sample_map` in the steps of diffusers
    pipeline.py    EDM2Pipeline: from seeds and classes to images
    arguments.py   arguments of a call in all the forms that users of diffusers know
    storing.py     saving to folders and the hub, and loading from there
    card.py        the model card in a saved folder
    folder.py      a saved folder read without diffusers

diffusers takes seconds to import, so names are loaded on first use; folder.py and card.py do without it.
A saved folder names the modules that its classes are in: `edm2.pipeline.denoiser` and `edm2.pipeline.scheduler`.
"""

from edm2 import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
