"""Real runs with the trainers that people have: resumed, averages are to the bit those of one run, or refused."""

import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from edm2.post_hoc_ema import PostHocEMA, find_snapshots, reconstruct

ROOT = Path(__file__).resolve().parents[2]
STEPS, HALF, BATCH = 30, 15, 4

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # advice on workers, loggers and devices


def toy() -> nn.Sequential:
    """A module with buffers, floating-point and integer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))


def batches(first: int = 0, count: int = STEPS) -> DataLoader:
    """The same for every run, without the `first` ones."""
    images = torch.randn(STEPS * BATCH, 6, generator=torch.Generator().manual_seed(1))
    return DataLoader(images[first * BATCH : (first + count) * BATCH], batch_size=BATCH)


def state_of(ema: PostHocEMA) -> dict:
    return {key: x.clone() if isinstance(x, torch.Tensor) else x for key, x in ema.state_dict().items()}


def assert_same_averages(a: dict, b: dict, steps: int = STEPS) -> None:
    """To the bit."""
    assert a.keys() == b.keys()
    assert a["images_seen"] == b["images_seen"] == steps
    assert all(torch.equal(a[key], b[key]) for key in a if "/" in key)


def check_files(folder: Path, times: list[int], model: nn.Module | None = None) -> None:
    """Files of one run at these times, that load into the model."""
    snapshots = find_snapshots(folder)
    assert [s.images_seen for s in snapshots[::2]] == times
    [state] = reconstruct(snapshots, [0.08])
    if model is not None:
        model.load_state_dict(state)


# ------------------------------------------------------------------------------------------------------------ Lightning


@pytest.fixture
def lightning():
    return pytest.importorskip("lightning")


def fit(
    lightning,
    callback,
    epochs: int,
    resume: str | None = None,
    trainer=None,
    module=None,
    accumulate: int = 1,
    momentum=0.9,
):
    """Train for some epochs of 15 batches; leaves a checkpoint."""

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = toy()

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            return self.net(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1, momentum=momentum)

    trainer = trainer or lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit_loop.max_epochs = epochs
    module = module or Module()
    trainer.fit(module, batches(count=HALF), ckpt_path=resume)
    trainer.save_checkpoint("saved.ckpt")
    return trainer, module


@pytest.mark.parametrize("accumulate", [1, 3])
def test_lightning(accumulate, lightning, tmp_path, monkeypatch):
    from edm2.post_hoc_ema.callbacks import LightningEMA

    monkeypatch.chdir(tmp_path)
    steps = STEPS // accumulate
    whole = LightningEMA("whole", every=4)
    assert whole.state_dict() == {}  # before training
    fit(lightning, whole, epochs=2, accumulate=accumulate)
    fit(lightning, LightningEMA("parts", every=4), epochs=1, accumulate=accumulate)
    resumed = LightningEMA("parts", every=5)  # a changed interval
    _, module = fit(lightning, resumed, epochs=2, resume="saved.ckpt", accumulate=accumulate)
    assert_same_averages(state_of(resumed.ema), state_of(whole.ema), steps)
    half = steps // 2
    times = {*range(4, half, 4), half, *range(5 * (half // 5 + 1), steps, 5), steps}
    check_files(tmp_path / "parts", sorted(times), module)
    live = module.net[0].weight.clone()
    with resumed.ema.swapped(0.08):
        assert not torch.equal(module.net[0].weight, live)
    assert torch.equal(module.net[0].weight, live)


def test_lightning_fits_twice_or_refuses(lightning, tmp_path, monkeypatch):
    from edm2.post_hoc_ema.callbacks import LightningEMA

    monkeypatch.chdir(tmp_path)
    fit(lightning, whole := LightningEMA("whole", every=4), epochs=2, momentum=0.0)
    twice = LightningEMA("twice", every=4)
    trainer, module = fit(lightning, twice, epochs=1, momentum=0.0)  # which Lightning would begin anew
    fit(lightning, twice, epochs=2, trainer=trainer, module=module)  # the steps go on
    assert_same_averages(state_of(twice.ema), state_of(whole.ema))
    with pytest.raises(ValueError, match="training is at step 0 and its averages are at 30: resume from"):
        fit(lightning, twice, epochs=1)  # another trainer, from the beginning
    with pytest.raises(ValueError, match="is of another run; choose another folder"):
        fit(lightning, LightningEMA("twice", every=4), epochs=1)  # a new callback into the old folder


def test_lightning_without_the_averages_in_its_checkpoint(lightning, tmp_path, monkeypatch):
    """Refused if there were averages, else begun with a copy: never does one step stand for all before."""
    from edm2.post_hoc_ema.callbacks import LightningEMA

    monkeypatch.chdir(tmp_path)
    fit(lightning, LightningEMA("ema", every=4), epochs=1)
    fit(lightning, lightning.pytorch.Callback(), epochs=1)  # its checkpoint has none
    with pytest.raises(ValueError, match="is of another run"):
        fit(lightning, LightningEMA("ema", every=4), epochs=2, resume="saved.ckpt")
    late = LightningEMA("late", every=4)
    fit(lightning, lightning.pytorch.Callback(), epochs=1)
    fit(lightning, late, epochs=2, resume="saved.ckpt")
    assert find_snapshots("late")[0].profile.start == HALF


# ----------------------------------------------------------------------------------------------------------- Accelerate


@pytest.mark.parametrize("accumulate", [1, 3])
def test_accelerate(accumulate, tmp_path, monkeypatch):
    accelerate = pytest.importorskip("accelerate")
    from edm2.post_hoc_ema.callbacks import AccelerateEMA

    def train(
        folder: str, first: int = 0, until: int = STEPS, resume: str | None = None
    ) -> tuple[PostHocEMA, nn.Module]:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
        net = toy()
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        model, optimizer, loader = accelerator.prepare(net, optimizer, batches(first))
        ema = AccelerateEMA(accelerator, model, folder, every=4)
        if resume is not None:
            accelerator.load_state(resume)
        step = ema.images_seen
        for batch in islice(loader, until - first):
            with accelerator.accumulate(model):
                accelerator.backward(model(batch).square().mean())
                optimizer.step()
                optimizer.zero_grad()
            step += accelerator.sync_gradients
            ema.update(step)
        ema.store()
        accelerator.save_state("saved")
        return ema, net

    monkeypatch.chdir(tmp_path)
    whole, _ = train("whole")
    train("parts", until=HALF)
    resumed, net = train("parts", first=HALF, resume="saved")
    steps, half = STEPS // accumulate, HALF // accumulate
    assert_same_averages(state_of(resumed), state_of(whole), steps)
    check_files(tmp_path / "parts", sorted({*range(4, steps, 4), half, steps}), net)
    with pytest.raises(ValueError, match="is of another run"):
        train("parts")


# --------------------------------------------------------------------------------------------------------- transformers


class Tokens(Dataset):
    def __len__(self) -> int:
        return STEPS * BATCH

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(0, 32, (8,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_transformers(accumulate, tmp_path, monkeypatch):
    """A tiny language model from a config, with tied embeddings."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")  # its Trainer needs it
    from edm2.post_hoc_ema.callbacks import TransformersEMA

    monkeypatch.chdir(tmp_path)
    steps, half = STEPS // accumulate, HALF // accumulate

    class StopAt(transformers.TrainerCallback):
        def __init__(self, step: int) -> None:
            self.step = step

        def on_step_end(self, args, state, control, **_) -> None:
            control.should_training_stop = state.global_step == self.step

    def made(callback, out: str, stop: int = steps) -> transformers.Trainer:
        torch.manual_seed(0)
        config = transformers.GPT2Config(vocab_size=32, n_positions=8, n_embd=8, n_layer=1, n_head=1)
        arguments = transformers.TrainingArguments(
            output_dir=out, per_device_train_batch_size=BATCH, gradient_accumulation_steps=accumulate, max_steps=steps,
            save_steps=half, save_strategy="steps", report_to=[], use_cpu=True, disable_tqdm=True,
            logging_strategy="no",
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
        return transformers.Trainer(model, arguments, train_dataset=Tokens(), callbacks=[callback, StopAt(stop)])

    made(whole := TransformersEMA("whole", every=4), "out-whole").train()
    made(TransformersEMA("parts", every=4), "out-parts", stop=half).train()
    trainer = made(resumed := TransformersEMA("parts", every=4), "out-parts")
    trainer.train(resume_from_checkpoint=f"out-parts/checkpoint-{half}")
    assert_same_averages(state_of(resumed.ema), state_of(whole.ema), steps)
    check_files(tmp_path / "parts", sorted({*range(4, steps, 4), half, steps}), trainer.model)
    before = trainer.model.transformer.wte.weight.clone()
    with resumed.ema.swapped(0.08):
        assert trainer.evaluate(Tokens())["eval_loss"] > 0
    assert torch.equal(trainer.model.transformer.wte.weight, before)
    with pytest.raises(ValueError, match=f"training is at step 0 and its averages are at {steps}"):
        trainer.train()
    with pytest.raises(ValueError, match="is of another run"):
        made(TransformersEMA("parts", every=4), "out-again").train()


# ------------------------------------------------------------------------------------------------- plain DDP, compiled

DDP = """
import sys, torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from edm2.post_hoc_ema import PostHocEMA

folder, first, until, checkpoint = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
distributed.init_process_group("gloo")
rank = distributed.get_rank()
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
model = DistributedDataParallel(net)
optimizer = torch.optim.SGD(net.parameters(), 0.1)
ema = PostHocEMA(model, folder, every=4)
if first:
    state = torch.load(checkpoint, weights_only=True)
    net.load_state_dict(state["net"])
    ema.load_state_dict(state["ema"])
for step in range(first + 1, until + 1):
    images = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))[rank::2]
    optimizer.zero_grad()
    model(images).square().mean().backward()
    optimizer.step()
    ema.update(step)
ema.store()
for sigma_rel in (0.1, 0.08):
    with ema.swapped(sigma_rel):
        weights = [torch.empty_like(net[0].weight) for _ in range(2)]
        distributed.all_gather(weights, net[0].weight.detach())
        assert torch.equal(*weights)
if rank == 0:
    torch.save({"net": net.state_dict(), "ema": ema.state_dict()}, checkpoint)
distributed.barrier()
distributed.destroy_process_group()
"""


def test_two_processes_of_plain_ddp(tmp_path):
    (tmp_path / "job.py").write_text(DDP)

    def job(folder: str, first: int, until: int) -> dict:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        arguments = [tmp_path / "job.py", tmp_path / folder, str(first), str(until), tmp_path / f"{folder}.pt"]
        done = subprocess.run([*torchrun, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr
        return torch.load(tmp_path / f"{folder}.pt", weights_only=True)["ema"]

    whole = job("whole", 0, STEPS)
    job("parts", 0, HALF)
    assert_same_averages(job("parts", HALF, STEPS), whole)
    check_files(tmp_path / "parts", [4, 8, 12, 15, 16, 20, 24, 28, 30], toy())


def test_a_compiled_module(tmp_path):
    def train(folder: str, first: int, until: int, state: dict | None = None) -> tuple[dict, nn.Module]:
        net = toy()
        compiled = torch.compile(net, backend="aot_eager")  # no compiler is needed for this one
        ema = PostHocEMA(compiled, tmp_path / folder, every=4)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        if state is not None:
            net.load_state_dict(state["net"])
            ema.load_state_dict(state["ema"])
        for step, batch in enumerate(batches(first, until - first), start=first + 1):
            optimizer.zero_grad()
            compiled(batch).square().mean().backward()
            optimizer.step()
            ema.update(step)
        ema.store()
        with ema.swapped(0.08):
            averaged = compiled(batch)
        assert not torch.equal(compiled(batch), averaged)
        return {"net": {k: x.clone() for k, x in net.state_dict().items()}, "ema": state_of(ema)}, net

    whole, _ = train("whole", 0, STEPS)
    half, _ = train("parts", 0, HALF)
    resumed, net = train("parts", HALF, STEPS, half)
    assert_same_averages(resumed["ema"], whole["ema"])
    check_files(tmp_path / "parts", [4, 8, 12, 15, 16, 20, 24, 28, 30], net)


# -------------------------------------------------------------------------------------------------------- lazy imports


def test_trainers_are_imported_when_asked_for():
    program = (
        "import sys, edm2.post_hoc_ema.callbacks as c; print('lightning' in sys.modules, 'transformers' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
    from edm2.post_hoc_ema import callbacks

    with pytest.raises(AttributeError, match="has no attribute 'KerasEMA'"):
        _ = callbacks.KerasEMA
