"""Check that README and docs/ are true:  python tests/check_docs.py  (or: make docs).

Relative links and their anchors, images, named files and tests exist, and commands in shell blocks parse. Prints a line
for each that does not; the exit code is then 1.
"""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent), str(TESTS / "support")]

from documentation import documents, problems  # noqa: E402


def main() -> int:
    """Number of lines printed, at most 1."""
    found = list(problems())
    for problem in found:
        print(problem)
    print(f"{len(documents())} documents, {len(found)} problems")
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main())
