"""One page that shows runs: records.py reads them, summary.py says what they are, grids.py draws them, page.py writes.

records.py   what a run has stored; a damaged line is passed over
summary.py   facts, settings unlike the preset's, warnings
scores.py    known scores of EMA lengths, times and guidance weights
grids.py     the same seeds at many settings
stills.py    dataset, samples over time, nearest training images
pictures.py  pictures for a page, kept in a folder so that they are made once
charts.py    specifications of plots, for Vega-Lite
page.py      one HTML file of all this, from templates/
"""
