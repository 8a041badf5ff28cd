"""Planning: the settings of a run and its costs, before it starts.

presets   settings by name: the paper's, those for one small GPU, the digits
ladder    settings of configs A to F, made from those of G
plan      from a preset, a dataset and choices to a `TrainingConfig`
costs     parameters, FLOPs and memory of a run, counted on tensors without data
cluster   GPUs by name, clusters of them, and the bytes that processes send each other
speed     seconds per image of a GPU: the paper's figures scaled, or a measured efficiency
forecast  all of these for the four ways to train on a cluster
"""
