"""The training objective against golden losses and gradients of whole networks, and what it asks of a denoiser."""

import copy
import math
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden_data import arrays, max_rel, select, table
from torch import Tensor

from edm2.networks import NetworkConfig, Precond, build_network, force_weight_normalization_
from edm2.training import EDM, EDM2Loss, Uncertainty
from edm2.training.loss.objective import errors


def golden_runs(golden) -> Iterator[tuple[str, dict[str, Any], Precond, dict[str, Tensor], dict[str, Tensor]]]:
    """For each golden network and mode: mode, description, network in that mode's state, all arrays, its results."""
    found = 0
    for name, description in table(golden, "net/net.json").items():
        if not (golden / "net" / f"{name}.safetensors").is_file():
            continue
        data = arrays(golden, f"net/{name}.safetensors")
        net = build_network(NetworkConfig.from_json(description["config"]))
        net.load_state_dict(select(data, "state"))
        for mode in ("train", "eval"):
            if results := select(data, f"loss_{mode}"):
                yield mode, description, prepared(net, mode), data, results
                found += 1
    assert found


def prepared(net: Precond, mode: str) -> Precond:
    """A copy in the state in which the forward pass of this mode sees it (training: Algorithm 1)."""
    net = copy.deepcopy(net).train(mode == "train")
    if mode == "train":
        force_weight_normalization_(net)
    return net


def objective_of(description: dict[str, Any]) -> EDM2Loss:
    sigma_data = description["config"].get("sigma_data", 0.5)
    return EDM2Loss(description["P_mean"], description["P_std"], sigma_data)


class Recorder:
    """A network that keeps its input, with its gradient, and its outputs."""

    def __init__(self, net: Precond) -> None:
        self.net = net

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.x = x.detach().requires_grad_()
        self.D_x, self.u = self.net(self.x, *args, **kwargs)
        return self.D_x, self.u


def test_loss_gradients_and_forced_normalization_golden(golden):
    normalized = 0
    for mode, description, net, data, results in golden_runs(golden):
        case, recorder, objective = (mode, description["config"]), Recorder(net), objective_of(description)
        sigma = objective.distribution.sigma(data["loss/rnd_normal"])
        assert max_rel(sigma, results["sigma"]) <= 1e-6, case  # exp in float32
        loss_map = objective(
            recorder, data["loss/images"], data.get("in/labels"), sigma=results["sigma"], noise=data["loss/unit_noise"]
        )
        for name, expected in select(results, "state_after").items():
            assert mode == "train"
            assert max_rel(net.state_dict()[name], expected) <= 2e-6, (case, name)
            normalized += 1
        total = loss_map.sum() / len(loss_map)
        total.backward()
        outputs = {"D_x": recorder.D_x, "logvar": recorder.u, "loss_map": loss_map, "loss_total": total}
        for name in outputs.keys() & results.keys():
            tolerance = 1e-6 if name == "loss_total" else 5e-6
            assert max_rel(outputs[name].reshape(results[name].shape), results[name]) <= tolerance, (case, name)
        gradients = {f"grad/{name}": parameter.grad for name, parameter in net.named_parameters()}
        gradients["grad_x"] = recorder.x.grad
        compared = gradients.keys() & results.keys()
        assert any(name.startswith("grad/") for name in compared), case
        for name in compared:  # the worst published tensor lies 9.1e-6 from float64
            assert max_rel(gradients[name], results[name]) <= 1e-4, (case, name)
    assert normalized


@torch.no_grad()
def test_loss_in_float64_golden(golden):
    """float64 from the standard normal numbers on. 1e-10: rounding, enlarged by Fourier angles."""
    checked = 0
    for mode, description, _, data, results in golden_runs(golden):
        if "loss_total_fp64" not in results:
            continue
        net = build_network(NetworkConfig.from_json(description["config"]))
        net.load_state_dict(select(data, "state"))
        net, data = prepared(net.double(), mode), {name: x.double() for name, x in data.items()}
        objective = objective_of(description)
        sigma = objective.distribution.sigma(data["loss/rnd_normal"])
        noise, labels = data["loss/unit_noise"], data.get("in/labels")
        loss_map = objective(net, data["loss/images"], labels, sigma=sigma, noise=noise)
        total, expected = loss_map.sum() / len(loss_map), results["loss_total_fp64"]
        assert max_rel(total.reshape(expected.shape), expected) <= 1e-10, (mode, description["config"])
        checked += 1
    assert checked


def test_a_perfect_denoiser_has_its_uncertainty_as_loss():
    """(D - y)² = 0 leaves u, once per pixel and channel (Eq. 21)."""
    y = torch.randn(3, 2, 4, 4)
    loss_map = EDM2Loss()(lambda x, sigma, labels, return_logvar: (y, torch.full((3, 1, 1, 1), -1.5)), y)
    assert loss_map.shape == y.shape
    torch.testing.assert_close(loss_map, torch.full_like(y, -1.5))


@pytest.mark.parametrize("weighting", [EDM(), Uncertainty()], ids=str)
def test_conditions_reach_the_network_and_its_error_is_reported_whatever_the_weighting(weighting):
    y, noise, sigma = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0.1, 1.0, 10.0])
    given, reported = {"text": torch.ones(3, 7), "depth": None}, {}

    def net(x, sigma, labels, return_logvar=False, *, conditions):
        assert conditions is given
        return (x / 2, torch.ones(3, 1, 1, 1)) if return_logvar else x / 2

    context = SimpleNamespace(report=reported.__setitem__)
    EDM2Loss(weighting=weighting)(net, y, sigma=sigma, noise=noise, conditions=given, context=context)
    sigma = sigma.reshape(3, 1, 1, 1)
    x = y + sigma * noise
    expected = errors((x / 2 - y) ** 2, x, y, sigma, 0.5)
    assert torch.equal(torch.stack([reported["error"], reported["error_of_zero"]]), torch.stack(expected))


def test_calling_the_loss_enters_few_functions():
    """Beside the network at most 4 functions: call, noise distribution, and weighting with its lambda."""
    loss, entered = EDM2Loss(), []
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, arg: entered.append(frame.f_code) if event == "call" else None)
    loss(lambda x, *args, **options: (x, torch.zeros(2, 1, 1, 1)), torch.zeros(2, 1, 4, 4))
    sys.setprofile(before)
    assert len([code for code in entered if "training" in code.co_filename and code.co_filename != __file__]) <= 4


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_an_untrained_network_starts_at_unit_loss_at_every_noise_level(sigma):
    """lambda is chosen so (Eq. 16): F = 0 on data of standard deviation sd has expected loss 1, at u = 0.

    12,288 elements, each squared Gaussian with standard deviation sqrt(2): the mean errs by 1.3 %. Four times."""
    torch.manual_seed(0)
    net = build_network(NetworkConfig(16, 3, 0, model_channels=8, channel_mult=(1, 2), num_blocks=1))
    torch.nn.init.zeros_(net.logvar_linear.weight)  # u = 0
    images = 0.5 * torch.randn(16, 3, 16, 16)
    with torch.no_grad():
        loss_map = EDM2Loss()(net, images, sigma=torch.full((16,), sigma))
    assert loss_map.mean().item() == pytest.approx(1, abs=0.052)


@pytest.mark.parametrize(("P_mean", "P_std"), [(-0.4, 1.0), (-0.8, 1.6)])
def test_with_a_static_weighting_any_denoiser_fits_and_noise_levels_are_log_normal(P_mean, P_std):
    """No u(sigma) is asked for, and no conditions if there are none: lambda is 1 / sigma² + 1 / sd², D(x) = x.

    20,000 numbers, drawn by the objective itself: the mean errs by P_std / 141, the deviation by P_std / 200."""
    torch.manual_seed(0)
    levels, y, noise = [], torch.zeros(20_000, 1, 1, 1), torch.ones(20_000, 1, 1, 1)
    objective = EDM2Loss(P_mean, P_std, weighting=EDM())
    loss_map = objective(lambda x, sigma, labels: levels.append(sigma) or x, y, noise=noise)
    [sigma] = levels
    torch.testing.assert_close(loss_map.flatten(), 1 + 4 * sigma.flatten() ** 2)
    assert sigma.log().mean().item() == pytest.approx(P_mean, abs=4 * P_std / math.sqrt(20_000))
    assert sigma.log().std().item() == pytest.approx(P_std, abs=4 * P_std / math.sqrt(40_000))
