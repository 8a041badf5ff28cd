"""The plain form that we are timed against does our network's work: same outputs, gradients, training and samples."""

import pytest
import torch
import torch.nn.functional as F

from edm2.networks import NetworkConfig, build_network, force_weight_normalization_
from edm2.post_hoc_ema import sigma_rel_to_gamma
from edm2.sampling.guidance import guided, without_labels
from edm2.sampling.samplers.heun import sample_heun
from edm2.tools.bench.plain import PlainEMA, PlainPrecond, PlainTraining, plain_copy, plain_heun, plain_loss
from edm2.training import EDM2Loss, TrainingConfig
from edm2.training.step import TrainStep

CONFIGS = {
    "classes": NetworkConfig(8, 3, 5, model_channels=16, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,)),
    "no classes": NetworkConfig((8, 16), 1, 0, model_channels=16, channel_mult=(1, 2), num_blocks=2),
    "filter, balances and clipping": NetworkConfig(
        16, 2, 3, model_channels=8, channel_mult=(1, 2, 2), num_blocks=1, attn_resolutions=(8, 4), channels_per_head=8,
        resample_filter=(1, 3, 3, 1), label_balance=0.4, concat_balance=0.6, res_balance=0.2, attn_balance=0.35,
        clip_act=2.0, channel_mult_noise=2, channel_mult_emb=3,
    ),
}  # fmt: skip
ROUNDING = 2e-5
"""Relative: a hundred operations in float32, of 6e-8 each, in another order."""


def network(config: NetworkConfig):
    """Random weights of any magnitude, and gains that let everything through."""
    torch.manual_seed(0)
    net = build_network(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5) if parameter.ndim else parameter.fill_(0.7)
    return net


def batch(config: NetworkConfig, count: int = 4):
    """Images, one-hot labels, noise levels and noise."""
    torch.manual_seed(1)
    shape = count, config.img_channels, *config.size
    labels = F.one_hot(torch.arange(count) % config.label_dim, config.label_dim).float() if config.label_dim else None
    return 0.5 * torch.randn(shape), labels, torch.randn(count).exp(), torch.randn(shape)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, rel: float = ROUNDING) -> None:
    """Up to rounding, in relation to the largest element."""
    assert (actual - expected).abs().max() <= rel * expected.abs().max()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_outputs_agree(config):
    net = network(config).eval()
    plain = plain_copy(net)
    images, labels, sigma, _ = batch(config)
    for mine, theirs in zip(
        plain(images, sigma, labels, return_logvar=True), net(images, sigma, labels, return_logvar=True), strict=True
    ):
        assert_close(mine, theirs)
    assert_close(plain(images, sigma[0]), net(images, sigma[0]))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_weights_and_gradients_of_a_training_pass_agree(config):
    """Forced normalization included, which is ours once per step and the plain form's in its forward pass."""
    net = network(config).train()
    plain = plain_copy(net)
    images, labels, sigma, noise = batch(config)
    force_weight_normalization_(net)
    EDM2Loss()(net, images, labels, sigma=sigma, noise=noise).sum().backward()
    plain_loss(plain, images, labels, sigma, noise).sum().backward()
    theirs = dict(net.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, theirs[name])
        assert_close(parameter.grad, theirs[name].grad, 10 * ROUNDING)  # as many operations again, on sums of them


def test_training_agrees_step_by_step(tmp_path):
    """Gradients accumulated over two rounds, Adam, the learning rate and both averages."""
    config = CONFIGS["classes"]
    schedule = {"ref_lr": 1e-3, "ref_batches": 1, "rampup_images": 16}
    run = TrainingConfig(data="", out=str(tmp_path), network=config, batch_size=8, duration=64, **schedule)
    net = network(config)
    gammas = sigma_rel_to_gamma(run.sigma_rels)
    learner = TrainStep(run, net)
    plain = PlainTraining(
        plain_copy(net.train()), 8, lambda seen: learner.learning_rate(), run.betas, gammas, run.loss_scale
    )
    for _ in range(3):
        rounds = [batch(config), batch(config)]
        plain.step(rounds)
        images, labels, sigma, noise = zip(*rounds, strict=True)
        learner.step(list(zip(images, labels, strict=True)), sigma, noise)
    averages = [learner.ema.average(sigma_rel) for sigma_rel in run.sigma_rels]
    for ours, theirs in zip([net, *averages], [plain.net, *plain.ema.averages], strict=True):
        ours = ours if isinstance(ours, dict) else ours.state_dict()
        for name, value in theirs.state_dict().items():
            # Adam's first steps divide a gradient by its own size: where it is all rounding, so is its sign
            assert (value - ours[name]).abs().mean() <= 1e-4 * ours[name].abs().mean() + 1e-7


@pytest.mark.parametrize("guidance", [1.0, 1.7])
def test_samples_agree(guidance):
    config = CONFIGS["classes"]
    net = network(config).eval()
    plain = plain_copy(net)
    _, labels, _, noise = batch(config)
    ours = sample_heun(guided(net, without_labels(net), guidance), noise, labels, num_steps=5)
    guide = plain if guidance != 1 else None
    theirs = plain_heun(plain, noise, labels, num_steps=5, guide=guide, guidance=guidance)
    assert_close(theirs, ours, 1e-4)  # nine evaluations, each of which amplifies what the one before rounded


def test_half_precision_casts_and_keeps_master_weights():
    """Activations in float16 or bfloat16, results and parameters in float32, as ours."""
    config = CONFIGS["classes"]
    net = network(config).eval()
    images, labels, sigma, _ = batch(config)
    exact = net(images, sigma, labels)
    for dtype, rel in ((torch.float16, 1e-2), (torch.bfloat16, 8e-2)):  # 20 layers of 2^-11 and 2^-8 each
        net.compute_dtype = dtype
        plain = plain_copy(net)
        output = plain(images, sigma, labels)
        assert output.dtype == torch.float32
        assert not torch.equal(output, exact)
        assert_close(output, exact, rel)
        assert all(p.dtype == torch.float32 for p in plain.parameters())


def test_averages_start_as_copies_that_move_toward_the_network():
    config = CONFIGS["no classes"]
    plain = PlainPrecond(config)
    ema = PlainEMA(plain, [6.94])
    with torch.no_grad():
        plain.unet.out_gain.fill_(1.0)
    ema.update(images_seen=10, batch_size=10)  # the first update gives what was before no share
    assert ema.averages[0].unet.out_gain == 1
    assert plain.unet.out_gain.requires_grad


def test_another_configuration_is_refused():
    with pytest.raises(ValueError, match="config=C: the plain form is written for config G alone"):
        PlainPrecond(NetworkConfig(8, 1, 0, config="C", model_channels=16, channel_mult=(1,)))
