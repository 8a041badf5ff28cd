"""Studies: train variants with the same data, seeds and budget, and compare them.

ladder.py        training settings of the paper's configs A to G
study.py         the runs of a study, how they are scored, and the files that remember it
summary.py       means and spreads over the seeds of a variant
diagnostics.py   a few numbers of what `--diagnostics` recorded
"""
