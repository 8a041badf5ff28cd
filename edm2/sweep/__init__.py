"""Sweeps: score EMA lengths, times and guidance of a run, each point once."""
