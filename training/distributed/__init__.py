"""Training by several processes.

processes.py       rank and number of processes, broadcast, barrier
strategies.py      one process, copies (DDP) or shards (FSDP2) of a network
stop_signal.py     stopping in the same step
"""
