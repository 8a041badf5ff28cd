"""Network pickles of the published EDM2 program, read without executing anything.

Such a file holds a dict {encoder, dataset_kwargs, loss_fn, ema}. Its objects are recorded as the name of a class, the
text of the program that defines it (which nobody looks at here) and a dict of attributes. `ema` is the network; its
weights, usually float16, stay in the file until they are asked for.

    inert_pickle  the instructions of a pickle, and which of them are followed
    arrays        what torch and numpy write into pickles
    objects       what the published program writes into them
    weights       the tensors in a network
    metadata      what a file says about its network, in the words of our own snapshots
    snapshot      all this as a snapshot that loads and that `reconstruct` combines
"""

from edm2.io.published.metadata import is_reconstruction
from edm2.io.published.snapshot import PublishedSnapshot

__all__ = ["PublishedSnapshot", "is_reconstruction"]
