"""The plain training and sampling that ours are timed against do the same work."""

import pytest
import torch
from reference_networks import CONFIGS, assert_close, batch, network

from edm2.post_hoc_ema import sigma_rel_to_gamma
from edm2.sampling.guidance import guided, without_labels
from edm2.sampling.samplers.heun import sample_heun
from edm2.tools.bench.plain import PlainTraining, plain_copy, plain_heun
from edm2.training import TrainingConfig
from edm2.training.data.batches import Batch
from edm2.training.draws import GivenDraws
from edm2.training.step import TrainStep


def test_training_agrees_step_by_step(tmp_path):
    """Gradients accumulated over two rounds, Adam, the learning rate and both averages."""
    config = CONFIGS["classes"]
    schedule = {"ref_lr": 1e-3, "ref_batches": 1, "rampup_images": 16}
    run = TrainingConfig(data="", out=str(tmp_path), network=config, batch_size=8, duration=64, **schedule)
    net = network(config)
    gammas = sigma_rel_to_gamma(run.sigma_rels)
    step = TrainStep(run, net)
    plain = PlainTraining(
        plain_copy(net.train()), 8, lambda seen: step.learning_rate(), run.betas, gammas, run.loss_scale
    )
    for _ in range(3):
        rounds = [batch(config), batch(config)]
        plain.step(rounds)
        images, labels, sigma, noise = zip(*rounds, strict=True)
        step.draws = GivenDraws(step.images_seen, torch.cat(sigma), torch.cat(noise))
        step(list(map(Batch, images, labels)))
    averages = [step.ema.average(sigma_rel) for sigma_rel in run.sigma_rels]
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
