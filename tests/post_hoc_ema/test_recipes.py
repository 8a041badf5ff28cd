"""The recipes of docs/post_hoc_ema.md and of the README, run as they are written, on a toy."""

import re
from pathlib import Path

import torch

from edm2.post_hoc_ema import find_snapshots

ROOT = Path(__file__).resolve().parents[2]


def recipes(page: str, section: str) -> str:
    """All Python of a section, subsections included, as one program."""
    text = (ROOT / page).read_text("utf-8")
    level = re.search(rf"^(#+) {section}$", text, re.MULTILINE)
    assert level is not None, section
    [body] = re.findall(rf"^{level[1]} {section}\n(.*?)(?=^#{{1,{len(level[1])}}} |\Z)", text, re.MULTILINE | re.DOTALL)
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", body, re.MULTILINE | re.DOTALL))


def test_a_plain_loop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(recipes("docs/post_hoc_ema.md", "I start now"), "recipe", "exec"), {})
    assert len(find_snapshots("ema")) == 16


def test_a_lora_and_a_learned_weighting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"model": torch.nn.Linear(8, 8)}
    exec(compile(recipes("docs/post_hoc_ema.md", "I train a LoRA"), "recipe", "exec"), names)
    assert names["weighting"].linear.bias.grad != 0


def test_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(recipes("README.md", "Post-hoc EMA for any PyTorch model"), "recipe", "exec"), {})
    assert find_snapshots("ema")
