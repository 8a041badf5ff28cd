"""Benchmarks: `edm2 bench`, and measurements behind numbers in docs/.

measuring   a benchmark from its settings to its report
workload    the network and the random images that are worked on, and our training step
sections    measurements of ours: training, sampling, decoding, averaging
rivals      comparisons with plain and karras
plain       training and sampling with config G in the form in which papers print them
karras      KarrasUnet of denoising-diffusion-pytorch, at equal parameters
timing      time and memory of work, several works by turns
report      findings as data and as text
studies/    one-off measurements: python -m edm2.tools.bench.studies.NAME, from a checkout
"""
