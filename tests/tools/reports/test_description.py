"""What `edm2 info` and the end of a training say of a run."""

import json
import shutil
from pathlib import Path

from command_line import TINY, edm2, succeed


def test_a_run_that_learned_its_images_by_heart_is_told_so(tiny_run: Path, tmp_path: Path):
    """Where somebody looks who has no report: at the end of the training, and in `edm2 info`."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    assert "WARNING" not in succeed("info", run)
    stats = run / "stats.jsonl"
    records = [json.loads(line) for line in stats.read_text().splitlines()]
    for record in records:
        record["holdout_error"] = 0.4 + abs(record["images_seen"] - 256) / 1000
    stats.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = "loss on held-out images has been rising since 256 images (64% so far)"
    assert found in succeed("info", run)
    again = edm2("train", "--data", "digits", "--duration", 512, *TINY, "--out", run)
    assert again.code == 0
    assert again.err.count(f"Warning: The {found}") == 1
