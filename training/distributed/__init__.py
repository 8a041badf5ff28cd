"""Training by several processes.

processes.py       rank and number of processes, broadcast, barrier, stopping in the same step
strategies.py      one process, copies (DDP) or shards (FSDP2) of a network
"""
