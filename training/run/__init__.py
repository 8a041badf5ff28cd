"""The folder of a run and everything that is written into it: logs, snapshots, samples, checkpoints."""
