"""Devices without float64, such as Apple's (MPS): what is computed in float64 must be brought to the CPU first."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edm2.networks import NetworkConfig, build_network
from edm2.training import EDM2Loss, LnNormal, Pareto
from edm2.training.data.batches import Batch
from edm2.training.diagnostics.batches import ProbeBatch
from edm2.training.diagnostics.noise_levels import loss_and_denoiser_error

DEVICE = torch.device("meta")
"""Stands for such a device; its tensors hold no numbers."""


class WithoutFloat64(TorchDispatchMode):
    """Within this context no tensor on `DEVICE` is float64; what is copied from there to the CPU is ones."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].device == DEVICE and "cpu" in str(kwargs.get("device")):
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device == DEVICE and tensor.dtype == torch.float64:
                raise TypeError(f"{func}: this device has no float64")
        return result


def test_the_stand_in_refuses_float64_on_the_device_only():
    with WithoutFloat64():
        x = torch.zeros(2, device=DEVICE)
        assert x.cpu().double().tolist() == [1, 1]
        assert x.cpu().double().to(x).dtype == torch.float32
        with pytest.raises(TypeError, match="no float64"):
            x.double()


def test_pareto_optimal_weights_learn_and_weigh():
    weighting = Pareto(LnNormal(), 0.5, bins=4)
    with WithoutFloat64():
        weighting.update(torch.zeros(4, 30, device=DEVICE), torch.ones(4, dtype=torch.int64, device=DEVICE))
        loss = weighting(*(torch.ones(2, 1, 1, 1, device=DEVICE) for _ in range(3)), 0.5)
    assert (loss.device, loss.dtype) == (DEVICE, torch.float32)
    assert weighting.gram.diagonal().gt(0).all()


def test_the_error_of_the_denoiser_is_measured():
    net = build_network(NetworkConfig(8, 1, 0, model_channels=8, channel_mult=(1,), num_blocks=1)).to(DEVICE)
    images = torch.zeros(2, 1, 8, 8, device=DEVICE)
    with WithoutFloat64():
        batch = ProbeBatch(Batch(images), torch.ones(2, device=DEVICE), images)
        _, sums = loss_and_denoiser_error(net, EDM2Loss(), batch)
    assert sums.gt(0).all()
