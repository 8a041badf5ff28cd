"""Tables and texts that the commands print and write.

description     snapshots, runs, datasets and their statistics, for `edm2 info` and `edm2 dataset`
run_plan        a run before it starts, for `edm2 train`
forecast        training on a cluster, for `edm2 plan`
reconstruction  errors of EMA lengths, for `edm2 reconstruct`
tables          scores of `edm2 sweep`
ablation        outcomes of `edm2 ablate`
"""
