"""sweep.jsonl: all known scores, one line each, so that a killed sweep goes on where it was."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edm2.sweep.evaluator import Score
from edm2.training.run.files import append_json_line


class ScoreCache:
    """Scores by hashes of everything that decides them.

    A line is on the disk when `add` returns. An unfinished line, left by a killed process, is ignored.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._scores: dict[str, Score] = {}
        if self.path.exists():
            self._scores = dict(_read_lines(self.path))

    def get(self, facts: dict[str, Any]) -> Score | None:
        """Return the score of these facts, or None."""
        return self._scores.get(key_of(facts))

    def add(self, facts: dict[str, Any], shown: dict[str, Any], score: Score) -> None:
        """Keep a score under the hash of all `facts` that decide it; `shown` is written beside it, for people."""
        key = key_of(facts)
        self._scores[key] = score
        append_json_line(self.path, {"key": key, **shown, **asdict(score)})


def _read_lines(path: Path) -> Iterator[tuple[str, Score]]:
    """Yield keys and scores; half a line is passed over, so that its score is computed again."""
    for line in path.read_bytes().splitlines():
        with suppress(ValueError):
            values = json.loads(line)
            yield values["key"], Score(values["distance"], values["deviation"], values["accuracy"])


def key_of(facts: dict[str, Any]) -> str:
    """Hash of JSON, which tells different values apart."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
