"""One-off measurements behind numbers in docs/; run one by `python -m edm2.tools.bench.studies.NAME`."""
