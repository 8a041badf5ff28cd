"""Kill small runs at random moments, let them go on, and compare with a run that nobody touched.

    python tests/faults.py --count 200               one process
    python tests/faults.py --count 20 --processes 2  two with shares of the weights, one of which is killed

Weights, Adam's moments, averages, snapshots and stats.jsonl must be the same to the bit. Every second run is killed in
the middle of writing a checkpoint, a snapshot or a record.
"""

import argparse
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def main() -> None:
    """Kill as many runs as are asked for; an AssertionError tells of one that did not recover."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="runs to kill")
    parser.add_argument("--processes", type=int, default=1, help="processes of each")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other moments")
    options = parser.parse_args()
    sys.path[:0] = [str(TESTS.parent), str(TESTS / "support")]
    from killing import Killer

    with tempfile.TemporaryDirectory() as folder:
        killer = Killer(Path(folder), options.processes, options.seed)
        for number in range(options.count):
            killer.check(number)
            print(f"{number + 1} of {options.count} runs recovered, {killer.killed} of them from a kill", flush=True)


if __name__ == "__main__":
    main()
