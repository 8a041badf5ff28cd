"""Benchmarks: `edm2 bench`, and what single promises about speed or memory are measured by.

    measuring.py    a benchmark from its settings to its report
    workload.py     what is worked on: a preset's network, random images
    sections.py     what is measured of ours: training, sampling, decoding, averaging
    rivals.py       what is compared, with plain.py and karras.py
    plain.py        config G, its training and its sampler in the form in which papers print them
    karras.py       KarrasUnet of denoising-diffusion-pytorch, at equal parameters
    clock.py        how long work takes; memory.py: what it needs; peak.py: what the device can do at most
    results.py      findings as data; report.py: as text

The command is `tools/commands/bench.py`. studies/ has one-off measurements: `python -m edm2.tools.bench.studies.NAME`.
"""
