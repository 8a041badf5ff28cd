"""Weightings against the identities of the papers, stated in the papers' own frames rather than in our formulas."""

import math
import sys

import pytest
import torch
from command_line import succeed
from scipy import integrate, stats
from torch import Tensor

from edm2.tools import commands
from edm2.tools.commands import train
from edm2.training import (
    EDM,
    NOISE_DISTRIBUTIONS,
    P2,
    WEIGHTINGS,
    Constant,
    DDPMCosine,
    DDPMLinear,
    Eps,
    InDataUnits,
    LnNormal,
    LnUniform,
    MaxSNR,
    MinSNR,
    Pareto,
    Relative,
    SoftMinSNR,
    StaticWeighting,
    Uncertainty,
    V,
    levels,
    make_weighting,
    noise_distribution,
    normalized,
)
from edm2.training.loss.by_name import Registered
from edm2.training.loss.weighting import Scaled

DISTRIBUTIONS = [LnNormal(), LnNormal(-1.2, 1.2), LnUniform(), DDPMLinear(), DDPMCosine()]

PAPERS = {  # on the squared errors of x0, eps and v, as the papers write them
    EDM(): ("1 + snr", "(1 + snr) / snr", "1 + 0 * snr"),
    V(): ("1 + snr", "(1 + snr) / snr", "1 + 0 * snr"),
    Eps(): ("snr", "1 + 0 * snr", "snr / (1 + snr)"),
    Constant(): ("1 + 0 * snr", "1 / snr", "1 / (1 + snr)"),
    MaxSNR(): ("snr.clamp(min=1)", "snr.clamp(min=1) / snr", "snr.clamp(min=1) / (snr + 1)"),
    MinSNR(): ("snr.clamp(max=5)", "(5 / snr).clamp(max=1)", "snr.clamp(max=5) / (snr + 1)"),
    SoftMinSNR(): ("5 * snr / (snr + 5)", "5 / (snr + 5)", "5 * snr / ((snr + 5) * (snr + 1))"),
    P2(k=1.0, gamma=0.5): ("snr / (1 + snr) ** 0.5", "1 / (1 + snr) ** 0.5", "snr / (1 + snr) ** 1.5"),
}
STATIC = list(PAPERS)


def made(name: str, *args, **options):
    return make_weighting(name, *args, **options, distribution=LnNormal(), sigma_data=0.5)


def noise_range(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.logspace(-3, 3, 601, dtype=dtype)


# ------------------------------------------------------------------------------------------------ one loss, many frames


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("weighting", STATIC, ids=str)
def test_forms_on_x0_eps_v_and_F_are_one_loss(weighting, sigma_data):
    """For any prediction: a denoiser D gives the eps, x0 and v of the variance-preserving frame and EDM's F, each by
    definition, and each paper's form of the loss must be the loss on D.

    1e-9: differences of nearby numbers in float64, at SNR from 1e-5 to 1e5."""
    g = torch.Generator().manual_seed(0)
    x0, eps, error = torch.randn(3, 400, 8, dtype=torch.float64, generator=g)
    snr = torch.logspace(-5, 5, 400, dtype=torch.float64)[:, None]
    alpha, s = (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()
    x_t = alpha * x0 + s * eps
    x0_hat = x0 + 0.3 * error

    eps_hat = (x_t - alpha * x0_hat) / s
    v, v_hat = alpha * eps - s * x0, alpha * eps_hat - s * x0_hat
    on_x0, on_eps, on_v = (eval(formula, {"snr": snr}) for formula in PAPERS[weighting])
    forms = [on_x0 * (x0_hat - x0) ** 2, on_eps * (eps_hat - eps) ** 2, on_v * (v_hat - v) ** 2]

    sd, y, D = sigma_data, sigma_data * x0, sigma_data * x0_hat  # the same in EDM's frame: x = y + sigma n
    sigma = sd * s / alpha
    c_skip, c_out = sd**2 / (sigma**2 + sd**2), sigma * sd / (sigma**2 + sd**2).sqrt()
    x = y + sigma * eps
    F, F_target = (D - c_skip * x) / c_out, (y - c_skip * x) / c_out
    torch.testing.assert_close(F_target, -v, rtol=0, atol=1e-9)
    torch.testing.assert_close((F - F_target) ** 2, (v_hat - v) ** 2, rtol=0, atol=1e-9)

    loss = weighting((D - y) ** 2, sigma, torch.zeros_like(sigma), sd)
    for form in forms:
        torch.testing.assert_close(form, loss, rtol=1e-7, atol=1e-9)
    w_F = weighting.weight(sigma, sd) * c_out**2
    torch.testing.assert_close(w_F, on_v, rtol=1e-9, atol=0)


def test_closed_forms_in_sigma():
    """lambda as one writes it down for EDM. 1e-12: through logarithms in float64."""
    sigma, sd = noise_range(), 0.5
    closed = {
        Eps(): 1 / sigma**2,
        P2(k=0.3, gamma=0.7): 1 / (sigma**2 * (0.3 + sd**2 / sigma**2) ** 0.7),
        P2(k=1.0, gamma=0.0): 1 / sigma**2,
        P2(k=1.0, gamma=1.0): 1 / (sigma**2 + sd**2),  # "soft-min-snr" of k-diffusion
        P2(k=0.0, gamma=1.0): torch.full_like(sigma, 1 / sd**2),  # SNR^(1 - gamma): finite wherever the noise is
        SoftMinSNR(gamma=4.0): 4 / (4 * sigma**2 + sd**2),  # 4 times P2(k=4, gamma=1)
        MinSNR(gamma=5.0): torch.minimum(1 / sigma**2, torch.tensor(5 / sd**2)),
        MaxSNR(gamma=1.0): torch.maximum(1 / sigma**2, torch.tensor(1 / sd**2)),
        Constant(): torch.full_like(sigma, 1 / sd**2),
        V(): EDM().weight(sigma, sd),
    }
    for weighting, expected in closed.items():
        torch.testing.assert_close(weighting.weight(sigma, sd), expected, rtol=1e-12, atol=0)


EXTREME = [*STATIC, P2(k=0.0, gamma=1.0), P2(k=1.0, gamma=12.0), MaxSNR(gamma=0.0), MinSNR(gamma=1e30)]


@pytest.mark.parametrize("weighting", EXTREME, ids=str)
def test_single_precision_is_enough(weighting):
    """From sigma = 1e-3 to 1e3, also where a power of SNR would overflow, as (2.5e5)^12 would.

    An error of 6e-8 in a logarithm of up to 30, times gamma; EDM squares instead. What is below 1e-37 may be zero."""
    single = weighting.weight(noise_range(torch.float32), 0.5).double()
    double = weighting.weight(noise_range(torch.float32).double(), 0.5)
    gamma = weighting.gamma if isinstance(weighting, P2) else 1
    torch.testing.assert_close(single, double, rtol=1e-5 * max(gamma, 1), atol=1e-37)


# ----------------------------------------------------------------------------------------- two conventions of the ratio


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 1.7])
def test_data_units_are_the_normalized_convention_with_other_parameters(sigma_data):
    """SNR = 1 / sigma² = (sd² / sigma²) / sd²: a cap of gamma on the one is a cap of gamma sd² on the other, and
    likewise k. P2's gamma is an exponent: it stays, and a factor sd^(2 gamma) comes out."""
    sd, sigma = sigma_data, noise_range()
    equals = {
        InDataUnits(Eps()): (Eps(), 1),
        InDataUnits(MinSNR(gamma=5.0)): (MinSNR(gamma=5 * sd**2), 1),
        InDataUnits(MaxSNR(gamma=1.0)): (MaxSNR(gamma=sd**2), 1),
        InDataUnits(SoftMinSNR(gamma=5.0)): (SoftMinSNR(gamma=5 * sd**2), 1),
        InDataUnits(P2(k=1.0, gamma=0.5)): (P2(k=sd**2, gamma=0.5), sd),
        InDataUnits(P2(k=1.0, gamma=1.0)): (P2(k=sd**2, gamma=1.0), sd**2),
        InDataUnits(Constant()): (Constant(), sd**2),
    }
    for data, (same, factor) in equals.items():
        torch.testing.assert_close(data.weight(sigma, sd), factor * same.weight(sigma, sd))
    if sigma_data == 1:
        for weighting in (MinSNR(), P2(), V()):
            assert torch.equal(InDataUnits(weighting).weight(sigma, sd), weighting.weight(sigma, sd))


# -------------------------------------------------------------------------------------------------------- normalization


def mean_on_F(weighting: StaticWeighting, distribution, sd: float) -> float:
    """E[w_F] by another way: the sum over steps, or adaptive integration over the standard normal number."""

    def w_F(sigma: Tensor) -> Tensor:
        return weighting.weight(sigma, sd) * sigma**2 * sd**2 / (sigma**2 + sd**2)

    if isinstance(distribution, (DDPMLinear, DDPMCosine)):
        return w_F(levels(distribution, distribution.steps)).mean().item()

    def density(z: float) -> float:
        return stats.norm.pdf(z) * w_F(distribution.sigma(torch.tensor(z, dtype=torch.float64))).item()

    return integrate.quad(density, -8, 8, limit=200, epsabs=1e-7)[0]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
@pytest.mark.parametrize("weighting", [*STATIC, InDataUnits(MinSNR())], ids=str)
def test_normalized_weightings_have_mean_1_on_the_raw_output(weighting, distribution):
    """1e-4: what lies beyond the outermost of 10,000 levels. EDM's is normalized as it is."""
    assert normalized(EDM(), distribution, 0.5) == EDM()
    assert mean_on_F(normalized(weighting, distribution, 0.5), distribution, 0.5) == pytest.approx(1, abs=1e-4)


# -------------------------------------------------------------------------------------------------- learned uncertainty


def gradients(weighting, error: Tensor, sigma: Tensor, u: Tensor, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """Gradients of the loss by the denoiser's error and by u; `scale` is another weighting on top."""
    error, u = error.clone().requires_grad_(), u.clone().requires_grad_()
    loss = weighting(scale * error**2, sigma, u, 0.5)
    return torch.autograd.grad(loss.sum(), (error, u))


@pytest.fixture
def errors() -> tuple[Tensor, Tensor]:
    """Errors [levels, samples, 1, 1] and noise levels [levels, 1, 1, 1]."""
    g = torch.Generator().manual_seed(0)
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    return torch.randn(9, 50, 1, 1, dtype=torch.float64, generator=g) * sigma, sigma


def optimal_u(error: Tensor, sigma: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    return (EDM().weight(sigma, 0.5) * scale * error**2).mean(dim=1, keepdim=True).log()


def test_u_cancels_every_static_weighting(errors):
    """u absorbs every factor on the squared error, and the denoiser's gradient is that of ln E[(D - y)²]:
    2 (D - y) / E[(D - y)²]."""
    error, sigma = errors
    expected = 2 * error / (error**2).mean(dim=1, keepdim=True)
    for static in STATIC:
        w = static.weight(sigma, 0.5)
        u = optimal_u(error, sigma, scale=w)
        to_error, to_u = gradients(Uncertainty(), error, sigma, u, scale=w)
        torch.testing.assert_close(to_error, expected)
        torch.testing.assert_close(to_u, torch.zeros_like(u), atol=1e-9, rtol=0)  # it is the optimum


@pytest.mark.parametrize("static", STATIC, ids=str)
def test_relative_weighting_comes_after_u_and_leaves_u_alone(errors, static):
    """Gradients of the denoiser are those of `Uncertainty` times w_F, gradients of u are the same, at any u."""
    error, sigma = errors
    c_out2 = 1 / EDM().weight(sigma, 0.5)
    w_F = static.weight(sigma, 0.5) * c_out2
    for u in (torch.zeros_like(sigma), optimal_u(error, sigma)):
        to_error, to_u = gradients(Relative(static), error, sigma, u)
        even_error, even_u = gradients(Uncertainty(), error, sigma, u)
        torch.testing.assert_close(to_error, w_F * even_error)
        torch.testing.assert_close(to_u, even_u)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weightings_use_u_if_and_only_if_they_say_so(name):
    """The network is asked for u only then, and the trainer freezes its head otherwise."""
    weighting = made(name)
    sigma, error2 = torch.rand(4, 1, 1, 1) + 0.1, torch.rand(4, 2, 3, 3)
    if not weighting.uses_uncertainty:
        assert weighting(error2, sigma, None, 0.5).shape == error2.shape
        return
    u = torch.zeros(4, 1, 1, 1, requires_grad=True)
    weighting(error2, sigma, u, 0.5).sum().backward()
    assert u.grad.ne(0).all()


# ---------------------------------------------------------------------------------------------------------------- names


def test_weightings_by_name():
    assert made("uncertainty") == Uncertainty()
    assert made("edm") == EDM()
    assert made("p2", gamma=0.5, k=2.0, normalize=False) == P2(k=2.0, gamma=0.5)
    assert made("p2", gamma=1.0, k=0.0, normalize=False) == P2(k=0.0, gamma=1.0)
    assert made("min-snr", normalize=False) == MinSNR(gamma=5.0)
    assert made("max-snr", normalize=False) == MaxSNR(gamma=1.0)
    assert made("eps", snr_convention="data", normalize=False) == InDataUnits(Eps())
    assert made("min-snr", 1.25) == normalized(MinSNR(1.25), LnNormal(), 0.5)
    assert made("v", relative=True, normalize=False) == Relative(V())
    assert isinstance(made("soft-min-snr"), Scaled)
    assert isinstance(made("pareto"), Pareto)


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        ({"name": "snr"}, ["'snr' is unknown", *WEIGHTINGS]),
        ({"name": "min-snr", "snr_convention": "pixels"}, ["'pixels' is unknown", "normalized", "data"]),
        ({"name": "eps", "gamma": 5.0}, ["'eps'", "does not take gamma", "no parameters"]),
        ({"name": "uncertainty", "gamma": 5.0}, ["'uncertainty'", "does not take gamma", "no parameters"]),
        ({"name": "pareto", "k": 1.0}, ["'pareto'", "does not take k", "no parameters"]),
        ({"name": "min-snr", "k": 1.0, "gamma": 5.0}, ["'min-snr'", "does not take k", "takes gamma"]),
        ({"name": "min-snr", "gamma": -5.0}, ["gamma=-5", "at least 0"]),
        ({"name": "p2", "gamma": math.nan}, ["gamma=nan", "finite"]),
        ({"name": "p2", "k": -1.0}, ["k=-1", "at least 0"]),
        ({"name": "p2", "k": math.inf}, ["k=inf", "finite"]),
        ({"name": "p2", "k": 0.0, "gamma": 30.0}, ["P2(k=0.0, gamma=30.0)", "not finite at noise level"]),
        ({"name": "min-snr", "gamma": 0.0}, ["MinSNR(gamma=0.0)", "zero at every noise level"]),
        ({"name": "soft-min-snr", "gamma": 0.0}, ["SoftMinSNR(gamma=0.0)", "zero at every noise level"]),
        ({"name": "edm", "relative": True}, ["relative", "'edm'", "means nothing", "p2"]),
        ({"name": "uncertainty", "relative": True}, ["relative", "'uncertainty'", "means nothing"]),
        ({"name": "pareto", "relative": True}, ["relative", "'pareto'", "means nothing"]),
        ({"name": "uncertainty", "snr_convention": "data"}, ["snr_convention='data'", "means nothing"]),
    ],
    ids=str,
)
def test_impossible_weightings_are_refused_in_one_line(options, mentions):
    with pytest.raises(ValueError) as refusal:
        made(**options)
    message = str(refusal.value)
    assert "\n" not in message
    assert all(mention in message for mention in mentions), message


# --------------------------------------------------------------------------------------------------------- a new name


MADE_UP = """
from dataclasses import dataclass
from edm2.training.loss.snr import SNRWeighting

@dataclass(frozen=True)
class Made(SNRWeighting):
    gamma: float = 3.0

    def log_w(self, log_snr):
        return log_snr / self.gamma

@dataclass(frozen=True)
class TwoLevels:
    P_mean: float = 0.0

    def sigma(self, normal):
        return (normal > self.P_mean) + 0.5
"""


def test_a_file_and_a_line_make_a_weighting_and_a_distribution(tmp_path, monkeypatch):
    """Then the command line has them, with their parameters and in --help."""
    (tmp_path / "made_up.py").write_text(MADE_UP)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(WEIGHTINGS, "made-up", Registered("made_up:Made", "the cube root of SNR"))
    monkeypatch.setitem(NOISE_DISTRIBUTIONS, "two-levels", Registered("made_up:TwoLevels", "1/2 or 3/2"))
    monkeypatch.setattr(commands, "train", train)
    monkeypatch.delitem(sys.modules, train.__name__)  # imported anew, with the tables as they are now
    options = ["--data", "digits", "--out", tmp_path / "run", "--weighting", "made-up", "--gamma", 2]
    described = succeed("train", *options, "--noise", "two-levels", "--p-mean", 1, "--dry-run")
    assert "made-up gamma=2" in described
    assert "two-levels" in described
    help_text = succeed("train", "--help-all")
    assert f"{'made-up':<18} the cube root of SNR" in help_text
    assert f"{'two-levels':<18} 1/2 or 3/2" in help_text
    weighting = make_weighting("made-up", 2, normalize=False, distribution=LnNormal(), sigma_data=1.0)
    torch.testing.assert_close(weighting.weight(torch.tensor([0.5, 2.0]), 1.0), torch.tensor([2.0, 0.5]))
    assert noise_distribution("two-levels", 1.0).sigma(torch.tensor([0.0, 2.0])).tolist() == [0.5, 1.5]
