"""Precision to sample in: the device's habit, and `auto` for what is fast."""

import pytest

from edm2.tools.options.networks import chosen_precision


@pytest.mark.parametrize(
    ("instructions", "given", "device", "chosen"),
    [
        ({"avx512_bf16"}, None, "cpu", "fp32"),  # an image depends on its seed alone, on every CPU
        ({"avx512_bf16"}, "auto", "cpu", "bf16"),
        ({"amx_tile"}, "auto", "cpu", "bf16"),
        (set(), "auto", "cpu", "fp32"),
        (set(), "bf16", "cpu", "bf16"),
        ({"avx512_bf16"}, "auto", "mps", "fp32"),
        (set(), None, "cuda", "fp16"),
        (set(), "auto", "cuda", "fp16"),
    ],
)
def test_precision_of_sampling(instructions, given, device, chosen, monkeypatch):
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(f"torch.cpu._is_{name}_supported", lambda name=name: name in instructions)
    assert chosen_precision(given, device) == chosen
    assert chosen_precision("auto", device, net_from="mine:Net") == "fp32"  # it computes as it likes
