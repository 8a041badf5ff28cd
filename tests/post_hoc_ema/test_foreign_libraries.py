"""Checkpoints that transformers, PEFT and Lightning really write, where those are installed, and their way back."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edm2.post_hoc_ema import RawProfile, power_profile, rebuild, tail_coefficients
from edm2.post_hoc_ema.foreign.facts import Facts
from edm2.post_hoc_ema.foreign.recognition import recognize
from edm2.tools.commands.reconstruct import reconstruct as command

pytestmark = pytest.mark.slow


def tiny_llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_attention_heads=2, **sizes))


def test_a_run_of_transformers(tmp_path: Path):
    """Checkpoints, and the final weights beside them; the average loads into the model."""
    net = tiny_llama()
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    tokens = torch.randint(64, (64, 16))
    options = {"max_steps": 30, "save_steps": 10, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    arguments = transformers.TrainingArguments(str(tmp_path), per_device_train_batch_size=4, **options)
    trainer = transformers.Trainer(net, arguments, train_dataset=[{"input_ids": t, "labels": t} for t in tokens])
    trainer.train()
    trainer.save_model()
    found = recognize(tmp_path, Facts())
    assert [snapshot.profile for snapshot in found.snapshots] == [RawProfile(t) for t in (10, 20, 30)]
    assert "model.safetensors" in found.left_aside
    missing, unexpected = net.load_state_dict(rebuild(tmp_path, 0.15), strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}  # where it is tied


@pytest.mark.parametrize("use_rslora", [False, True])
def test_adapters_of_peft_add_what_they_should(use_rslora: bool, tmp_path: Path):
    """Read by PEFT itself, a stack adds the average of what the checkpoints add."""
    peft = pytest.importorskip("peft")
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}}
    adapted = peft.get_peft_model(tiny_llama(), peft.LoraConfig(use_rslora=use_rslora, **config))
    factors = [weight for name, weight in adapted.named_parameters() if "lora" in name]
    times = (10, 20, 30)
    for t in times:
        with torch.no_grad():
            for weight in factors:
                weight.add_(0.1 * torch.randn_like(weight))
        adapted.save_pretrained(tmp_path / f"checkpoint-{t}")

    def merged(folder: Path) -> dict[str, Tensor]:
        return peft.PeftModel.from_pretrained(tiny_llama(), folder).merge_and_unload().state_dict()

    c = tail_coefficients([RawProfile(t) for t in times], [power_profile(30, 0.2)])[:, 0]
    states = [merged(tmp_path / f"checkpoint-{t}") for t in times]
    for form in ("factors", "product", "stack"):
        command(["--std", "0.2", "--lora", form, "--out", str(tmp_path / form), str(tmp_path)], standalone_mode=False)
        rebuilt = merged(tmp_path / form / "ema-000000000030-0.2000")
        for name in states[0]:
            expected = sum(c_i * state[name] for c_i, state in zip(c, states, strict=True))
            tolerance = 1e-5 if form == "stack" else 0.2
            torch.testing.assert_close(rebuilt[name], expected, rtol=0, atol=tolerance)


def test_a_run_of_lightning(tmp_path: Path):
    """Names that end in another number, and `last.ckpt`: times are those inside."""
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.net(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    checkpoints = lightning.pytorch.callbacks.ModelCheckpoint(
        dirpath=tmp_path, every_n_train_steps=10, save_top_k=-1, save_last=True, filename="{epoch}-{step}-v7"
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    module = Module()
    loader = torch.utils.data.DataLoader(torch.randn(64, 4), batch_size=8)
    lightning.Trainer(max_steps=40, callbacks=[checkpoints], **quiet).fit(module, loader)
    found = recognize(tmp_path, Facts())
    assert [snapshot.images_seen for snapshot in found.snapshots] == [10, 20, 30, 40]
    assert found.left_aside == ["last.ckpt"]
    module.load_state_dict(rebuild(tmp_path, 0.1))
