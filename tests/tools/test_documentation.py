"""The check of the documentation finds what is wrong with a page, and nothing wrong with ours."""

from pathlib import Path

import pytest
from documentation import problems


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository of one picture, two tests and a Makefile."""
    for path, text in {
        "docs/there.png": "",
        "docs/more.md": "# More, and `code`\n\n# A [link](there.png)\n## A link\n# What it is: `edm2`, *today*\n",
        "tests/a/test_a.py": "def test_one_thing():\n    pass\n\n\ndef test_another_thing():\n    pass\n",
        "Makefile": "test: lint\nlint:\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "![picture](docs/there.png) and [page](docs/more.md#more-and-code)",
        "[second of its name](docs/more.md#a-link-1) and [others](docs/more.md#what-it-is-edm2-today)",
        "# Here\n\n[above](#here), [elsewhere](https://example.org/nothing.md)",
        "| done | `test_a.py::test_one_…`, `…_another_…`, `tests/a/test_a.py` |",
        "```bash\nedm2 generate digits8 --seeds 0-7   # a comment\nmake lint\n```",
        "```\ntorchrun --nproc-per-node 2 -m edm2 train --data digits \\\n    --out runs/x\n```",
        "```\npython -m edm2.tools.bench.studies.solvers digits8 --images 4\n```",
        "```python\nedm2 nonsense\n```",
    ],
)
def test_nothing_is_wrong_with_what_is_there(root: Path, text: str):
    (root / "README.md").write_text(text + "\n")
    assert list(problems(root)) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("![picture](docs/gone.png)", "docs/gone.png"),
        ('<img src="gone.png">', "gone.png"),
        ("[page](docs/gone.md)", "docs/gone.md"),
        ("[page](docs/more.md#less)", "no such heading"),
        ("[page](#less)", "no such heading"),
        ("read `tools/gone.py`", "tools/gone.py"),
        ("| done | `test_b.py` |", "test_b.py"),
        ("| done | `tests/b/test_a.py::test_one_thing` |", "tests/b/test_a.py"),
        ("| done | `test_a.py::test_two_…` |", "test_two_…"),
        ("| done | `test_a.py`, `…_something_…` |", "…_something_…"),
        ("```bash\nedm2 nonsense\n```", "nonsense"),
        ("```\nedm2 generate digits8 --sedes 0-7\n```", "--sedes"),
        ("```\ntorchrun --nproc-per-node 2 -m edm2 train \\\n    --presets digits8\n```", "--presets"),
        ("```\npython -m edm2.tools.bench.studies.solvers digits8 --image 4\n```", "--image"),
        ("```\npython -m edm2.tools.bench.studies.gone\n```", "gone"),
        ("```bash\nmake nonsense\n```", "nonsense"),
    ],
)
def test_what_is_wrong_is_found(root: Path, text: str, wrong: str):
    (root / "README.md").write_text(text + "\n")
    found = list(problems(root))
    assert found
    assert all(line.startswith("README.md: ") and wrong in line for line in found)


def test_the_documentation_is_true():
    assert list(problems()) == []
