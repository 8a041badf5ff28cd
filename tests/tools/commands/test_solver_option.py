"""`--solver`: which one drew, at what cost, stands with the images and in the score's key."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from command_line import succeed

from edm2.sampling.samplers import SAMPLERS, Sampler

QUICK = ("--seeds", "0-3", "--steps", 6, "--device", "cpu")
SCORED = ("--std", 0.1, "--samples", 20, "--steps", 3, "--device", "cpu")


@pytest.mark.parametrize(("sampler", "count"), [("heun", 11), ("deis", 6), ("dpmpp_2m", 6), ("euler", 6)])
def test_images_are_drawn_by_it_and_say_so(outspoken_network, tmp_path, evaluations, sampler, count):
    option = () if sampler == "heun" else ("--solver", sampler)  # heun is the default
    shown = succeed("generate", outspoken_network, *QUICK, *option, "--out", tmp_path)
    assert evaluations == [(4, True)] * count
    assert f"({count} evaluations each, {sampler})" in shown
    assert json.loads((tmp_path / "generation.json").read_text())["solver"] == sampler


def test_a_new_sampler_is_one_file_and_one_registration(
    tiny_run, outspoken_network, tmp_path, evaluations, monkeypatch
):
    (tmp_path / "own_sampler.py").write_text(
        "from edm2 import sample_euler\n\n"
        "def sample_own(denoise, noise, labels=None, **options):\n"
        "    return sample_euler(denoise, noise, labels, **options)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SAMPLERS, "own", Sampler("own", module="own_sampler"))
    shown = succeed("generate", outspoken_network, *QUICK, "--solver", "own", "--out", tmp_path / "images")
    assert "(6 evaluations each, own)" in shown
    assert evaluations == [(4, True)] * 6
    assert "(3 evaluations each, own)" in succeed("sweep", tiny_run, *SCORED, "--solver", "own", "--out", tmp_path)
    assert "|own]" in succeed("generate", "--help")


def test_a_sweep_keeps_scores_of_solvers_apart(tiny_run: Path, tmp_path: Path, evaluations, monkeypatch):
    run = shutil.copytree(tiny_run, tmp_path / "run")  # the printed commands put a network into it
    sweep = ("sweep", run, *SCORED, "--out", tmp_path)
    assert "images (5 evaluations each, heun)" in succeed(*sweep)
    evaluations.clear()
    shown = succeed(*sweep, "--solver", "deis")
    assert "images (3 evaluations each, deis)" in shown
    assert len(evaluations) == 2 * 3  # the average, and the raw weights
    evaluations.clear()
    for options in ((), ("--solver", "deis")):
        succeed(*sweep, *options)
    assert evaluations == []  # both are known

    monkeypatch.chdir(tmp_path)
    *_, reconstruct, draw = [line.strip() for line in shown.splitlines() if line.strip().startswith("edm2 ")]
    assert "--solver deis" in draw
    for command in (reconstruct, draw):
        succeed(*shlex.split(command)[1:])
    assert evaluations == [(64, True)] * 3
