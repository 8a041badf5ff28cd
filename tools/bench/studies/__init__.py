"""One-off measurements behind numbers in docs/; each runs by `python -m edm2.tools.bench.studies.NAME`."""
