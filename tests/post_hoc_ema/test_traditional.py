"""The average of a fixed half-life."""

import numpy as np
import pytest
import torch
from torch import nn

from edm2.post_hoc_ema import PowerFunctionEMA, TraditionalEMA, rampup_ratio_to_sigma_rel


class Ramp(nn.Module):
    """A weight that is set to the time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def at(self, t: int) -> None:
        self.weight.data.fill_(t)


def tracked(ema, module: Ramp, duration: int, interval: int) -> float:
    for t in range(interval, duration + 1, interval):
        module.at(t)
        ema.update(t)
    average = ema.average() if isinstance(ema, TraditionalEMA) else ema.average(*ema.sigma_rels)
    return float(average["weight"])


def test_a_weight_loses_half_of_its_share_in_a_half_life():
    """Past a jump from 0 to 1 that lasts for n half-lives, the average is 1 - 2^-n, to the bit but for rounding."""
    module = Ramp()
    ema = TraditionalEMA(module, half_life=100, rampup_ratio=1)
    module.at(0)
    ema.update(1000)
    module.at(1)
    for t in range(1010, 1301, 10):
        ema.update(t)
    assert float(ema.average()["weight"]) == pytest.approx(1 - 2**-3, abs=1e-12)


@pytest.mark.parametrize("ratio", [0.05, 0.09, 0.3])
def test_while_the_half_life_ramps_up_it_is_a_power_function_average(ratio):
    """The half-life r t gives β = (1 - dt/t)^(γ+1) for γ = ln 2 / r - 1, to first order in dt/t, which is 1/1000
    at the end, where the weight of the average lies."""
    module = Ramp()
    width = float(rampup_ratio_to_sigma_rel(ratio))
    traditional = tracked(TraditionalEMA(module, half_life=10**9, rampup_ratio=ratio), module, 10_000, 10)
    power = tracked(PowerFunctionEMA(module, [width]), module, 10_000, 10)
    assert traditional == pytest.approx(power, rel=1e-3)
    assert traditional == pytest.approx(10_000 * (np.log(2) / ratio) / (np.log(2) / ratio + 1), rel=1e-3)


def test_its_width_is_that_of_the_ramp_up_and_then_falls():
    """0.0336 is what 50 Mi images are worth at the end of the paper's config A, of 2147.5 Mi images."""
    module = Ramp()
    ema = TraditionalEMA(module, half_life=50_000_000)
    for t, width in ((1_000, 0.0629), (1_000_000_000, 0.0629), (2_147_483_648, 0.0336)):
        ema.update(t)
        assert ema.sigma_rel == pytest.approx(width, abs=1e-4)


def test_it_resumes_with_its_half_life_alone_which_is_positive():
    module = Ramp()
    whole, first = TraditionalEMA(module, 50), TraditionalEMA(module, 50)
    for t in range(10, 200, 10):
        module.at(t)
        whole.update(t)
        if t <= 100:
            first.update(t)
        else:
            if t == 110:
                second = TraditionalEMA(module, 50)
                second.load_state_dict(first.state_dict())
            second.update(t)
    assert torch.equal(second.average()["weight"], whole.average()["weight"])
    with pytest.raises(ValueError, match="another run"):
        TraditionalEMA(module, 60).load_state_dict(first.state_dict())
    for half_life, ratio in ((0, 0.05), (-1, 0.05), (10, 0)):
        with pytest.raises(ValueError, match="must be positive"):
            TraditionalEMA(module, half_life, ratio)
