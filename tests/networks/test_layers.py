"""The layers with weights against golden values and gradients, and what weight normalization promises."""

import math

import pytest
import torch
from golden_data import max_rel, ops_cases
from torch import Tensor

from edm2.networks import MPConv, MPFourier, force_weight_normalization_, normalize

EPS = 1e-4
KERNELS = [(), (1, 1), (3, 3)]


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def double_conv(kernel, in_channels=6, out_channels=5, scale=1.0) -> MPConv:
    """A layer with known float64 weights."""
    layer = MPConv(in_channels, out_channels, kernel).double()
    with torch.no_grad():
        layer.weight.copy_(scale * gaussian(*layer.weight.shape, seed=7))
    return layer


def an_input(kernel, channels=6) -> Tensor:
    return gaussian(4, channels, *((5, 7) if kernel else ()), seed=8)


def magnitudes(w: Tensor) -> Tensor:
    """Root-mean-square per output unit."""
    return w.detach().flatten(1).square().mean(dim=1).sqrt()


def test_mp_fourier_golden(golden):
    """1e-5: angles reach hundreds of radians, where float32 has an absolute rounding of 1e-5."""
    for case, data in ops_cases(golden, "mp_fourier"):
        layer = MPFourier(case["num_channels"], case["bandwidth"])
        layer.load_state_dict({"freqs": data["freqs"], "phases": data["phases"]})
        x = data["x"].clone().requires_grad_()
        y = layer(x)
        (grad_x,) = torch.autograd.grad(y, x, data["w"])
        assert max_rel(y, data["y"]) <= 1e-5, case
        assert max_rel(grad_x, data["grad_x"]) <= 1e-5, case


@pytest.mark.parametrize("operation", ["mp_conv", "mp_conv_half_storage"])
def test_mp_conv_golden(golden, operation):
    """In training mode the published layer overwrites its weight first; `weight` was recorded after that, too, so
    these cases check what follows. The overwriting itself is checked with blocks and networks.

    Weights and gains stored as float16 as in published files: gain / sqrt(fan_in) is then rounded to float16."""
    for case, data in ops_cases(golden, operation):
        weight = data.get("weight_after", data["weight"])  # at which its gradient is taken
        layer = MPConv(case["in_channels"], case["out_channels"], tuple(case["kernel"])).to(weight.dtype)
        layer.load_state_dict({"weight": weight})
        gain = data["gain"].clone().requires_grad_() if "gain" in data else 1
        x = data["x"].clone().requires_grad_()
        results = {"y": layer(x, gain)}
        assert results["y"].dtype == torch.float32
        if operation == "mp_conv":
            results["y"].backward(data["w"])
            results |= {"grad_x": x.grad, "grad_weight": layer.weight.grad}
            results |= {"grad_gain": gain.grad} if "gain" in data else {}
        assert weight.dtype == (torch.float32 if operation == "mp_conv" else torch.float16)
        for name, ours in results.items():
            assert max_rel(ours, data[name]) <= 2e-6, (case, name)


@pytest.mark.parametrize("bandwidth", [0.25, 1, 3])
def test_mp_fourier_draws_its_buffers_and_has_unit_magnitude_at_every_noise_level(bandwidth):
    """Over 100,000 random features; 2 cos² has standard deviation 0.71, so the magnitude errs by 1.1e-3. Four times."""
    torch.manual_seed(0)
    layer = MPFourier(100_000, bandwidth)
    assert dict(layer.named_parameters()) == {}
    assert layer.freqs.std() == pytest.approx(2 * math.pi * bandwidth, rel=0.01)  # 4 x 1 / sqrt(2 n)
    assert layer.phases.min() >= 0
    assert layer.phases.max() <= 2 * math.pi * (1 + 1e-6)
    assert layer.phases.mean() == pytest.approx(math.pi, rel=0.01)  # 5 x 1 / sqrt(3 n)
    y = layer(torch.linspace(-2, 2, 5))
    torch.testing.assert_close(y.square().mean(dim=1).sqrt(), torch.ones(5), rtol=0, atol=4.5e-3)


@pytest.mark.parametrize("kernel", KERNELS)
def test_mp_conv_maps_white_noise_of_unit_variance_to_unit_variance(kernel):
    """Var(y_o) = sum of the squared weights that feed y_o. Feeding one impulse per input channel reads them all, so
    nothing is sampled; eps takes 1e-4 of the magnitude of N(0, 1) weights (up to 1.4e-4 for the smallest here)."""
    layer = double_conv(kernel)
    impulses = torch.eye(6, dtype=torch.float64)
    if kernel:
        impulses = torch.nn.functional.pad(impulses[:, :, None, None], (2, 2, 2, 2))
    variance = layer(impulses).transpose(0, 1).flatten(1).square().sum(dim=1)
    torch.testing.assert_close(variance.sqrt(), torch.ones_like(variance), rtol=0, atol=2e-4)
    assert (variance < 1).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scale", [0.3, 7.0, 1e4])
def test_rescaling_a_weight_leaves_the_output_alone(kernel, scale):
    """Only the direction of a weight matters (Eq. 47). At magnitude r the output shrinks by r / (r + eps): 3e-4."""
    x = an_input(kernel)
    assert max_rel(double_conv(kernel, scale=scale)(x), double_conv(kernel)(x)) <= EPS * (1 / min(scale, 1) + 1)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradient_has_no_radial_part_but_the_one_of_eps(kernel):
    """normalize(w) = w / (eps + r) is constant along w but for eps, so per output unit the radial gradient is
    <grad w, w> = eps / (eps + r) <grad y, y>: an update moves w sideways only. float64: rounding.

    The parameter itself is left as it was."""
    layer, x = double_conv(kernel), an_input(kernel)
    before = layer.weight.detach().clone()
    y = layer(x)
    upstream = gaussian(*y.shape, seed=9)
    y.backward(upstream)
    assert torch.equal(layer.weight, before)
    radial = (layer.weight.grad * layer.weight).flatten(1).sum(dim=1)
    through_y = (upstream * y).transpose(0, 1).flatten(1).sum(dim=1)
    expected = EPS / (EPS + magnitudes(layer.weight)) * through_y
    torch.testing.assert_close(radial, expected, rtol=1e-8, atol=1e-14)
    cosine = radial / layer.weight.grad.flatten(1).norm(dim=1) / layer.weight.flatten(1).norm(dim=1)
    assert cosine.abs().max() <= 2 * EPS


@pytest.mark.parametrize("kernel", KERNELS)
def test_forced_normalization_reaches_its_fixed_point(kernel):
    """r -> r / (r + eps) contracts to 1 - eps by a factor of about eps each time: two calls are there to 1e-8."""
    layer = double_conv(kernel, scale=20.0)
    force_weight_normalization_(layer)
    force_weight_normalization_(layer)
    torch.testing.assert_close(
        magnitudes(layer.weight), torch.full((5,), 1 - EPS, dtype=torch.float64), rtol=0, atol=1e-8
    )
    before = layer.weight.detach().clone()
    force_weight_normalization_(layer)
    torch.testing.assert_close(layer.weight, before, rtol=1e-8, atol=0)


def test_forced_normalization_visits_every_mp_conv_and_nothing_else():
    net = torch.nn.Sequential(MPConv(4, 3), torch.nn.Linear(4, 3), torch.nn.Sequential(MPConv(3, 2, (3, 3))))
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    identity = {name: id(parameter) for name, parameter in net.named_parameters()}
    force_weight_normalization_(net)
    for name, parameter in net.named_parameters():
        expected = before[name] if name.startswith("1.") else normalize(before[name])
        assert torch.equal(parameter, expected), name
        assert id(parameter) == identity[name]  # the optimizer still holds it
        assert parameter.requires_grad
        assert parameter.grad_fn is None


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scale", [0.7, -2.0, 0.0])
def test_a_gain_and_a_constant_scale_multiply_the_output(kernel, scale):
    """Values, and gradients for the weight."""
    plain, layer, x = double_conv(kernel), double_conv(kernel), an_input(kernel)
    layer.scale = scale
    for gain in (1, torch.tensor(-0.4, dtype=torch.float64)):
        expected, y = scale * gain * plain(x), layer(x, gain)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-14)
        upstream = gaussian(*y.shape, seed=9)
        (theirs,), (ours,) = (torch.autograd.grad(z, m.weight, upstream) for z, m in ((expected, plain), (y, layer)))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)
