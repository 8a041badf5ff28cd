"""The folder of a run and everything that is written into it.

run_folder.py         paths, and whose folder it is
output.py             snapshots, held-out losses, reports
logging.py            status line, stats.jsonl, TensorBoard
totals.py             sums between two reports
speed.py              images per second, and times for people
checkpoint.py         checkpoints, written while training goes on
checkpoint_index.py   reading checkpoints of earlier versions without executing anything
files.py              JSON files, records line by line, free folders
disk.py               the space that a run will need
failures.py           failures that end a run, in one line
"""
