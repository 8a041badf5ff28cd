"""A network with its guide is one network; dropout with fixed masks makes a guide of any network."""

import copy

import pytest
import torch
from golden_data import max_rel

import edm2
from edm2.networks import fold
from edm2.sampling.external import ready_to_sample
from edm2.sampling.guided_network import GuidedNetwork, LevelMasks, with_dropout

INTERVAL = (0.3, 10.0)


def drawn(net, seeds=range(3), **options) -> torch.Tensor:
    return torch.cat([batch.samples for batch in edm2.generate(net, seeds, 2, num_steps=4, **options)])


@pytest.mark.parametrize("guided_by", ["network", "itself"])
def test_it_draws_what_its_two_networks_draw(net, make_net, guided_by):
    guide = make_net(seed=1) if guided_by == "network" else None
    whole = GuidedNetwork(net, guide, 1.7, INTERVAL)
    apart = edm2.without_labels(net) if guide is None else guide
    expected = drawn(net, guide=apart, guidance=1.7, interval=INTERVAL)
    assert torch.equal(drawn(whole), expected)
    assert not torch.equal(drawn(net), expected)
    folded = ready_to_sample(whole)
    assert max_rel(drawn(folded), expected) < 1e-4
    assert (folded.config, folded.sigma_data, folded.empty_classes) == (net.config, net.sigma_data, net.empty_classes)


def test_dropout_is_the_same_for_every_batch_and_call_at_a_noise_level(net):
    x, sigma, labels = torch.randn(4, 3, 8, 8), torch.tensor(1.0), torch.arange(4)
    thinned = with_dropout(net, 0.2)
    D = thinned(x, sigma, labels)
    assert torch.equal(D, thinned(x, sigma, labels))
    assert torch.equal(D, thinned(x, sigma=sigma, class_labels=labels))
    assert max_rel(thinned(x[1:2], sigma, labels[1:2]), D[1:2]) < 1e-5
    assert torch.equal(D, with_dropout(net, 0.2)(x, sigma, labels))
    assert max_rel(fold(thinned)(x, sigma, labels), D) < 1e-5
    assert max_rel(with_dropout(net, 0.2, seed=100)(x, sigma, labels), D) > 1e-3
    assert max_rel(net(x, sigma, labels), D) > 1e-3, "the copy drops, the network does not"
    seen, drop = [], LevelMasks.drop
    masks = LevelMasks(0.5, 0)
    for level in (1.0, 1.5, 1.0):
        masks.note_level(net, (x, torch.tensor(level)), {})
        seen.append(drop(masks, 3, torch.ones(1, 8, 8, 8)))
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1]), "other levels, other masks"
    levels = torch.tensor([1.0, 5.0, 0.2, 1.0])
    alone = [thinned(x[i : i + 1], levels[i], labels[i : i + 1]) for i in range(4)]
    assert max_rel(thinned(x, levels, labels), torch.cat(alone)) < 1e-5, "a level per image, as in training"
    copied = copy.deepcopy(thinned)
    assert max_rel(copied(x, 2 * sigma, labels), thinned(x, 2 * sigma, labels)) < 1e-6, "copies note levels themselves"
    assert max_rel(copied(x, sigma, labels), D) < 1e-6
    assert max_rel(with_dropout(net, 1e-7)(x, sigma, labels), net(x, sigma, labels)) < 1e-5


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan")])
def test_rates_that_drop_nothing_or_everything_are_refused(net, rate):
    with pytest.raises(ValueError, match="between 0 and 1"):
        with_dropout(net, rate)
