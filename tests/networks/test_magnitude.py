"""The functions of magnitude.py against golden values and gradients, and what they do to magnitudes."""

import math

import pytest
import torch
from golden_data import max_rel, ops_cases
from torch import Tensor

from edm2.networks import mp_cat, mp_silu, mp_sum, normalize, resample
from edm2.networks.magnitude import NormalizeWithJvp, mp_sum_weights

# Rounding of the dtype times a few operations; the golden README states them.
TOLERANCE = {"float32": 2e-6, "float64": 1e-14, "float16": 2e-3, "bfloat16": 1e-2}
SAMPLES = 1_000_000
MAGNITUDE_ERROR = 3e-3  # four times 1 / sqrt(2 SAMPLES), the sampling error of a Gaussian's root-mean-square


def magnitude(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def differentiable(x: Tensor) -> Tensor:
    return x.clone().requires_grad_()


OPERATIONS = {
    "normalize": lambda case, x: normalize(x, case["dim"] and tuple(case["dim"]), case["eps"]),
    "resample": lambda case, x: resample(x, case["mode"], tuple(case["f"])),
    "mp_silu": lambda case, x: mp_silu(x),
    "mp_sum": lambda case, a, b: mp_sum(a, b, case["t"]),
    "mp_cat": lambda case, a, b: mp_cat(a, b, case["dim"], case["t"]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_values_and_gradients_golden(golden, name):
    for case, data in ops_cases(golden, name):
        inputs = {key: differentiable(data[key]) for key in ("x", "a", "b") if key in data}
        y = OPERATIONS[name](case, *inputs.values())
        gradients = torch.autograd.grad(y, tuple(inputs.values()), data.get("w", torch.ones_like(y)))
        # The published filter is float32: in float64, resampling agrees to its rounding only.
        tolerance = 3e-7 if (name, case["dtype"]) == ("resample", "float64") else TOLERANCE[case["dtype"]]
        results = {"y": y} | {f"grad_{key}": gradient for key, gradient in zip(inputs, gradients, strict=True)}
        for key, ours in results.items():
            assert ours.dtype == data[key].dtype, (case, key)
            assert max_rel(ours, data[key]) <= tolerance, (case, key)
        if "y_fp64" in data:  # from the float32 inputs
            in_float64 = OPERATIONS[name](case, *(x.double() for x in inputs.values()))
            assert in_float64.dtype == torch.float64
            assert max_rel(in_float64, data["y_fp64"]) <= TOLERANCE["float64"], case


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 1e3])
def test_normalize_maps_magnitude_r_to_r_over_r_plus_eps(scale):
    x = scale * gaussian(5, 7, 3, 3, dtype=torch.float64)
    r = x.square().mean(dim=(1, 2, 3)).sqrt()
    y = normalize(x).square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(y, r / (r + 1e-4), rtol=1e-12, atol=0)


def test_normalize_default_is_one_scale_per_first_index():
    """1000² is beyond float16, whose largest number is 65504: so the root-mean-square is accumulated in float32."""
    x = gaussian(4, 6, 3)
    torch.testing.assert_close(normalize(x), torch.stack([row / (1e-4 + row.square().mean().sqrt()) for row in x]))
    torch.testing.assert_close(normalize(x), normalize(x, dim=(1, 2)))
    torch.testing.assert_close(normalize(x, dim=1), normalize(x, dim=(1,)))
    large = normalize(torch.full((1, 64), 1000.0, dtype=torch.float16))
    assert magnitude(large) == pytest.approx(1, abs=1e-3)  # half a unit in the last place of float16 at 1


def test_mp_silu_keeps_the_magnitude_of_a_unit_gaussian():
    """By quadrature, so no sampling error: 0.59647 / 0.596 = 1.0008, since Eq. 81 rounds its constant."""
    x = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    density = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    assert torch.trapezoid(density * mp_silu(x) ** 2, x).sqrt() == pytest.approx(1.0008, abs=5e-5)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_mp_sum_keeps_unit_magnitude_and_its_ends(t):
    a, b = gaussian(2, SAMPLES)
    assert magnitude(mp_sum(a, b, t)) == pytest.approx(1, abs=MAGNITUDE_ERROR)
    torch.testing.assert_close(mp_sum(a, b, 0), a)
    torch.testing.assert_close(mp_sum(a, b, 1), b)
    w_a, w_b = mp_sum_weights(t)  # what layers and additions are given instead
    torch.testing.assert_close(w_a * a + w_b * b, mp_sum(a, b, t))


@pytest.mark.parametrize("channels", [(8, 8), (3, 29), (16, 1)])
@pytest.mark.parametrize("t", [0.2, 0.5, 0.7])
def test_mp_cat_keeps_unit_magnitude_and_weighs_the_branches(channels, t):
    """Whatever their channel counts, the squared norms of the branches stand in the ratio (1 - t)² : t²."""
    n_a, n_b = channels
    pixels = SAMPLES // min(channels)  # enough elements for the smaller branch, too
    a, b = gaussian(1, n_a, pixels, seed=1), gaussian(1, n_b, pixels, seed=2)
    y = mp_cat(a, b, t=t)
    assert magnitude(y) == pytest.approx(1, abs=MAGNITUDE_ERROR)
    norm_a, norm_b = y[:, :n_a].norm(), y[:, n_a:].norm()
    assert norm_a / norm_b == pytest.approx((1 - t) / t, rel=2 * MAGNITUDE_ERROR)


@pytest.mark.parametrize("filter", [(1, 1), (1, 3, 3, 1), (1, 2, 3, 4), (1, 5, 10, 10, 5, 1)])
@pytest.mark.parametrize("mode", ["keep", "down", "up"])
def test_resample_keeps_the_value_of_a_constant_image(filter, mode):
    """Away from the border, where longer filters reach into the zero padding."""
    y = resample(torch.full((1, 2, 16, 24), 1.7, dtype=torch.float64), mode, filter)
    inside = y[..., 4:-4, 4:-4]
    if mode == "up" and filter == (1, 2, 3, 4):  # even and odd taps sum to 4 and 6 of 10: a checkered gain
        inside = torch.nn.functional.avg_pool2d(inside, 2)
    torch.testing.assert_close(inside, torch.full_like(inside, 1.7), rtol=3e-7, atol=0)  # the filter is float32


@pytest.mark.parametrize("size", [(8, 8), (2, 6), (12, 4)])
def test_box_filter_downwards_undoes_it_upwards(size):
    x = gaussian(2, 3, *size)
    up = resample(x, "up")
    assert up.shape == (2, 3, 2 * size[0], 2 * size[1])
    torch.testing.assert_close(resample(up, "down"), x)


@pytest.mark.parametrize("filter", [(1, 1), (1, 3, 3, 1), (1, 2, 3, 4)])
def test_up_is_four_times_the_adjoint_of_down(filter):
    """<up(x), y> = 4 <x, down(y)>: the same taps, doubled along each of two axes."""
    x, y = gaussian(2, 3, 6, 4, dtype=torch.float64), gaussian(2, 3, 12, 8, seed=1, dtype=torch.float64)
    left, right = (resample(x, "up", filter) * y).sum(), 4 * (x * resample(y, "down", filter)).sum()
    torch.testing.assert_close(left, right)


# Gradients by hand


@pytest.mark.parametrize(
    ("shape", "dim"), [((5, 4, 3, 3), None), ((2, 6, 3, 4), 1), ((2, 5, 3, 4), -1), ((7, 9), (1,))]
)
@pytest.mark.parametrize("magnitude", [1.0, 0.3, -2.0])
def test_gradient_of_normalize_is_that_of_its_formula(shape, dim, magnitude):
    """As autograd has it, of the formula as such."""
    x = differentiable(gaussian(*shape, dtype=torch.float64))
    dims = tuple(range(1, x.ndim)) if dim is None else dim
    written_out = magnitude * x / (1e-4 + x.square().mean(dim=dims, keepdim=True).sqrt())
    g = gaussian(*shape, seed=1, dtype=torch.float64)
    (expected,) = torch.autograd.grad(written_out, x, g)
    y = normalize(x, dim, magnitude=magnitude)
    torch.testing.assert_close(y, written_out, rtol=1e-13, atol=0)
    torch.testing.assert_close(torch.autograd.grad(y, x, g)[0], expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("magnitude", [1.0, -0.05])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 0.0])
def test_parameters_have_the_gradient_that_activations_have(scale: float, magnitude: float):
    """Parameters are kept for the backward pass as they are, activations normalized: only rounding may differ."""
    x, g = scale * gaussian(4, 3, 3, 3), gaussian(4, 3, 3, 3, seed=1)
    of_activation, of_parameter = differentiable(x), torch.nn.Parameter(x.clone())
    for leaf in (of_activation, of_parameter):
        normalize(leaf, magnitude=magnitude).backward(g)
    torch.testing.assert_close(
        of_parameter.grad, of_activation.grad, rtol=1e-5, atol=1e-6 * of_activation.grad.abs().max()
    )


def test_a_parameter_that_is_normalized_is_not_kept_twice():
    """In half precision nobody else keeps the normalized weight of a layer."""
    layer = torch.nn.Parameter(gaussian(4, 3, 3, 3))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        y = normalize(layer)
    assert layer.data_ptr() in kept
    assert y.data_ptr() not in kept


def test_gradient_of_normalize_at_zero_is_that_of_a_division_by_eps():
    """A row of zeros has no direction, so nothing is taken away; its neighbours do not notice."""
    x = gaussian(3, 8)
    x[1] = 0
    x, g = differentiable(x), gaussian(3, 8, seed=1)
    (grad,) = torch.autograd.grad(normalize(x), x, g)
    torch.testing.assert_close(grad[1], g[1] / 1e-4)
    torch.testing.assert_close(grad[::2], torch.autograd.grad(normalize(x[::2]), x, g[::2])[0][::2])


@pytest.mark.parametrize("dim", [None, 1, -1])
@pytest.mark.parametrize("leaf", ["activation", "parameter"])
def test_normalize_has_derivatives_of_every_kind(dim, leaf):
    """First and second ones, backward, forward and in a batch, against differences."""
    x = differentiable(gaussian(2, 3, 4, dtype=torch.float64))

    def y(x: torch.Tensor) -> torch.Tensor:
        if leaf == "parameter":  # which is kept for the backward pass instead of the output
            return NormalizeWithJvp.apply(x, [1, 2] if dim is None else [dim % 3], 0.2, 1.5, True)[0]
        return normalize(x, dim, 0.2, magnitude=1.5)

    assert torch.autograd.gradcheck(y, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(y, x, check_fwd_over_rev=True)
    batch = torch.func.vmap(y)(torch.stack([x, 2 * x]))
    torch.testing.assert_close(batch, torch.stack([y(x), y(2 * x)]))
