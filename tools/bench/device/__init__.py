"""Sections of `python -m edm2.tools.bench.device_suite`: what is asked of a GPU that is at hand for ten minutes.

setup       scale, device and ceilings; works timed by turns; launches and waiting counted
findings    rows of tables, as JSON and as Markdown
roofline    time that the counted bytes and operations need at the ceilings: what is expected before it is measured
golden      reading the golden numbers of tests/golden
machine     device, versions, ceilings
parity      a: golden numbers on the device, forms of one network, resuming to the bit
training    b: training steps beside the plain form, their parts, their launches
sampling    c: evaluations and samplers, with guidance, compiled, captured in CUDA graphs
updates     d: what happens to all weights once per step, and whether XXL fits
recovery    e: running out of memory, saving while training, copies to the device
real_run    f: a run from data to a grid and a network

A section is a function of the setup that returns its parts by name: functions that yield findings, each guarded.
"""
