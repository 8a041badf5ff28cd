"""Golden numbers on the device in three precisions, forms of one network beside each other, and resuming to the bit.

The golden numbers are those of tests/golden in a checkout, from which the suite is run. In half precision nothing is
required: the measured errors are the finding.
"""

import copy
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from edm2.networks import (
    DecoderBlock,
    EncoderBlock,
    MPConv,
    MPFourier,
    NetworkConfig,
    build_network,
    fold,
    force_weight_normalization_,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize,
    resample,
)
from edm2.tools.bench.device.findings import Finding, Parts, row
from edm2.tools.bench.device.golden import max_rel, rms_rel, select
from edm2.tools.bench.device.setup import Setup
from edm2.training import ArrayDataset, EDM2Loss, Trainer, TrainingConfig
from edm2.training.callbacks import Callback
from edm2.training.config import DTYPES
from edm2.training.data.batches import Batch
from edm2.training.draws import GivenDraws
from edm2.training.step import TrainStep

GOLDEN = Path("tests/golden")
"""Folder of the golden numbers, from the root of a checkout."""

BLOCK_OPTIONS = (
    "resample_mode", "resample_filter", "attention", "channels_per_head", "dropout", "res_balance", "attn_balance",
    "clip_act",
)  # fmt: skip

OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "normalize": lambda case, x: normalize(x, case["dim"] and tuple(case["dim"]), case["eps"]),
    "resample": lambda case, x: resample(x, case["mode"], tuple(case["f"])),
    "mp_silu": lambda case, x: mp_silu(x),
    "mp_sum": lambda case, a, b: mp_sum(a, b, case["t"]),
    "mp_cat": lambda case, a, b: mp_cat(a, b, case.get("dim", 1), case["t"]),
}
TOLERANCES = {"float32": 2e-6, "float64": 3e-7, "float16": 2e-3, "bfloat16": 1e-2}
"""Of operations, as on the CPU (tests/networks/test_magnitude.py); in float64 the published filter is float32."""


def parts(setup: Setup) -> Parts:
    """Everything about numbers; the most telling first."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return {
        "network": lambda: golden_network(setup),
        "forms of a network": lambda: forms(setup),
        "training": lambda: golden_training(setup),
        "blocks": lambda: golden_blocks(setup),
        "operations": lambda: golden_operations(setup),
        "layers": lambda: golden_layers(setup),
        "resuming": lambda: resuming(setup),
    }


def within(part: str, errors: dict[str, float], tolerance: float | None) -> Finding:
    """Make a finding of the worst of some errors, NaN above all, beside a tolerance if there is one."""
    name, worst = max(errors.items(), key=lambda item: (math.isnan(item[1]), item[1]))
    kept = None if tolerance is None else worst <= tolerance
    return row(part, largest_error=worst, of=name, tolerance=tolerance, within=kept)


def golden_arrays(name: str, setup: Setup) -> tuple[dict[str, Tensor], Any]:
    """Read the arrays of a file on the device, and the description beside it.

    Raises:
        FileNotFoundError: not run from the root of a checkout.
    """
    path = GOLDEN / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: run from the root of a checkout")
    described = json.loads((path.parent / f"{path.parent.name}.json").read_text(encoding="utf-8"))
    return load_file(path, device=setup.device), described


# ----------------------------------------------------------------------------------------------------------------------
# Golden numbers


def golden_operations(setup: Setup) -> Iterator[Finding]:
    """Values and gradients of the functions, in the dtypes of the cases."""
    tensors, described = golden_arrays("ops/ops", setup)
    errors: dict[tuple[str, str], dict[str, float]] = {}
    for case in described["cases"]:
        data = select(tensors, case["id"])
        if case["op"] not in OPERATIONS or not data:
            continue
        inputs = {key: data[key].clone().requires_grad_() for key in ("x", "a", "b") if key in data}
        y = OPERATIONS[case["op"]](case, *inputs.values())
        gradients = torch.autograd.grad(y, tuple(inputs.values()), data.get("w", torch.ones_like(y)))
        results = {"y": y, **{f"grad_{key}": g for key, g in zip(inputs, gradients, strict=True)}}
        found = errors.setdefault((case["op"], case["dtype"]), {})
        found |= {f"{case['id']} {key}": max_rel(x, data[key]) for key, x in results.items()}
    for (name, dtype), found in errors.items():
        yield within(f"{name}, {dtype}", found, TOLERANCES[dtype])


def golden_layers(setup: Setup) -> Iterator[Finding]:
    """Values of the two layers, in float32."""
    tensors, described = golden_arrays("ops/ops", setup)
    errors: dict[str, dict[str, float]] = {"mp_conv": {}, "mp_fourier": {}}
    for case in described["cases"]:
        data = select(tensors, case["id"])
        if case["op"] not in errors or not data:
            continue
        layer: nn.Module
        if case["op"] == "mp_conv":
            layer = MPConv(case["in_channels"], case["out_channels"], tuple(case["kernel"]))
            layer.load_state_dict({"weight": data.get("weight_after", data["weight"])})
        else:
            layer = MPFourier(case["num_channels"], case["bandwidth"])
            layer.load_state_dict({"freqs": data["freqs"], "phases": data["phases"]})
        gain = {"gain": data["gain"]} if "gain" in data else {}
        errors[case["op"]][case["id"]] = max_rel(layer.to(setup.device)(data["x"], **gain), data["y"])
    yield within("MPConv, fp32", errors["mp_conv"], 2e-6)
    yield within("MPFourier, fp32", errors["mp_fourier"], 1e-5)


def golden_blocks(setup: Setup) -> Iterator[Finding]:
    """Values and gradients of encoder and decoder blocks."""
    tensors, described = golden_arrays("blocks/blocks", setup)
    for precision, dtype in DTYPES.items():
        values: dict[str, float] = {}
        gradients: dict[str, float] = {}
        for case in described["cases"]:
            if not (data := select(tensors, case["id"])):
                continue
            options = {name: case[name] for name in BLOCK_OPTIONS if name in case}
            kind = EncoderBlock if case["flavor"] == "enc" else DecoderBlock
            block = kind(case["in_channels"], case["out_channels"], case["emb_channels"], **options)
            block.load_state_dict(select(data, "state"))
            block.to(setup.device).train(case["train"])
            if case["train"]:
                force_weight_normalization_(block)
            x, emb = data["x"].clone().requires_grad_(), data["emb"].clone().requires_grad_()
            y = block(x.to(dtype), emb)
            y.backward(data["w"].to(dtype))
            values[case["id"]] = max_rel(y, data["y"])
            found = {"grad_x": x.grad, "grad_emb": emb.grad}
            found |= {f"grad/{name}": parameter.grad for name, parameter in block.named_parameters()}
            gradients |= {f"{case['id']} {name}": max_rel(g, data[name]) for name, g in found.items() if g is not None}
        yield within(f"blocks, {precision}", values, 5e-6 if precision == "fp32" else None)
        yield within(f"gradients of blocks, {precision}", gradients, 2e-5 if precision == "fp32" else None)


def golden_net(setup: Setup) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
    """Build the first golden network that this set holds, on the device; with its arrays and its description."""
    (path, *_) = sorted((GOLDEN / "net").glob("*.safetensors")) or [GOLDEN / "net" / "none"]
    data, described = golden_arrays(f"net/{path.stem}", setup)
    description = described[path.stem]
    net = build_network(NetworkConfig.from_json(description["config"]))
    net.load_state_dict(select(data, "state"))
    return net.to(setup.device, memory_format=net.unet.memory_format), data, description  # type: ignore[call-overload]  # unknown to torch's stubs


def golden_network(setup: Setup) -> Iterator[Finding]:
    """Outputs, uncertainty, gradients of the loss, and the weights after forced normalization."""
    net, data, description = golden_net(setup)
    objective = EDM2Loss(description["P_mean"], description["P_std"], description["config"].get("sigma_data", 0.5))
    results = select(data, "loss_train")
    for precision, dtype in DTYPES.items():
        exact = precision == "fp32"
        evaluated = copy.deepcopy(net).eval()
        evaluated.compute_dtype = dtype
        with torch.no_grad():
            D_x, u = evaluated(data["in/x"], data["in/sigma"], data.get("in/labels"), return_logvar=True)
        errors = {f"image {i}": max_rel(a, b) for i, (a, b) in enumerate(zip(D_x, data["eval/D_x"], strict=True))}
        yield within(f"network's output, {precision}", errors, 5e-6 if exact else None)
        u_error = {"u": max_rel(u.reshape(data["eval/logvar"].shape), data["eval/logvar"])}
        yield within(f"uncertainty, {precision}", u_error, 5e-6)
        trained = copy.deepcopy(net).train()
        trained.compute_dtype = dtype
        force_weight_normalization_(trained)
        after = select(results, "state_after")
        state = trained.state_dict()
        normalized = {name: max_rel(state[name], expected) for name, expected in after.items()}
        yield within(f"weights after forced normalization, {precision}", normalized, 2e-6)
        losses = objective(
            trained, data["loss/images"], data.get("in/labels"), sigma=results["sigma"], noise=data["loss/unit_noise"]
        )
        (losses.sum() / len(losses)).backward()
        grads = {name: p.grad for name, p in trained.named_parameters() if p.grad is not None}
        errors = {name: rms_rel(grads[name], expected) for name, expected in select(results, "grad").items()}
        yield within(f"gradients of the loss (rms), {precision}", errors, 2e-5 if exact else None)


def golden_training(setup: Setup) -> Iterator[Finding]:
    """Weights and averages after the steps of the published trajectory."""
    values, described = golden_arrays("train/main", setup)
    settings = described["main"]
    names = "img_resolution", "img_channels", "label_dim", "sigma_data"
    network = NetworkConfig.from_json({**settings["netcfg"], **{name: settings[name] for name in names}})
    for precision in DTYPES:
        config = TrainingConfig(
            data="given", out="nowhere", network=network, device=setup.device, precision=precision,
            duration=settings["batch"] * settings["iters"], batch_size=settings["batch"],
            micro_batch=settings["batch_gpu"], rampup_images=int(settings["rampup_Mimg"] * 1e6),
            betas=settings["adam"]["betas"], sigma_rels=settings["stds"],
            **{name: settings[name] for name in ("ref_lr", "ref_batches", "P_mean", "P_std")},
        )  # fmt: skip
        net = build_network(network)
        net.load_state_dict(select(values, "state0"))
        step = TrainStep(config, net)
        losses = {}
        for k in range(settings["iters"]):
            sigma = config.objective().distribution.sigma(values["step/rnd_normal"][k]).flatten()
            step.draws = GivenDraws(step.images_seen, sigma, values["step/unit_noise"][k].flatten(0, 1))
            result = step(list(map(Batch, values["step/images"][k], values["step/labels"][k])))
            losses[f"step {k}"] = max_rel(result.loss, values["step/loss_per_image"][k].reshape([]))
        exact = precision == "fp32"
        yield within(f"losses of {settings['iters']} steps, {precision}", losses, 1e-5 if exact else None)
        expected = select(values, f"after_step_{settings['iters']}")
        averages = {f"ema_{s:.3f}/{n}": x for s in settings["stds"] for n, x in step.ema.average(s).items()}
        for what, ours in (("weights", step.net.state_dict()), ("averages", averages)):
            theirs = expected if what == "weights" else {name: values[name] for name in averages if name in values}
            errors = {name: rms_rel(ours[name], x) for name, x in theirs.items() if x.numel() > 1}
            yield within(f"{what} after {settings['iters']} steps (rms), {precision}", errors, 1e-5 if exact else None)


# ----------------------------------------------------------------------------------------------------------------------
# Forms of one network, and resuming


@torch.no_grad()
def forms(setup: Setup) -> Iterator[Finding]:
    """Outputs of one network with heads of 64 channels, in every form in which it is evaluated."""
    config = NetworkConfig(16, 4, 10, model_channels=64, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(8,))
    torch.manual_seed(0)
    net = build_network(config)
    for parameter in net.parameters():
        if not parameter.ndim:
            parameter.fill_(0.5)
    net.to(setup.device).eval()
    x, sigma, labels = torch.randn(8, 4, 16, 16), torch.randn(8).exp(), torch.arange(8)
    given = [tensor.to(setup.device) for tensor in (x, sigma, labels)]
    exact = copy.deepcopy(net).double()(given[0].double(), *given[1:])
    for precision, dtype in DTYPES.items():
        plain = copy.deepcopy(net)
        plain.compute_dtype = dtype
        contiguous = copy.deepcopy(plain)
        contiguous.unet.memory_format = torch.contiguous_format
        folded = fold(net, dtype)
        works: dict[str, Callable[[], Tensor]] = {
            "as trained": partial(plain, *given),
            "contiguous": partial(contiguous, *given),
            "folded": partial(folded, *given),
        }
        if precision == "bf16":  # compiling takes a while
            works["compiled"] = partial(setup.compiled(folded), *given)
        for name, work in works.items():
            yield row(f"{name}, {precision}", error_against_float64=rms_rel(work(), exact))
        with sdpa_kernel(SDPBackend.MATH):
            yield row(f"attention by products, {precision}", error_against_float64=rms_rel(folded(*given), exact))


class Stop(Callback):
    """Stops a run at this number of images."""

    def __init__(self, images: int) -> None:
        self.images = images

    def on_step(self, trainer: Any, result: Any) -> None:
        """Stop if it is time."""
        trainer.stop_requested = int(trainer.images_seen >= self.images)


def resuming(setup: Setup) -> Iterator[Finding]:
    """Two runs of the same steps, and one that stopped on the way: tensors that differ in any bit."""
    network = NetworkConfig(16, 4, 10, model_channels=64, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(8,))
    for precision in ("fp32", "bf16"):
        for deterministic in (False, True):
            with tempfile.TemporaryDirectory() as folder, determinism(deterministic):
                states = [
                    trained(setup, network, precision, Path(folder, name), stops)
                    for name, stops in (("once", ()), ("again", ()), ("stopped", (32,)))
                ]
            first, *others = states
            differing = [sum(not torch.equal(first[name], other[name]) for name in first) for other in others]
            yield row(
                f"{precision}, {'deterministic' if deterministic else 'default'} kernels", tensors=len(first),
                differing_when_repeated=differing[0], differing_when_resumed=differing[1],
            )  # fmt: skip


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Context in which torch and cuDNN choose deterministic kernels, if that is wanted."""
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    torch.backends.cudnn.deterministic = wanted
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False


def trained(
    setup: Setup, network: NetworkConfig, precision: str, out: Path, stops: tuple[int, ...]
) -> dict[str, Tensor]:
    """Train for some steps, stopping and resuming at some numbers of images; return weights and averages."""
    config = TrainingConfig(
        data="random images", out=str(out), network=network, device=setup.device, precision=precision, duration=64,
        batch_size=8, ref_batches=8, rampup_images=16, workers=0, status_every=16, snapshot_every=64,
        checkpoint_every=64,
    )  # fmt: skip
    pixels = torch.randint(256, (32, 4, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    dataset = ArrayDataset(pixels, torch.arange(32) % 10)
    for images in (*stops, config.duration):
        trainer = Trainer(config, dataset=dataset, callbacks=[Stop(images)])
        trainer.run()
    averages = {f"average/{name}": x for name, x in trainer.step.ema.average(config.sigma_rels[0]).items()}
    return {**trainer.net.state_dict(), **averages}
