"""Sweeps: score EMA lengths, times and guidance of a run, each point once.

sweep.py             the points of a sweep, and the sweeper that scores them
averages.py          networks averaged from a run's snapshots
guides.py            networks to guide away from
autoguidance.py      guidance by many guides, each at its best settings
guidance_methods.py  those guides, and what each leaves to choose
evaluator.py         the score of a network by its samples
search.py            the lowest point with few evaluations
score_cache.py       sweep.jsonl, the scores that are known
reference_cache.py   statistics of real images, computed once
"""
