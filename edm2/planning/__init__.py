"""Planning: the settings of a run and its costs, before it starts.

presets   settings by name: the paper's, those for one small GPU, the digits
ladder    settings of configs A to F, made from those of G
plan      from a preset, a dataset and choices to a `TrainingConfig`
costs     parameters, FLOPs and memory of a run, counted on tensors without data
cluster   GPUs by name, and clusters of them
speed     seconds per image of a GPU: the paper's figures scaled, or a measured efficiency
forecast  memory, bytes sent, speed and time of the four ways to train on a cluster
"""
