"""The folder of a study: study.json, which says what all its runs have in common, and the runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edm2.post_hoc_ema.files import atomic_output, is_unfinished

Facts = Mapping[str, Any]


class StudyFolderError(ValueError):
    """A folder cannot be used; the message is one line that names it and the remedy."""


class StudyFolder:
    """Where a study keeps its files.

    Args:
        path: The folder; created by `claim`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.description = self.path / "study.json"

    def run(self, name: str, seed: int) -> Path:
        """Folder of a run."""
        return self.path / "runs" / f"{name}-seed{seed}"

    def claim(self, facts: Facts) -> None:
        """Make this folder the study that `facts` (JSON by name) tell from others, or check that it is already.

        Raises:
            StudyFolderError: it belongs to another study, or holds something else.
        """
        facts = json.loads(json.dumps(facts))  # tuples become lists, as they are in the file
        if self.description.exists():
            self._compare(facts)
            return
        if self.path.exists() and not (self.path.is_dir() and self._is_free()):
            raise StudyFolderError(f"{self.path}: is no empty folder and holds no study; choose another --out")
        with atomic_output(self.description) as temporary:
            temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    def _is_free(self) -> bool:
        """Whether nothing is there, or only a description that another process has begun."""
        return all(is_unfinished(path, self.description) for path in self.path.iterdir())

    def _compare(self, facts: Facts) -> None:
        try:
            known = dict(json.loads(self.description.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise StudyFolderError(f"{self.description}: is damaged; mend it, or choose another --out") from None
        names = [name for name in {**known, **facts} if known.get(name) != facts.get(name)]
        if names:
            told = ", ".join(f"{name} is {_text(known, name)} there and {_text(facts, name)} here" for name in names)
            raise StudyFolderError(
                f"{self.path}: holds another study ({told}); choose another --out, or repeat that one"
            )


def _text(facts: Facts, name: str) -> str:
    return json.dumps(facts[name]) if name in facts else "not given"
