"""`edm2 reconstruct` for the files of other programs: what it takes them for, writes and refuses."""

import json
from pathlib import Path

import pytest
import torch
from command_line import complaint, edm2, succeed
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from edm2.post_hoc_ema import rebuild
from edm2.post_hoc_ema.snapshot import read_metadata

NAME = "ema-000000000400-0.1000.safetensors"


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Checkpoints as transformers writes them, and the final weights beside them."""
    generator = torch.Generator().manual_seed(0)
    for t in (100, 200, 300, 400):
        folder = tmp_path / f"output/checkpoint-{t}"
        folder.mkdir(parents=True)
        save_file({"w": torch.randn(50, generator=generator)}, folder / "model.safetensors")
    save_file({"w": torch.zeros(50)}, tmp_path / "output/model.safetensors")
    return tmp_path / "output"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """Checkpoints of a LoRA as PEFT writes them."""
    for t in (100, 200, 400):
        folder = tmp_path / f"lora/checkpoint-{t}"
        folder.mkdir(parents=True)
        factors = {"q.lora_A.weight": torch.ones(2, 5) * t, "q.lora_B.weight": torch.ones(3, 2)}
        save_file(factors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4, "peft_type": "LORA"}))
    return tmp_path / "lora"


def test_a_plan_tells_what_the_files_are_taken_for(checkpoints: Path):
    shown = succeed("reconstruct", checkpoints, "--std", "0.1,0.2", "--plan")
    assert "checkpoint-300: plain weights at 300" in shown
    assert "Left aside: model.safetensors" in shown
    assert "From 4 snapshots, at 400" in shown
    assert not (checkpoints / "reconstructed").exists()
    shown = succeed("reconstruct", checkpoints, "--std", "0.1", "--plan", "--decay", "0.99", "--update-every", 2)
    assert "averages of constant decay 0.99, updated every 2" in shown
    assert "checkpoint-300: constant decay of half-life 137.9 at 300" in shown


def test_files_are_those_of_the_python_call(checkpoints: Path):
    succeed("reconstruct", checkpoints, "--std", "0.1", "--clock-from", 50)
    path = checkpoints / "reconstructed" / NAME
    torch.testing.assert_close(load_file(path)["w"], rebuild(checkpoints, 0.1, clock_from=50)["w"])
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format"] == "pt"  # transformers before version 5 refuses files that do not say so
    said = read_metadata(path)
    assert (said["images_seen"], said["sigma_rel"], said["profile"]["clock"]) == (400, 0.1, 50)
    assert said["reconstructed_from"] == [[100, 0], [200, 0], [300, 0], [400, 0]]
    succeed("reconstruct", checkpoints, "--std", "0.1")  # its own results are no checkpoints
    torch.testing.assert_close(load_file(path)["w"], rebuild(checkpoints, 0.1)["w"])


def test_an_adapter_becomes_a_folder_that_peft_reads(lora: Path):
    """With the rank that its tensors have."""
    shown = succeed("reconstruct", lora, "--std", "0.2")
    assert "--lora product is more exact" in shown
    for form, rank in (("factors", 2), ("product", 2), ("stack", 6)):
        succeed("reconstruct", lora, "--std", "0.2", "--lora", form, "--out", lora / form, "--dtype", "fp16")
        folder = lora / form / "ema-000000000400-0.2000"
        tensors = load_file(folder / "adapter_model.safetensors")
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == rank
        assert tensors["q.lora_A.weight"].shape == (rank, 5)
        assert tensors["q.lora_A.weight"].dtype == torch.float16


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--tracked", "0.05,0.1", "--update-every", 10), 1, "holds no files of ema-pytorch"),
        (("--part", "unet"), 1, "has weights in unet"),
        (("--lora", "stack"), 1, "there are no LoRAs"),
        (("--clock-from", 400), 1, "is not after 400"),
        (("--at", 150), 1, "the nearest times are 100 and 200"),
        (("--method", "density"), 1, "knows power functions from time 0 only"),
        (("--tracked", "0.05,long"), 2, "'long' in '0.05,long' is no number"),
        (("--decay", 1), 2, "--decay"),
        (("--update-every", 0), 2, "--update-every"),
    ],
)
def test_options_that_do_not_fit(checkpoints: Path, options: tuple, code: int, said: str):
    result = edm2("reconstruct", checkpoints, "--std", "0.1", *options)
    assert result.code == code
    assert said in complaint(result.err)
    assert not (checkpoints / "reconstructed").exists()


def test_runs_tell_their_profiles_themselves(tiny_run: Path):
    result = edm2("reconstruct", tiny_run, "--std", "0.1", "--decay", "0.99")
    assert result.code == 2
    assert "which tell their profiles" in complaint(result.err)
