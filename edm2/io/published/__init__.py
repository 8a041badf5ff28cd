"""Network pickles of the published EDM2 program, read without executing anything.

Such a file holds a dict {encoder, dataset_kwargs, loss_fn, ema}. Its objects are recorded as the name of a class, the
text of the program that defines it (which is never looked at) and a dict of attributes. `ema` is the network; its
weights, usually float16, stay in the file until they are asked for.

    inert_pickle.py  reads a pickle as data: calls are recorded, never made; memory and time have limits
    arrays.py        tensors of torch and arrays of numpy among these data
    objects.py       objects of the published program among these data, and the tensors of its networks
    metadata.py      the metadata of a snapshot, from a pickle's contents and its name
    snapshot.py      `PublishedSnapshot`, which loads, and which `reconstruct` combines
"""

from edm2.io.published.metadata import is_reconstruction
from edm2.io.published.snapshot import PublishedSnapshot

__all__ = ["PublishedSnapshot", "is_reconstruction"]
