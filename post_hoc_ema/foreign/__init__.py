"""Files of other programs as snapshots; nothing in them is executed.

recognition.py  what the files of a folder are: their kind, times and profiles
tracked.py      averages of ema-pytorch and pytorch-posthoc-ema, and the profiles that they really have
checkpoints.py  a checkpoint: the weights in its files, found and read
facts.py        facts that the files do not tell
"""
