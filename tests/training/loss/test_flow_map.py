"""Flow maps: known answers, and what makes the loss one with diffusion and consistency."""

from functools import partial

import pytest
import torch
from torch import Tensor

from edm2.networks import NetworkConfig, build_network
from edm2.sampling.samplers.flow_map import sample_map
from edm2.training.draws import LossContext
from edm2.training.loss import flow_map
from edm2.training.loss.flow_map import FlowMapLoss
from edm2.training.loss.noise import LnNormal
from edm2.training.loss.objective import EDM2Loss
from edm2.training.loss.weighting import EDM
from edm2.training.randomness import PositionRandom

SD = 0.5
DISTRIBUTION = LnNormal(-0.4, 1.6)
LEVELS = (0.05, 0.5, 5.0, 80.0)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian_denoiser(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
    """Best denoiser of data N(0, SD²)."""
    return SD**2 / (sigma**2 + SD**2) * x


class GaussianMap(torch.nn.Module):
    """Flow map of the same data: X = x sqrt((s² + SD²) / (t² + SD²)), and a parameter that a gradient can reach."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones([], dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, *, target_sigma: Tensor) -> Tensor:
        t, s = sigma, torch.as_tensor(target_sigma, dtype=x.dtype).reshape(-1, 1, 1, 1)
        q = s / t
        x_s = x * ((s**2 + SD**2) / (t**2 + SD**2)).sqrt()
        return self.factor * torch.where(q < 1, (x_s - q * x) / (1 - q).clamp(min=1e-300), gaussian_denoiser(x, t))


def network(level: str | None = "mean", seed: int = 0, trained: bool = True, **config) -> torch.nn.Module:
    """A small network of which all weights matter, in float64."""
    torch.manual_seed(seed)
    sizes = {"img_resolution": 8, "img_channels": 2, "label_dim": 3, "model_channels": 16, "channel_mult": (1, 2)}
    net = build_network(
        NetworkConfig(**{**sizes, "attn_resolutions": (4,), "num_blocks": 1, "target_level": level, **config})
    ).double()
    if trained:
        with torch.no_grad():
            for name, p in net.named_parameters():
                if name.endswith("gain"):
                    p.fill_(0.7)
    return net


def context_at(first: int, count: int, seed: int = 0, images_seen: int = 0) -> LossContext:
    return LossContext(
        images_seen, range(first, first + count), PositionRandom(seed, 16, torch.device("cpu")), lambda *_: None
    )


@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_an_exact_map_has_nothing_to_learn(derivative):
    """Of Gaussian data, with their denoiser as the teacher; to rounding, or to the error of the difference."""
    net = GaussianMap()
    loss = FlowMapLoss(DISTRIBUTION, SD, gaussian_denoiser, tangent_norm=None, derivative=derivative)
    losses = loss(net, SD * randn(64, 1, 2, 2), sigma=DISTRIBUTION.sigma(randn(64)), noise=randn(64, 1, 2, 2, seed=1))
    assert losses.max().item() < (1e-24 if derivative == "jvp" else 1e-4)
    losses.sum().backward()
    assert abs(net.factor.grad.item()) < (1e-10 if derivative == "jvp" else 1)


def test_the_map_of_gaussian_data_in_raw_outputs():
    """F = k c_in x with k(t, 0) = (sqrt(t² + SD²) - SD) / t: F = (D - c_skip x) / c_out."""
    for t, expected in zip(LEVELS, (0.0499, 0.4142, 0.9050, 0.9938), strict=True):
        x, sigma = randn(4, 1, 2, 2), torch.full([4, 1, 1, 1], t, dtype=torch.float64)
        denoised = GaussianMap()(x, sigma, target_sigma=0.0)
        raw = (denoised - gaussian_denoiser(x, sigma)) * (t**2 + SD**2) ** 0.5 / (t * SD)
        k = raw / (x / (t**2 + SD**2) ** 0.5)
        assert k.mean().item() == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_anchors_alone_are_diffusion(dtype, tolerance):
    """With the data in place of a teacher, value and gradient are those of a denoiser with EDM's weighting."""
    net, found = network().to(dtype), []
    given = {"sigma": DISTRIBUTION.sigma(randn(8)).to(dtype), "noise": randn(8, 2, 8, 8, seed=1).to(dtype)}
    images, labels = (SD * randn(8, 2, 8, 8, seed=2)).to(dtype), torch.arange(8) % 3
    for loss in (FlowMapLoss(DISTRIBUTION, SD, anchor=1), EDM2Loss(-0.4, 1.6, SD, weighting=EDM())):
        net.zero_grad()
        value = loss(net, images, labels, **given).sum()
        value.backward()
        found.append((value, {name: p.grad for name, p in net.named_parameters() if p.grad is not None}))
    (ours, our_gradients), (theirs, their_gradients) = found
    assert ours.item() == pytest.approx(theirs.item(), rel=tolerance)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=tolerance, atol=tolerance * gradient.abs().max())


def test_arriving_at_zero_is_a_consistency_model():
    """Its target differs from D by -dD/dτ, over c_out; here by a central difference along the teacher's trajectory."""
    net, teacher = network(), network(None, seed=1)
    images, labels, noise = SD * randn(4, 2, 8, 8), torch.arange(4) % 3, randn(4, 2, 8, 8, seed=1)
    t = torch.tensor([0.1, 0.5, 2.0, 20.0], dtype=torch.float64)
    loss = FlowMapLoss(_Highest(), SD, teacher, anchor=0, to_zero=1, tangent_norm=None)
    delta2 = loss(net, images, labels, sigma=t, noise=noise)
    t = t.view(-1, 1, 1, 1)
    x = images + t * noise
    with torch.no_grad():
        v, e = x - teacher(x, t, labels), 1e-5
        ahead, behind = (
            net(x + s * e * v, t * torch.tensor(s * e).double().exp(), labels, target_sigma=0.0) for s in (1, -1)
        )
        expected = (ahead - behind) / (2 * e) * (t**2 + SD**2).sqrt() / (t * SD)
    torch.testing.assert_close(delta2.sqrt(), expected.abs(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_all_evaluations_have_the_whole_batch(derivative):
    """However many images jump: compiled code has one shape, and FSDP as many calls in all processes."""
    counts = []

    def denoise(x: Tensor, t: Tensor, labels: Tensor | None = None, **given: Tensor) -> Tensor:
        counts.append(len(x))
        return gaussian_denoiser(x, t)

    loss = FlowMapLoss(DISTRIBUTION, SD, gaussian_denoiser, derivative=derivative)
    for first in (0, 8, 16):
        loss(denoise, SD * randn(8, 1, 2, 2).float(), sigma=torch.ones(8), noise=torch.ones(8, 1, 2, 2),
             context=context_at(first, 8))  # fmt: skip
    assert counts == [8] * 6


@pytest.mark.parametrize("anchor", [0, 0.5, 1])
def test_a_batch_without_anchors_has_an_error_too(anchor):
    """Else it is 0 / 0, which passes for a loss that has exploded."""
    told = {}
    context = context_at(0, 8)
    context.report = told.__setitem__
    loss = FlowMapLoss(DISTRIBUTION, SD, gaussian_denoiser, anchor=anchor, derivative="difference")
    denoise = lambda x, t, labels=None, **given: gaussian_denoiser(x, t)  # noqa: E731
    loss(denoise, SD * randn(8, 1, 2, 2).float(), sigma=torch.ones(8), noise=torch.ones(8, 1, 2, 2), context=context)
    assert 0 < (told["error"] / told["error_of_zero"]).item() < 10


class _Highest:
    """A second level that is never the higher one."""

    def sigma(self, normal: Tensor) -> Tensor:
        return torch.full_like(normal, 0.002)


@pytest.mark.parametrize("level", ["mean", "decoder"])
def test_derivatives_of_a_network_along_a_trajectory(level):
    """Forward mode against a central difference (1e-9); the backward difference to a percent."""
    net = network(level)
    x, v = randn(3, 2, 8, 8), randn(3, 2, 8, 8, seed=1)
    t, s = (
        torch.tensor([0.1, 1.0, 9.0]).double().view(-1, 1, 1, 1),
        torch.tensor([0.0, 0.4, 2.0]).double().view(-1, 1, 1, 1),
    )
    at_levels = partial(flow_map._at_levels, net, torch.tensor([0, 1, 2]), {})
    with torch.no_grad():
        exact = flow_map._jvp(at_levels, x, v, t, s, at_levels(x, t, s))
        e = 1e-5
        up, down = (at_levels(x + a * v, t * torch.tensor(a).double().exp(), s) for a in (e, -e))
        near = flow_map._difference(at_levels, x, v, t, s, at_levels(x, t, s))
    scale = exact.abs().max().item()
    torch.testing.assert_close((up - down) / (2 * e), exact, rtol=0, atol=1e-8 * scale)
    assert ((near - exact).norm() / exact.norm()).item() < 0.02


def test_a_fresh_network_is_teacher_and_start_at_once():
    """The denoiser of N(0, SD²); its first target - D is -(1 - q)(c_skip' + c_skip (1 - c_skip)) x."""
    net = network(trained=False)
    t, s = torch.tensor([0.3, 2.0]).double().view(-1, 1, 1, 1), torch.tensor([0.1, 0.0]).double().view(-1, 1, 1, 1)
    x = randn(2, 2, 8, 8)
    c_skip = SD**2 / (t**2 + SD**2)
    torch.testing.assert_close(net(x, t, target_sigma=s), c_skip * x, rtol=0, atol=1e-15)
    at_levels = partial(flow_map._at_levels, net, None, {})
    with torch.no_grad():
        slope = flow_map._jvp(at_levels, x, x - c_skip * x, t, s, c_skip * x)
    expected = (-2 * t**2 * c_skip**2 / SD**2 + c_skip * (1 - c_skip)) * x
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("level", ["mean", "decoder"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_both_levels_are_one_the_map_is_the_denoiser_to_the_bit(level, dtype):
    """Also its anchors: a student that is its teacher has nothing to learn there."""
    net = network(level).float()
    net.compute_dtype = dtype
    x, labels = randn(4, 2, 8, 8).float(), torch.tensor([0, 1, 2, -1])
    sigma = torch.tensor([0.01, 0.3, 2.0, 80.0])
    assert torch.equal(net(x, sigma, labels, target_sigma=sigma), net(x, sigma, labels))
    assert not torch.equal(net(x, sigma, labels, target_sigma=sigma / 2), net(x, sigma, labels))
    loss = FlowMapLoss(DISTRIBUTION, SD, network(None).float() if dtype == torch.float32 else net, anchor=1)
    assert loss(net, x, labels, sigma=sigma, noise=x).abs().max() == 0


def test_draws_belong_to_positions():
    """Neither the split of a batch nor what came before changes a level, a choice or the loss."""
    net, loss = GaussianMap(), FlowMapLoss(DISTRIBUTION, SD, gaussian_denoiser)
    net.factor.data.mul_(0.9)
    images, sigma, noise = SD * randn(16, 1, 2, 2), DISTRIBUTION.sigma(randn(16)), randn(16, 1, 2, 2, seed=1)
    whole = loss(net, images, sigma=sigma, noise=noise, context=context_at(100, 16))
    parts = [
        loss(net, images[i:j], sigma=sigma[i:j], noise=noise[i:j], context=context_at(100 + i, j - i))
        for i, j in ((0, 5), (5, 16))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=0)
    t, s = loss._levels(sigma, context_at(0, 16))
    assert ((s == t) | (s < t)).all()
    many = DISTRIBUTION.sigma(randn(4000))
    t, s = loss._levels(many, context_at(0, 4000))
    assert (s == t).double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert (s == 0).double().mean().item() == pytest.approx(0.15, abs=0.03)
    assert torch.equal(loss._levels(many, context_at(0, 4000))[0], t)


def test_warming_up_begins_with_a_denoiser():
    """At the first step all images learn what a denoiser does, over their own levels; then the derivative comes in."""
    net = network()
    images, sigma, noise = SD * randn(8, 2, 8, 8), DISTRIBUTION.sigma(randn(8)), randn(8, 2, 8, 8, seed=1)
    loss = FlowMapLoss(DISTRIBUTION, SD, anchor=0, to_zero=1, tangent_norm=None, warmup_images=1000)
    cold, half, warm, later = (
        loss(net, images, sigma=sigma, noise=noise, context=context_at(0, 8, images_seen=seen))
        for seen in (0, 500, 1000, 2000)
    )
    t, s = loss._levels(sigma, context_at(0, 8))
    denoised = net(images + t * noise, t, target_sigma=s)
    expected = (denoised - images) ** 2 * (t**2 + SD**2) / (t * SD) ** 2
    torch.testing.assert_close(cold, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(warm, later)
    assert not torch.equal(half, warm)


def test_a_teacher_weighs_all_images_alike_and_data_weigh_their_own():
    """The error of anchors is normalized by itself with a teacher, which has no noise in it, and not without."""
    net, teacher = network(), network(None, seed=1)
    given = {"sigma": DISTRIBUTION.sigma(randn(8)), "noise": randn(8, 2, 8, 8, seed=1)}
    images = SD * randn(8, 2, 8, 8)
    raw, normalized = (
        FlowMapLoss(DISTRIBUTION, SD, teacher, anchor=1, tangent_norm=c)(net, images, **given) for c in (None, 0.2)
    )
    size = raw.mean(dim=(1, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(normalized, raw / (size + 0.2) ** 2, rtol=1e-10, atol=0)
    of_data = [FlowMapLoss(DISTRIBUTION, SD, anchor=1, tangent_norm=c)(net, images, **given) for c in (None, 0.2)]
    assert torch.equal(*of_data)


@pytest.mark.parametrize("levels", [(80, 0), (80, 0.3, 0), (80, 1.2, 0.5, 0.2, 0)])
def test_samples_of_an_exact_map(levels):
    """Any levels lead to the same: x / sqrt(80² + SD²) of unit noise, times SD."""
    noise = randn(4, 1, 2, 2)
    expected = noise * 80 * SD / (80**2 + SD**2) ** 0.5
    torch.testing.assert_close(sample_map(GaussianMap(), noise, levels=levels), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: FlowMapLoss(DISTRIBUTION, SD, anchor=1.5), "anchor=1.5 must lie between 0 and 1"),
        (lambda: FlowMapLoss(DISTRIBUTION, SD, to_zero=-1), "to_zero=-1 must lie"),
        (lambda: FlowMapLoss(DISTRIBUTION, SD, tangent_norm=0), "tangent_norm=0 must be positive"),
        (lambda: FlowMapLoss(DISTRIBUTION, SD, derivative="exact"), "derivative='exact' must be one of jvp, diff"),
        (lambda: network("encoder"), "target_level='encoder' must be None or one of mean, decoder"),
        (lambda: network("mean", config="F"), "target_level"),
        (lambda: network(None)(randn(1, 2, 8, 8), 1.0, target_sigma=0.5), "this network is a denoiser"),
        (lambda: sample_map(network(None), randn(1, 2, 8, 8)), "this network is a denoiser"),
        (lambda: sample_map(GaussianMap(), randn(1, 1, 2, 2), levels=(80, 0.3)), "must fall, and end with 0"),
        (lambda: sample_map(GaussianMap(), randn(1, 1, 2, 2), levels=(1, 2, 0)), "must fall, and end with 0"),
    ],
)
def test_impossible_requests_are_one_line(act, message):
    with pytest.raises(ValueError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)


def test_a_denoiser_says_nothing_of_maps_in_its_files():
    assert "target_level" not in network(None).config.to_json()
    config = network("decoder").config
    assert NetworkConfig.from_json(config.to_json()) == config
    assert network(None).state_dict().keys() == network("mean").state_dict().keys()


def test_fields_for_training_at_scale_are_absent_where_they_are_off():
    """A narrower band makes the embedding smoother in the noise level; a normalized modulation has magnitude one."""
    plain, steady = network(), network(fourier_bandwidth=0.25, normalized_modulation=True)
    assert not {"fourier_bandwidth", "normalized_modulation"} & plain.config.to_json().keys()
    assert NetworkConfig.from_json(steady.config.to_json()) == steady.config
    assert plain.state_dict().keys() == steady.state_dict().keys()
    torch.testing.assert_close(steady.unet.emb_fourier.freqs, plain.unet.emb_fourier.freqs / 4)
    block = next(module for module in steady.unet.modules() if hasattr(module, "emb_linear"))
    y, emb = randn(2, block.conv_res0.weight.shape[1], 4, 4), 5 * randn(2, block.emb_linear.weight.shape[1])
    before = block.residual(y, emb)
    block.emb_gain.data.mul_(1e6)  # m becomes g W e, whose size is divided out
    far = block.residual(y, emb)
    block.emb_gain.data.mul_(10)
    torch.testing.assert_close(block.residual(y, emb), far, rtol=1e-4, atol=1e-4)
    assert not torch.equal(before, far)
    with pytest.raises(ValueError, match="fourier_bandwidth=0 must be positive"):
        network(fourier_bandwidth=0)
