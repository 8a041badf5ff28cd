"""Averages of LoRAs: of the factors, of the product at a higher rank, and of the product brought back to the rank."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edm2.post_hoc_ema import power_profile, rebuild
from edm2.post_hoc_ema.foreign.facts import Facts
from edm2.post_hoc_ema.foreign.lora import stacked_config, truncated
from edm2.post_hoc_ema.foreign.recognition import recognize
from edm2.post_hoc_ema.reconstruction import Reconstruction

RANK, ALPHA, COUNT = 4, 8.0, 10


def trained_factors(lr: float = 0.02, steps: int = 600) -> list[tuple[Tensor, Tensor]]:
    """A [r, in] and B [out, r] of a LoRA that learns a matrix of rank 6, at every step."""
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(32, 6, generator=generator) @ torch.randn(6, 24, generator=generator) / 6**0.5
    A = nn.Parameter(torch.randn(RANK, 24, generator=generator) / 24**0.5)
    B = nn.Parameter(torch.zeros(32, RANK))
    adam = torch.optim.Adam([A, B], lr=lr)
    path = []
    for _ in range(steps):
        x = torch.randn(24, 16, generator=generator)
        adam.zero_grad()
        ((B @ A - wanted) @ x).square().mean().backward()
        adam.step()
        path.append((A.detach().clone(), B.detach().clone()))
    return path


@pytest.fixture(scope="module")
def path() -> list[tuple[Tensor, Tensor]]:
    return trained_factors()


NAMES = {
    "PEFT": ("base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"),
    "diffusers": ("unet.to_q.lora.down.weight", "unet.to_q.lora.up.weight"),
    "kohya": ("lora_unet_to_q.lora_down.weight", "lora_unet_to_q.lora_up.weight"),
    "embedding": ("emb.lora_embedding_A", "emb.lora_embedding_B"),
}


def store(folder: Path, path: list[tuple[Tensor, Tensor]], kind: str, config: dict | None = None) -> None:
    """Checkpoints of a LoRA, a few of them."""
    down, up = NAMES[kind]
    for i in range(1, COUNT + 1):
        t = i * len(path) // COUNT
        A, B = path[t - 1]
        state = {down: A, up: B, "bias": torch.tensor([float(t)])}
        if kind == "kohya":
            state["lora_unet_to_q.alpha"] = torch.tensor(ALPHA)
        inner = folder / f"checkpoint-{t}"
        inner.mkdir(parents=True)
        save_file(state, inner / "adapter_model.safetensors")
        if config:
            (inner / "adapter_config.json").write_text(json.dumps(config))


def delta(state: dict[str, Tensor], kind: str, config: dict | None = None) -> Tensor:
    """Change of the network's weights, as a reader of such a file computes it."""
    A, B = (state[name].double() for name in NAMES[kind])
    rank = len(A)
    scale = 1.0
    if kind == "kohya":
        scale = state["lora_unet_to_q.alpha"].item() / rank
    if config:
        assert config["r"] == rank
        scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    return scale * B @ A


CASES = [
    *((kind, None) for kind in NAMES),
    ("PEFT", {"r": RANK, "lora_alpha": ALPHA, "rank_pattern": {"q": RANK}}),
    ("PEFT", {"r": RANK, "lora_alpha": ALPHA, "use_rslora": True, "rank_pattern": None}),
]


@pytest.mark.parametrize(("kind", "config"), CASES, ids=["PEFT", "diffusers", "kohya", "embedding", "alpha", "rslora"])
def test_a_stack_is_the_average_of_the_products(kind: str, config: dict | None, path, tmp_path: Path):
    """As a reader sees it, whose scale falls with the rank; "product" is the nearest one of the old rank."""
    store(tmp_path, path, kind, config)
    found = recognize(tmp_path, Facts())
    reconstruction = Reconstruction(found.snapshots, [0.2])
    c = reconstruction.coefficients[None][:, 0]
    deltas = [delta({n: s.read(n) for n in s.names}, kind, config) for s in reconstruction.inputs]
    expected = sum(c_i * delta_i for c_i, delta_i in zip(c, deltas, strict=True))
    stack = rebuild(tmp_path, 0.2, lora="stack")
    stacked = stacked_config(config, COUNT) if config else None
    torch.testing.assert_close(delta(stack, kind, stacked), expected, rtol=1e-5, atol=1e-6)
    assert len(stack[NAMES[kind][0]]) == RANK * COUNT
    product = rebuild(tmp_path, 0.2, lora="product")
    U, S, V = torch.linalg.svd(expected)
    nearest = U[:, :RANK] * S[:RANK] @ V[:RANK]
    torch.testing.assert_close(delta(product, kind, config), nearest, rtol=1e-5, atol=1e-5)
    factors = rebuild(tmp_path, 0.2)
    for state in (stack, product):
        assert state["bias"] == factors["bias"]
    assert {name: t.shape for name, t in product.items()} == {name: t.shape for name, t in factors.items()}


@pytest.mark.parametrize(
    ("lr", "expected"),
    [(0.02, (0.0011, 0.0013, 0.0016, 0.0246)), (0.01, (0.0002, 0.0008, 0.0046, 0.0371)),
     (0.005, (0.0006, 0.0035, 0.0100, 0.0474))],
)  # fmt: skip
def test_how_far_averages_of_factors_are_from_averages_of_products(lr, expected):
    """About 1 % of |BA| at most up to the length 0.15; several for long ones (all steps averaged, without files)."""
    errors, path = [], trained_factors(lr)
    for sigma_rel in (0.05, 0.10, 0.15, 0.25):
        share = torch.linspace(0, 1, len(path) + 1, dtype=torch.float64) ** power_profile(1, sigma_rel).exponent
        c = share.diff()
        A, B, BA = (sum(c_i * M.double() for c_i, M in zip(c, Ms, strict=True))
                    for Ms in ([a for a, _ in path], [b for _, b in path], [b @ a for a, b in path]))  # fmt: skip
        errors.append(((B @ A - BA).norm() / BA.norm()).item())
    assert errors == pytest.approx(expected, rel=0.1, abs=1e-4)


def test_convolutions_and_narrow_layers(tmp_path: Path):
    """A 3x3 convolution has A [r, in, 3, 3] and B [out, r, 1, 1]; a layer of 2 inputs a product of rank 2."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"c.lora_A.weight": (4, 5, 3, 3), "c.lora_B.weight": (6, 4, 1, 1), "n.lora_A.weight": (4, 2)}
    shapes["n.lora_B.weight"] = (6, 4)
    for t in (1, 2, 3):
        state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        save_file(state, tmp_path / f"{t}.safetensors")
    stack, product = (rebuild(tmp_path, 0.2, lora=form) for form in ("stack", "product"))
    assert {name: tuple(tensor.shape) for name, tensor in product.items()} == shapes
    assert stack["c.lora_A.weight"].shape == (12, 5, 3, 3)
    assert stack["c.lora_B.weight"].shape == (6, 12, 1, 1)
    exact = stack["n.lora_B.weight"] @ stack["n.lora_A.weight"]
    torch.testing.assert_close(product["n.lora_B.weight"] @ product["n.lora_A.weight"], exact, rtol=1e-4, atol=1e-5)


def test_truncation_keeps_what_already_has_the_rank():
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (20, 30))
    A, B = torch.cat([A.T, 2 * A.T]), torch.cat([B, B], dim=1)
    small_A, small_B = truncated(A, B, rank=3)
    torch.testing.assert_close(small_B @ small_A, B @ A)


@pytest.mark.parametrize(
    ("name", "form", "complaint"),
    [
        ("x.hada_w1_a", "product", "x.hada_w1_a is no factor of a LoRA's product"),
        ("weight", "stack", "there are no LoRAs"),
        ("x.lora_A.weight", "stack", "there are no LoRAs"),  # without its partner
        ("weight", "sum", "lora='sum' must be factors, product or stack"),
    ],
)
def test_what_has_no_product_is_refused(name: str, form: str, complaint: str, tmp_path: Path):
    for t in (1, 2):
        save_file({name: torch.zeros(2, 2)}, tmp_path / f"{t}.safetensors")
    with pytest.raises(ValueError, match=complaint.replace("(", r"\(")):
        rebuild(tmp_path, 0.1, lora=form)


def test_a_configuration_without_a_rank_is_refused(path, tmp_path: Path):
    store(tmp_path, path, "PEFT", {"r": "4", "lora_alpha": 1})
    with pytest.raises(ValueError, match=r"adapter_config\.json is no configuration of a LoRA with a rank r"):
        rebuild(tmp_path, 0.1)
