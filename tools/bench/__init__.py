"""Benchmarks: what a promise about speed or memory is measured by. `python -m edm2.tools.bench.NAME`."""
