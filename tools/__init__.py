"""The command line: `cli.py` holds the group `edm2`, one file per command beside it, each calling into the library."""
