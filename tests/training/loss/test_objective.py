"""The training objective around whole networks against golden losses and gradients, in training and evaluation mode."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from golden_data import arrays, max_rel, select, table
from scipy import stats
from torch import Tensor

from edm2.networks import NetworkConfig, Precond, build_network, force_weight_normalization_
from edm2.training import EDM, EDM2Loss
from edm2.training.data.order import ShuffledOrder
from edm2.training.loss.objective import stratified_normal


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
    """Stands for the network: keeps what the objective gave it and got back, with the gradient of the input."""

    def __init__(self, net: Precond) -> None:
        self.net = net

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.x = x.detach().requires_grad_()
        self.D_x, self.u = self.net(self.x, *args, **kwargs)
        return self.D_x, self.u


def test_noise_levels_golden(golden):
    for _, description, _, data, results in golden_runs(golden):
        sigma = objective_of(description).sigma_from_normal(data["loss/rnd_normal"])
        assert max_rel(sigma, results["sigma"]) <= 1e-6  # exp in float32


def test_loss_and_gradients_golden(golden):
    for mode, description, net, data, results in golden_runs(golden):
        case, recorder = (mode, description["config"]), Recorder(net)
        loss_map = objective_of(description)(
            recorder, data["loss/images"], data.get("in/labels"), sigma=results["sigma"], noise=data["loss/unit_noise"]
        )
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


def test_forced_normalization_golden(golden):
    checked = 0
    for mode, description, net, _, results in golden_runs(golden):
        for name, expected in select(results, "state_after").items():
            assert mode == "train"
            assert max_rel(net.state_dict()[name], expected) <= 2e-6, (description["config"], name)
            checked += 1
    assert checked


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
        sigma = objective.sigma_from_normal(data["loss/rnd_normal"])
        noise, labels = data["loss/unit_noise"], data.get("in/labels")
        loss_map = objective(net, data["loss/images"], labels, sigma=sigma, noise=noise)
        total, expected = loss_map.sum() / len(loss_map), results["loss_total_fp64"]
        assert max_rel(total.reshape(expected.shape), expected) <= 1e-10, (mode, description["config"])
        checked += 1
    assert checked


def perfect(y: Tensor, u: float = 0.0):
    """A denoiser that knows the data."""
    return lambda x, sigma, labels, return_logvar: (y, torch.full((len(x), 1, 1, 1), u))


def test_a_perfect_denoiser_is_left_with_its_uncertainty():
    """(D - y)² = 0 leaves u, once per pixel and channel (Eq. 21)."""
    y = torch.randn(3, 2, 4, 4)
    loss_map = EDM2Loss()(perfect(y, u=-1.5), y)
    assert loss_map.shape == y.shape
    torch.testing.assert_close(loss_map, torch.full_like(y, -1.5))


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
def test_noise_levels_are_log_normal(P_mean, P_std):
    """Drawn by the objective itself; 20,000 numbers: the mean errs by P_std / 141, the deviation by P_std / 200."""
    seen = []

    def net(x, sigma, labels, return_logvar):
        seen.append(sigma.flatten())
        return x, torch.zeros(len(x), 1, 1, 1)

    torch.manual_seed(0)
    EDM2Loss(P_mean, P_std)(net, torch.zeros(20_000, 1, 1, 1))
    assert seen[0].log().mean().item() == pytest.approx(P_mean, abs=4 * P_std / math.sqrt(20_000))
    assert seen[0].log().std().item() == pytest.approx(P_std, abs=4 * P_std / math.sqrt(40_000))


# --------------------------------------------------------------------------------------------- stratified noise levels


@pytest.mark.parametrize("strata", [1, 3, 64, 2048])
def test_every_batch_has_one_noise_level_per_stratum(strata):
    """Wherever the first place lies. 1e-4: float32 rounds a normal number by 1e-7, that is 2e-4 of 2048 strata."""
    first = 7 * strata + 2
    uniform = torch.rand(2 * strata, generator=torch.Generator().manual_seed(0))
    normal = stratified_normal(first, uniform, strata)
    assert normal.dtype == torch.float32
    place = torch.arange(first, first + 2 * strata)
    torch.testing.assert_close(
        strata * torch.special.ndtr(normal.double()), (place % strata + uniform).double(), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("strata", [1, 2, 2048, 1 << 20])
def test_the_ends_of_the_distribution_are_finite(strata):
    """The smallest and the largest float32 uniform numbers, in the first and the last stratum."""
    ends = torch.tensor([0.0, 1 - 2.0**-24])
    lowest = stratified_normal(0, ends[:1], strata)
    highest = stratified_normal(strata - 1, ends[1:], strata)
    assert -8 < lowest < -5
    torch.testing.assert_close(lowest, -highest)


def test_each_number_for_itself_is_normal():
    """One place, drawn at random, of each of 5,000 batches: what an image meets over the epochs."""
    strata, batches = 16, 5_000
    g = torch.Generator().manual_seed(0)
    normal = stratified_normal(0, torch.rand(strata * batches, generator=g), strata).reshape(batches, strata)
    place = torch.randint(strata, (batches,), generator=g)
    assert stats.kstest(normal[torch.arange(batches), place].numpy(), "norm").pvalue > 0.01
    assert normal.std() == pytest.approx(1, abs=4 / math.sqrt(2 * normal.numel()))


def test_images_and_strata_are_independent():
    """The order of images knows nothing of places. 4,000 epochs of 40 images, which end within a batch of 16."""
    images, strata, epochs = 40, 16, 4_000
    order = ShuffledOrder(images, seed=0).indices(0, images * epochs)
    place = torch.arange(images * epochs)
    met = (torch.from_numpy(order) * strata + place % strata).bincount(minlength=images * strata)
    assert stats.chi2_contingency(met.reshape(images, strata).numpy()).pvalue > 0.01


def test_the_loss_of_a_batch_varies_less():
    """Of a denoiser whose loss depends on the noise level, the variance between batches of 16 falls by a factor of 20:
    what is left is that of the noise itself, averaged over 192 pixels per image."""
    g = torch.Generator().manual_seed(0)
    batches, strata = 400, 16
    loss = EDM2Loss(P_mean=-1.2, P_std=1.2, weighting=EDM())
    y = 0.1 * torch.randn(strata * batches, 3, 8, 8, generator=g)
    noise = torch.randn(y.shape, generator=g)

    def shrink(x, sigma, labels, return_logvar):
        return x * 0.25 / (0.25 + sigma**2), torch.zeros(len(x), 1, 1, 1)

    def variance(normal: Tensor) -> float:
        losses = loss(shrink, y, sigma=loss.sigma_from_normal(normal), noise=noise).mean(dim=(1, 2, 3))
        return losses.reshape(batches, strata).mean(dim=1).var().item()

    independent = variance(torch.randn(len(y), generator=g))
    stratified = variance(stratified_normal(0, torch.rand(len(y), generator=g), strata))
    assert stratified < independent / 10
