"""Networks for programs without PyTorch: the folded denoiser D(x; sigma) as an ONNX file, checked before it appears."""

import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edm2 import __version__
from edm2.networks import Precond, fold
from edm2.networks.conditions import Condition, ScalarCondition, TokenCondition
from edm2.pipeline.card import class_names
from edm2.post_hoc_ema import atomic_output
from edm2.sampling.samplers.heun import sigma_steps

TOLERANCE = 1e-5
"""Largest deviation of onnxruntime's output from torch's, in units of the largest output or 1, whichever is more."""

LARGEST_FILE = 1 << 30
"""Bytes of weights in the ONNX file itself, whose format allows 2 GiB; more lie in OUT.data beside it."""

SIGMA_RANGE = tuple(inspect.signature(sigma_steps).parameters[name].default for name in ("sigma_min", "sigma_max"))
"""Noise levels between which samplers ask the denoiser, unless told otherwise."""

OPSET = 20
"""Version of the ONNX operators, of 2023."""


class ExportError(ValueError):
    """A network that cannot be exported, or whose export computes something else; the message is one line."""


class NamedInputs(nn.Module):
    """Denoiser whose inputs are all given by position, as a graph has them.

    Args:
        net: The folded denoiser.
        names: Names of the inputs after x and sigma.
    """

    def __init__(self, net: Precond, names: list[str]) -> None:
        super().__init__()
        self.net = net
        self.names = names

    def forward(self, x: Tensor, sigma: Tensor, *given: Tensor) -> Tensor:
        """D(x; sigma), [N, C, H, W]."""
        conditions = dict(zip(self.names, given, strict=True))
        known = {name: conditions.pop(name, None) for name in ("class_labels", "target_sigma")}
        return self.net(x, sigma, **known, conditions=conditions)


def export_onnx(
    net: Precond, path: str | Path, metadata: Mapping[str, Any] | None = None, batch_size: int | None = None
) -> float:
    """Write a network as an ONNX file, completely or not at all, after comparing its output with torch's.

    Inputs are x [N, C, H, W] and sigma [N]; class_labels (int64 [N], -1: no class) of a network with classes;
    target_sigma [N] of a flow map; and its conditions by name, in the units of the dataset (NaN: absent), of which
    images have the network's resolution. The output is D, float32 as all but the classes.

    Args:
        net: A network that `edm2.load` or `build_network` made, folded or not.
        path: File to write, which must not exist; weights of more than 1 GiB lie in PATH.data beside it.
        metadata: Of the network's snapshot (`edm2.read_metadata`); classes and codec are stored in the file.
        batch_size: Number N of images of all calls; None: any.

    Returns:
        Largest deviation from torch's output, in units of the largest output or 1, whichever is more.

    Raises:
        ExportError: not such a network, onnxruntime computes something else, or the extra `export` is missing.
        OSError: the file exists or cannot be written.
    """
    if not isinstance(net, Precond):
        raise ExportError(
            f"{path}: only networks that edm2 builds can be exported, no {type(net).__name__}: of a guided denoiser "
            "export the network and the guide, each to a file (edm2 docs export); torch.onnx exports networks of your "
            "own"
        )
    require_packages()
    if batch_size is not None and batch_size < 1:
        raise ExportError(f"{path}: batch_size={batch_size} must be at least 1")
    path = Path(path)
    beside = path.with_name(f"{path.name}.data")
    for file in (path, beside):
        if file.exists():
            raise FileExistsError(f"{file}: there already; remove it, or choose another name")
    from onnx_ir import save

    with atomic_output(path) as temporary, torch.no_grad():  # first: whether a file can be written shows at once
        folded = fold(net, torch.float32).cpu()
        model = _onnx_model(folded, batch_size)
        model.metadata_props.update(_described(folded, metadata or {}))
        large = sum(value.const_value.nbytes for value in model.graph.initializers.values()) > LARGEST_FILE
        try:
            save(model, temporary, format="protobuf", external_data=beside.name if large else None)
            deviation = _deviation(folded, temporary, batch_size)
            if not deviation <= TOLERANCE:
                raise ExportError(f"{path}: not written, as onnxruntime's output is {deviation:.1e} away from torch's")
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    return deviation


def require_packages() -> None:
    """Raise ExportError if a package of the extra `export` is missing."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise ExportError(f"exporting needs the package {name}: pip install 'edm2[export]'") from None


def _onnx_model(net: Precond, batch_size: int | None) -> Any:
    """Graph of a folded denoiser, an `onnx_ir.Model`."""
    inputs = example_inputs(net, batch_size or 2)
    tokens = [condition.name for condition in net.config.conditions if isinstance(condition, TokenCondition)]
    any_batch: dict[int, Any] = {} if batch_size else {0: torch.export.Dim.DYNAMIC}
    dims = [any_batch | ({1: f"{name}_length"} if name in tokens else {}) for name in inputs]
    dims[0] = dims[0] and {0: "batch"}  # a name for that of all inputs
    converted = torch.onnx.export(
        NamedInputs(net, list(inputs)[2:]).eval(),
        tuple(inputs.values()),
        dynamic_shapes=(*dims[:2], tuple(dims[2:])) if dims[2:] else tuple(dims),
        dynamo=True,
        input_names=list(inputs),
        output_names=["denoised"],
        opset_version=OPSET,
        verbose=False,
    )
    assert converted is not None  # it is, unless a file is asked for
    for node in converted.model.graph.all_nodes():  # which name files of this machine
        node.metadata_props.clear()
    return converted.model


def example_inputs(net: Precond, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs by name: noisy images at all noise levels, with and without classes and conditions.

    Raises:
        ExportError: a condition has the name of another input.
    """
    random = torch.Generator().manual_seed(seed)
    config = net.config
    low, high = SIGMA_RANGE
    sigma = low * (high / low) ** torch.rand(count, generator=random)
    noise = torch.randn(count, config.img_channels, *config.size, generator=random)
    inputs = {"x": (sigma**2 + net.sigma_data**2).sqrt()[:, None, None, None] * noise, "sigma": sigma}
    if config.label_dim:
        inputs["class_labels"] = torch.randint(-1, config.label_dim, (count,), generator=random)
    if config.target_level is not None:
        inputs["target_sigma"] = sigma * torch.rand(count, generator=random)
    for condition in config.conditions:
        if condition.name in ("x", "sigma", "class_labels", "target_sigma"):
            raise ExportError(f"condition {condition.name}: another input of the network has this name")
        inputs[condition.name] = _example_values(condition, count, config.size, random)
    return inputs


def _example_values(condition: Condition, count: int, size: tuple[int, int], random: torch.Generator) -> Tensor:
    """Values of a condition for `count` images, some of which are without it where that may be."""
    free = iter((count + 3,) if isinstance(condition, TokenCondition) else size)  # sides that the condition leaves open
    values = torch.randn([next(free) if side is None else side for side in condition.shape(count)], generator=random)
    if isinstance(condition, TokenCondition) and condition.length:
        values = values[:, : condition.length]
    if condition.mean:
        mean, std = (torch.tensor(numbers) for numbers in (condition.mean, condition.std))
        trailing = [1] * (values.ndim - 1 - condition.channel_dim)
        values = values * std.view(-1, *trailing) + mean.view(-1, *trailing)
    if condition.dropout:
        values[torch.rand(count, generator=random) < 0.3] = torch.nan
    return values[:, 0] if isinstance(condition, ScalarCondition) else values


def _described(net: Precond, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Metadata that a program needs besides the graph: texts by key, JSON where they are no plain numbers."""
    described = {
        "edm2_version": __version__,
        "sigma_data": net.sigma_data,
        **dict(zip(("sigma_min", "sigma_max"), SIGMA_RANGE, strict=True)),
        "label_dim": net.config.label_dim,
        "class_names": class_names(dict(metadata)),
        "conditions": [condition.to_json() for condition in net.config.conditions],
        **{key: metadata[key] for key in ("codec", "images_seen", "sigma_rel", "license") if key in metadata},
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in described.items()}


def _deviation(net: Precond, path: Path, batch_size: int | None) -> float:
    """Largest difference between outputs of onnxruntime and torch, on other inputs than the graph was traced with."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    deviations = []
    for seed, count in enumerate([batch_size] * -(-16 // batch_size) if batch_size else [1, 1, 2, 12], start=1):
        inputs = example_inputs(net, count, seed)
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        expected = NamedInputs(net, list(inputs)[2:])(*inputs.values())
        deviations.append((torch.from_numpy(found) - expected).abs().max() / expected.abs().max().clamp(min=1))
    return torch.stack(deviations).max().item()  # NaN if there is one
