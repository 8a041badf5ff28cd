"""The command line `edm2`: parses options, calls the library, prints.

cli         the group `edm2`, its errors and exit codes
commands/   one file per command
options/    options that several commands share, and the values of options
reports/    tables and texts
figures/    pictures
bench/      measurements of `edm2 bench`
run         training with bars, stop signals and grids of samples
evaluation  scores of a run while it trains
process     settings of the whole process, which library calls never make
"""
