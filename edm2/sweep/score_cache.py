"""sweep.jsonl: all known scores, one line each, so that a killed sweep goes on where it was."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from types import NoneType
from typing import Any

from edm2.post_hoc_ema.files import parse_json
from edm2.sweep.evaluator import Score
from edm2.training.run.files import append_json_line


class ScoreCache:
    """Scores by hashes of everything that decides them.

    A line is on the disk when `add` returns. An unfinished line, left by a killed process, is ignored.

    Args:
        path: The file; created with the first score.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._scores: dict[str, Score] = {}
        if self.path.exists():
            for line in self.path.read_bytes().split(b"\n"):
                self._keep(line)

    def get(self, facts: dict[str, Any]) -> Score | None:
        """Return the score of these facts, or None."""
        return self._scores.get(key_of(facts))

    def add(self, facts: dict[str, Any], shown: dict[str, Any], score: Score) -> None:
        """Keep a score.

        Args:
            facts: JSON of everything that decides the score; becomes the line's key.
            shown: JSON to write beside the score, for people.
            score: The score.
        """
        key = key_of(facts)
        self._scores[key] = score
        append_json_line(self.path, {"key": key, **shown, **asdict(score)})

    def _keep(self, line: bytes) -> None:
        try:
            values = parse_json(line)
            key, *numbers = (values[name] for name in ("key", "distance", "deviation", "accuracy"))
        except (ValueError, KeyError, TypeError):
            return  # half a line: that score is computed again
        if isinstance(key, str) and all(type(number) in (int, float, NoneType) for number in numbers):
            self._scores[key] = Score(*numbers)


def key_of(facts: dict[str, Any]) -> str:
    """Hash of JSON, which tells different values apart."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
