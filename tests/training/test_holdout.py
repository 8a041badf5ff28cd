"""The loss per noise level on held-out images."""

import pytest
import torch

from edm2.networks import NetworkConfig, build_network
from edm2.training import NOISE_DISTRIBUTIONS, LnNormal, noise_distribution
from edm2.training.holdout import NOISE_QUANTILES, measure_loss


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    return build_network(NetworkConfig(16, 3, 0, model_channels=8, channel_mult=(1, 2), num_blocks=1)).eval()


@pytest.mark.parametrize("name", NOISE_DISTRIBUTIONS)
def test_an_untrained_network_has_unit_loss_at_all_levels_of_any_distribution(untrained, name):
    """At quantiles of the distribution. 12,288 elements err by 1.3 %, four times that."""
    images = 0.5 * torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    measured = measure_loss(untrained, images, None, noise_distribution(name), batch_size=5)
    assert all(low < high for low, high in zip(measured.sigmas, measured.sigmas[1:], strict=False))
    assert measured.losses == pytest.approx([1] * len(NOISE_QUANTILES), abs=0.052)


def test_log_normal_levels_are_deviations_from_the_mean(untrained):
    images = torch.zeros(2, 3, 16, 16)
    sigmas = measure_loss(untrained, images, None, LnNormal(-1.2, 1.2), batch_size=2).sigmas
    normal = [(torch.tensor(sigma).log().item() + 1.2) / 1.2 for sigma in sigmas]
    assert normal == pytest.approx(NOISE_QUANTILES, abs=1e-5)
