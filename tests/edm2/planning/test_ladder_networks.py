"""The ladder at the paper's size, counted without memory, and small networks of each letter in and out of files."""

import pytest
import torch
from ladder_networks import LETTERS, a_network, an_input

import edm2
from edm2 import load, sample_heun, save
from edm2.networks import NetworkConfig, fold, is_folded
from edm2.planning.costs import count_flops, count_parameters
from edm2.post_hoc_ema import SnapshotError

PARAMETERS = {
    "A": 295_902_724, "B": 291_757_828, "C": 277_816_512, "D": 277_816_512, "E": 277_816_512,
    "F": 280_212_672, "G": 280_212_709,
}  # fmt: skip
"""Without u(sigma): Table 1 has them in millions, 295.9, 291.8, 277.8 (three times) and 280.2 (twice)."""

HEAD = {letter: 129 if letter in "AB" else 128 for letter in LETTERS}
"""u(sigma), with a bias in A and B."""

OPERATIONS = {"A": 109.7, "B": 99.8, "C": 99.8, "D": 99.8, "E": 99.8, "F": 100.8, "G": 100.8}
"""Billion multiply-accumulates of convolutions, linear layers and attention."""


def size_s(letter: str) -> NetworkConfig:
    """ImageNet-512 latents."""
    return NetworkConfig(64, 4, 1000, config=letter, attn_resolutions=(32, 16, 8) if letter == "A" else (16, 8))


@pytest.mark.parametrize("letter", LETTERS)
def test_parameters_and_operations_of_the_paper(letter):
    assert count_parameters(size_s(letter)) == PARAMETERS[letter] + HEAD[letter]
    assert count_flops(size_s(letter)) / 1e9 == pytest.approx(OPERATIONS[letter], abs=0.1)


@pytest.mark.parametrize("letter", LETTERS)
def test_saved_and_loaded_networks_draw_the_same(letter, tmp_path):
    """Stored in half precision, with 11 bits, they draw too, by the same buffers, also where bfloat16 computes."""
    net, metadata = a_network(letter).requires_grad_(False), {"images_seen": 1, "sigma_rel": 0.1}
    save(net, tmp_path / "net.safetensors", metadata)
    loaded = load(tmp_path / "net.safetensors")
    assert loaded.config == net.config
    assert loaded.config.config == letter
    x, sigma, labels = an_input(net, 2)
    pictures = sample_heun(net, x, labels, num_steps=4)
    assert pictures.isfinite().all()
    assert torch.equal(sample_heun(loaded, x, labels, num_steps=4), pictures)
    assert is_folded(fold(loaded))
    with pytest.raises(ValueError, match="folded"):
        save(fold(loaded), tmp_path / "folded.safetensors", metadata)
    save(net, tmp_path / "half.safetensors", metadata, dtype=torch.float16)
    for dtype in (None, torch.bfloat16):
        half = load(tmp_path / "half.safetensors", dtype=dtype)
        for name, buffer in half.named_buffers():
            assert torch.equal(buffer, net.get_buffer(name)), name
        assert half(x, sigma, labels).isfinite().all()


def test_tensors_of_one_letter_are_not_a_network_of_another(tmp_path):
    """Where names tell: A and C, E and F. Where they do not, the description in the file decides."""
    for letter, other in ("AC", "EF"):
        net = a_network(letter)
        metadata = {"network": a_network(other).config.to_json()}
        with pytest.raises(SnapshotError, match=r"^its tensors do not fit[^\n]+$"):
            edm2.io.model.network_from_state(metadata, net.state_dict())
