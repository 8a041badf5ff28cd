"""Encoder and decoder blocks against golden values and gradients, and attention."""

import math

import pytest
import torch
from golden_data import arrays, max_rel, present, select, table
from torch import Tensor

from edm2.networks import DecoderBlock, EncoderBlock, force_weight_normalization_, mp_sum, normalize

BLOCKS = {"enc": EncoderBlock, "dec": DecoderBlock}
OPTIONS = (
    "resample_mode", "resample_filter", "attention", "channels_per_head", "dropout",
    "res_balance", "attn_balance", "clip_act",
)  # fmt: skip


def golden_block(case: dict, state: dict[str, Tensor]) -> EncoderBlock | DecoderBlock:
    """The block of a case with its state; loading is strict, so the parameter names are checked too."""
    options = {name: case[name] for name in OPTIONS if name in case}
    block = BLOCKS[case["flavor"]](case["in_channels"], case["out_channels"], case["emb_channels"], **options)
    block.load_state_dict(state)
    return block.train(case["train"])


def test_blocks_golden(golden):
    """In float64, forced normalization included: rounding, where the filter's taps are exact in float32; else that of
    float32."""
    tensors, in_float64 = arrays(golden, "blocks/blocks.safetensors"), 0
    for case in present(table(golden, "blocks/blocks.json")["cases"], tensors):
        data = select(tensors, case["id"])
        block, exact = (golden_block(case, select(data, "state")) for _ in range(2))
        for each in (block, exact.double()):
            if case["train"]:
                force_weight_normalization_(each)
        x, emb = data["x"].clone().requires_grad_(), data["emb"].clone().requires_grad_()
        y = block(x, emb)
        y.backward(data["w"])
        gradients = {"grad_x": x.grad, "grad_emb": emb.grad}
        gradients |= {f"grad/{name}": parameter.grad for name, parameter in block.named_parameters()}
        assert max_rel(y, data["y"]) <= 5e-6, case
        for name, gradient in gradients.items():
            assert max_rel(gradient, data[name]) <= 2e-5, (case, name)
        if "y_fp64" in data:
            exact_taps = math.log2(sum(case.get("resample_filter", (1, 1)))).is_integer()
            y = exact(data["x"].double(), data["emb"].double())
            assert max_rel(y, data["y_fp64"]) <= (1e-13 if exact_taps else 1e-6), case
            in_float64 += 1
    assert in_float64


def a_block(kind, **options):
    torch.manual_seed(0)
    block = kind(12, 12, 10, **options).eval()
    torch.nn.init.constant_(block.emb_gain, 0.5)
    return block


@pytest.mark.parametrize("kind", [EncoderBlock, DecoderBlock])
def test_clip_bounds_what_leaves_a_block(kind):
    x, emb = 5 * torch.randn(2, 12, 8, 8), torch.randn(2, 10)
    assert a_block(kind, clip_act=0.5)(x, emb).abs().max() == 0.5
    free = a_block(kind, clip_act=None)(x, emb)
    assert free.abs().max() > 0.5
    torch.testing.assert_close(a_block(kind, clip_act=0.5)(x, emb), free.clamp(-0.5, 0.5))


@pytest.mark.parametrize("kind", [EncoderBlock, DecoderBlock])
def test_a_new_block_ignores_its_embedding(kind):
    """Gains start at zero (B.7): 1 + 0 emb. The first update of the gain lets the embedding in."""
    torch.manual_seed(0)
    block = kind(12, 12, 10)
    x = torch.randn(2, 12, 8, 8)
    assert torch.equal(block(x, torch.randn(2, 10)), block(x, torch.randn(2, 10)))
    torch.nn.init.constant_(block.emb_gain, 0.5)
    assert not torch.equal(block(x, torch.randn(2, 10)), block(x, torch.randn(2, 10)))


def test_channels_that_do_not_split_into_heads_are_refused():
    with pytest.raises(ValueError, match="12 channels do not split evenly into 5"):
        EncoderBlock(8, 12, 10, attention=True, channels_per_head=2.4)


def test_attention_equals_its_formula():
    """Written out with einsum: heads, order of weights (head, channel, q/k/v), softmax(q·k / sqrt(d)) over the keys."""
    block = a_block(DecoderBlock, attention=True, channels_per_head=4, clip_act=None).double()
    x = torch.randn(2, 12, 3, 5, dtype=torch.float64)
    qkv = torch.einsum("oc,nchw->nohw", normalize(block.attn_qkv.weight)[:, :, 0, 0] / math.sqrt(12), x)
    q, k, v = normalize(qkv.reshape(2, 3, 4, 3, 15), dim=2).unbind(3)
    weights = torch.einsum("nhcq,nhck->nhqk", q, k / 2).softmax(dim=3)  # d = 4
    y = torch.einsum("nhqk,nhck->nhcq", weights, v).reshape(2, 12, 3, 5)
    y = torch.einsum("oc,nchw->nohw", normalize(block.attn_proj.weight)[:, :, 0, 0] / math.sqrt(12), y)
    expected = mp_sum(x, y, t=0.3)
    torch.testing.assert_close(block.attend(x), expected, rtol=1e-10, atol=1e-12)


def test_encoder_output_depends_on_the_direction_of_its_input_only():
    """Pixel normalization: scaling the input of magnitude 1 to 100 changes it by eps = 1e-4, not 100-fold."""
    block = a_block(EncoderBlock)
    x, emb = torch.randn(2, 12, 8, 8), torch.randn(2, 10)
    assert max_rel(block(100 * x, emb), block(x, emb)) <= 1e-3  # ten times eps: some pixels are smaller than 1
