"""LearnedWeighting: it learns the logarithm of the loss, begins as the plain loss, and cancels fixed weights."""

import pytest
import torch
from torch import nn

from edm2.training import LearnedWeighting


def loss_at(t: torch.Tensor) -> torch.Tensor:
    """A loss that spans a factor of 2,000, as those of noise levels do."""
    return 0.001 + 2 * t**4


@pytest.mark.parametrize("kind", ["timesteps", "flow", "ln SNR"])
def test_u_becomes_the_logarithm_of_the_expected_loss(kind):
    """Within 0.5, where the loss spans 7.6; every level then has the same weighted loss."""
    torch.manual_seed(0)
    weighting, to_level = {
        "timesteps": (LearnedWeighting.of_timesteps(1000), lambda t: (1000 * t).long()),
        "flow": (LearnedWeighting.of_timesteps(1), lambda t: t),
        "ln SNR": (LearnedWeighting.of_log_snr(), lambda t: 8 - 16 * t),
    }[kind]
    optimizer = torch.optim.AdamW([weighting.parameter_group()])
    for _ in range(500):
        t = torch.rand(256)
        optimizer.zero_grad()
        weighting(loss_at(t) * 2 * torch.rand(256), to_level(t)).mean().backward()
        optimizer.step()
    t = torch.linspace(0.02, 0.98, 50)
    torch.testing.assert_close(weighting.u(to_level(t)), loss_at(t).log(), rtol=0, atol=0.5)


@pytest.mark.parametrize("shape", [(8,), (8, 3), (8, 3, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_begins_as_the_plain_loss(shape, dtype):
    weighting = LearnedWeighting.of_log_snr().to(dtype)
    loss, level = torch.rand(shape, dtype=dtype), torch.randn(8)
    assert torch.equal(weighting(loss, level), loss)


def test_one_number_per_image_weighs_all_of_its_elements():
    """loss / e^u + u, and the mean over elements may be taken before or after."""
    weighting = LearnedWeighting()
    nn.init.normal_(weighting.linear.weight)
    loss, level = torch.rand(8, 3, 4), torch.randn(8)
    u = weighting.u(level)
    torch.testing.assert_close(weighting(loss, level), loss / u.exp()[:, None, None] + u[:, None, None])
    torch.testing.assert_close(weighting(loss.mean(dim=(1, 2)), level), weighting(loss, level).mean(dim=(1, 2)))


def test_it_is_a_group_of_the_optimizer_and_works_under_autocast():
    model, weighting = nn.Linear(2, 2), LearnedWeighting.of_timesteps()
    optimizer = torch.optim.AdamW([{"params": model.parameters(), "lr": 1e-4}, weighting.parameter_group(lr=3e-3)])
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(1e-4, 0.01), (3e-3, 0.0)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = weighting(model(torch.ones(4, 2)).square().mean(dim=1), torch.tensor([0, 300, 600, 999])).mean()
    loss.backward()
    assert weighting.linear.weight.grad.dtype == torch.float32
    assert not weighting.state_dict().keys() & model.state_dict().keys()
