"""The network of config G computes what the reference, written line by line from the paper, computes."""

from dataclasses import replace

import pytest
import torch
from reference_networks import CONFIGS, assert_close, batch, network

from edm2.networks import force_weight_normalization_
from edm2.networks.reference import ReferencePrecond, reference_loss
from edm2.training import EDM2Loss


def reference_of(net) -> ReferencePrecond:
    """The reference with the weights, the mode and the dtype of a network."""
    reference = ReferencePrecond(net.config)
    reference.load_state_dict(net.state_dict())
    reference.compute_dtype = net.compute_dtype
    return reference.train(net.training)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_outputs_agree(config):
    net = network(config).eval()
    reference = reference_of(net)
    images, labels, sigma, _ = batch(config)
    for mine, theirs in zip(
        reference(images, sigma, labels, return_logvar=True),
        net(images, sigma, labels, return_logvar=True),
        strict=True,
    ):
        assert_close(mine, theirs)
    assert_close(reference(images, sigma[0]), net(images, sigma[0]))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_weights_and_gradients_of_a_training_pass_agree(config):
    """Forced normalization included, which is ours once per step and the reference's in its forward pass."""
    net = network(config).train()
    reference = reference_of(net)
    images, labels, sigma, noise = batch(config)
    force_weight_normalization_(net)
    EDM2Loss()(net, images, labels, sigma=sigma, noise=noise).sum().backward()
    reference_loss(reference, images, labels, sigma, noise).sum().backward()
    theirs = dict(net.named_parameters())
    for name, parameter in reference.named_parameters():
        assert torch.equal(parameter, theirs[name])
        assert_close(parameter.grad, theirs[name].grad, 2e-4)  # as many operations again, on sums of them


def test_half_precision_casts_and_keeps_master_weights():
    """Activations in float16 or bfloat16, results and parameters in float32, as ours. Of config G alone."""
    config = CONFIGS["classes"]
    net = network(config).eval()
    images, labels, sigma, _ = batch(config)
    exact = net(images, sigma, labels)
    for dtype, rel in ((torch.float16, 1e-2), (torch.bfloat16, 8e-2)):  # 20 layers of 2^-11 and 2^-8 each
        net.compute_dtype = dtype
        reference = reference_of(net)
        output = reference(images, sigma, labels)
        assert output.dtype == torch.float32
        assert not torch.equal(output, exact)
        assert_close(output, exact, rel)
        assert all(p.dtype == torch.float32 for p in reference.parameters())
    with pytest.raises(ValueError, match="config=C: the reference network is config G alone"):
        ReferencePrecond(replace(config, config="C"))
