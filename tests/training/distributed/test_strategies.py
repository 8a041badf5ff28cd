"""Several processes train as one would."""

from pathlib import Path

import pytest
import torch
from jobs import Job, train, train_together
from tiny_run import assert_same_numbers, final_state, run, stats, tiny_config, tiny_data
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from edm2.networks import force_weight_normalization_
from edm2.post_hoc_ema import find_snapshots
from edm2.training import Trainer
from edm2.training.distributed.processes import Processes, joined_processes

TEN_STEPS = {"duration": 80, "status_every": 8, "snapshot_every": 40, "holdout": 5}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, dict[str, Tensor]]:
    """The same run by one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    return out, final_state(run(tiny_config(out, **TEN_STEPS)))


@pytest.mark.parametrize(
    ("count", "changes"),
    [
        (2, {}),
        pytest.param(2, {"micro_batch": 2}, marks=pytest.mark.slow),
        (2, {"shard": True, "recompute": True}),
        pytest.param(4, {"shard": True, "micro_batch": 1}, marks=pytest.mark.slow),
    ],
    ids=["ddp", "ddp-accumulating", "fsdp-recomputing", "four-fsdp-accumulating"],
)
def test_several_processes_train_as_one_does(tmp_path, alone, count, changes):
    """The same images, noise and labels; the same losses, weights, averages, snapshots and samples of the loss.

    Layers of the network have 1, 8 or 16 output units, so some of four shares are empty.
    """
    folder, expected = alone
    together = train_together(count, tmp_path / "run", **TEN_STEPS, **changes)
    assert_same_numbers(together, expected)
    for ours, theirs in zip(stats(tmp_path / "run"), stats(folder), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(ours[key] == pytest.approx(theirs[key], rel=1e-5) for key in ours), ours["images_seen"]
    for ours, theirs in zip(find_snapshots(tmp_path / "run"), find_snapshots(folder), strict=True):
        assert ours.path.name == theirs.path.name
        assert_same_numbers(*({name: s.read(name) for name in s.names} for s in (ours, theirs)))
    assert len(list((tmp_path / "run").iterdir())) == len(list(folder.iterdir()))


class Poisoned(Trainer):
    """The last image of one step is infinite: the last process sees it, the others do not."""

    def train_step(self, microbatches, *arguments):
        if self.images_seen == 40 and self.processes.rank == self.processes.count - 1:
            microbatches[-1][0][-1] = torch.inf
        return super().train_step(microbatches, *arguments)


@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp"])
def test_a_nonfinite_gradient_of_one_process_is_zeroed_and_counted_in_all(tmp_path, shard):
    """Where only one notices, weights would drift apart, or the run end in one process only."""
    config = tiny_config(tmp_path / "alone", **TEN_STEPS)
    one = Poisoned(config, dataset=tiny_data())
    one.run()
    changes = {**TEN_STEPS, "out": str(tmp_path / "two"), "shard": shard, "max_nonfinite_steps": 2}
    job = Job(2, tmp_path / "said", train, changes, tmp_path / "two.pt", Poisoned)
    assert job.wait() == [0, 0], job.words(1)
    assert_same_numbers(torch.load(tmp_path / "two.pt", weights_only=True), final_state(one))
    assert [r["nonfinite_steps"] for r in stats(tmp_path / "two")] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 6, "duration": 12}, r"batch_size=6 is not a multiple of the 4 processes"),
        ({"batch_size": 12, "micro_batch": 2, "duration": 12}, r"3 images per process .* micro_batch=2; try .*=1"),
        ({"shard": True, "diagnostics_every": 8}, "diagnostics need the whole network"),
        ({"shard": True, "weighting": "pareto"}, "'pareto' needs the whole network"),
    ],
)
def test_what_processes_cannot_share_is_refused_before_anything_is_made(tmp_path, changes, named):
    with pytest.raises(ValueError, match=named):
        Trainer(tiny_config(tmp_path, **changes), processes=Processes(0, 4))


def count_collectives(out: str) -> None:
    with joined_processes() as processes:
        trainer = Trainer(tiny_config(out, shard=True), dataset=tiny_data(), processes=processes)
        assert {p.ndim for p in trainer.net.parameters() if not isinstance(p, DTensor)} == {0}
        with CommDebugMode() as communication:
            force_weight_normalization_(trainer.net)
            trainer.step.ema.update(8)
        assert communication.get_total_counts() == 0
        with CommDebugMode() as communication:  # that it would have seen some:
            sum(p.full_tensor().sum() for p in trainer.net.parameters() if isinstance(p, DTensor))
        assert communication.get_total_counts() > 0
        distributed.barrier()


@pytest.mark.slow
def test_weight_normalization_and_averages_of_shares_need_no_communication(tmp_path):
    job = Job(4, tmp_path / "said", count_collectives, str(tmp_path / "run"))
    assert job.wait() == [0] * 4, job.words(0)
