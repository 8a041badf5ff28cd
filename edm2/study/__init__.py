"""Studies: train variants with the same data, seeds and budget, and compare them.

study.py     the runs of a study, how they are scored, and the files that remember it
summary.py   the outcomes of a variant over its seeds, and a few numbers of what `--diagnostics` recorded
"""
