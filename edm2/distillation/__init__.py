"""Distillation of a denoiser into a flow map, which draws in one to four evaluations (docs/few_steps.md).

teacher.py   the teacher of a run: a network, guided or not
presets.py   settings by name
samples.py   samples of the teacher as a dataset
plan.py      the configuration of a run, from its teacher, a preset, a dataset and the user's choices
"""
