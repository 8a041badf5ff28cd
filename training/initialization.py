"""Fresh networks, and networks that start from a snapshot."""

from pathlib import Path

import torch
from torch import Tensor, nn

from edm2.networks import ImageCondition, NetworkConfig, Precond, build_network
from edm2.networks.unet import level_name
from edm2.post_hoc_ema import SafetensorsSnapshot, SnapshotError

LABEL_EMBEDDINGS = frozenset({"unet.emb_label.weight", "unet.map_label.weight"})
"""Names of the one parameter whose shape depends on the number of classes: in configs F and G, and in A to E."""


def fresh_network(config: NetworkConfig, seed: int) -> Precond:
    """Build a network whose random weights depend on `seed` alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(config)


def load_snapshot_(net: nn.Module, path: str | Path) -> None:
    """Overwrite the parameters and buffers of `net` by those of a snapshot, to fine-tune it.

    The label embedding keeps its fresh weights if the number of classes differs. Conditions that the snapshot's network
    does not have start with weights that are random, but have no effect: `net` is then the same function.
    """
    if Path(path).suffix == ".pkl":
        raise SnapshotError(
            f"{path}: make a snapshot of a published network first: edm2 convert {path} OUT.safetensors"
        )
    snapshot = SafetensorsSnapshot(path)
    own: dict[str, Tensor] = net.state_dict()
    added, first, remedy = [], "", f"train with its settings, which edm2 info {path} shows"
    if isinstance(net, Precond):
        _check_config(net, snapshot)
        added, first = _added_conditions(net, snapshot), f"unet.enc.{level_name(net.config, 0)}_conv.weight"
    fresh = LABEL_EMBEDDINGS | {name for name in own if _is_of(added, name)}
    missing = set(own) - set(snapshot.names) - fresh
    foreign = set(snapshot.names) - set(own) - LABEL_EMBEDDINGS
    if missing or foreign:
        example = sorted(missing or foreign)[0]
        raise SnapshotError(f"{path}: is a snapshot of another network ({example} is only in one of them); {remedy}")
    wide = {first: widened(snapshot.read(first), net.config, added)} if isinstance(net, Precond) and added else {}
    shapes = {name: snapshot.layout(name).shape for name in snapshot.names}
    shapes |= {name: tuple(tensor.shape) for name, tensor in wide.items()}
    alike = [name for name in snapshot.names if name in own and shapes[name] == tuple(own[name].shape)]
    if others := sorted(set(snapshot.names).difference(alike, LABEL_EMBEDDINGS)):
        name = others[0]
        there, here = shapes[name], tuple(own[name].shape)
        raise SnapshotError(
            f"{path}: is a snapshot of another network ({name} is {there} there, {here} here); {remedy}"
        )
    for name in alike:
        own[name].copy_(wide[name] if name in wide else snapshot.read(name))
    for name in fresh - set(snapshot.names):
        if name.endswith("gain"):  # of a source of the embedding; the gates of cross-attention are 0 already
            own[name].zero_()


def _check_config(net: Precond, snapshot: SafetensorsSnapshot) -> None:
    """Raise if the snapshot is of another configuration: neighbours on the ladder may have the same shapes."""
    description = snapshot.metadata.get("network")
    config = description.get("config", "G") if isinstance(description, dict) else net.config.config
    if config != net.config.config:
        raise SnapshotError(
            f"{snapshot.path}: is a snapshot of config {config}, not of config {net.config.config}; "
            "start from one of the same configuration"
        )


def _added_conditions(net: Precond, snapshot: SafetensorsSnapshot) -> list[str]:
    """Names of the conditions of `net` that the snapshot's network does not have."""
    description = snapshot.metadata.get("network")
    before = description.get("conditions", ()) if isinstance(description, dict) else ()
    known = {condition.get("name") for condition in before if isinstance(condition, dict)}
    return [condition.name for condition in net.config.conditions if condition.name not in known]


def _is_of(conditions: list[str], tensor: str) -> bool:
    """True for the name of a tensor of one of these conditions, or of the label as a source of the embedding."""
    parents = (".emb_conditions.", ".contexts.", ".attn_cross.")
    return tensor.endswith("label_gain") or any(f"{p}{name}." in tensor for p in parents for name in conditions)


def widened(weight: Tensor, config: NetworkConfig, added: list[str]) -> Tensor:
    """Weights of the input convolution with zeros for images that are added as conditions.

    What is used of a row w of fan_in weights is w / (eps + rms(w)) / sqrt(fan_in), and more zeros change the rms: all
    rows are multiplied by the root of the ratio, so that eps has the same effect.

    Args:
        weight: [out, in, k, k]: the noisy image's channels, those of earlier image conditions, ones.
        config: The network with more conditions.
        added: Names of those.

    Returns:
        [out, more, k, k].
    """
    image, rest, ones = weight[:, : config.img_channels], weight[:, config.img_channels : -1], weight[:, -1:]
    parts = [image]
    for condition in config.conditions:
        if isinstance(condition, ImageCondition) and condition.name in added:
            parts.append(torch.zeros_like(ones).expand(-1, condition.input_channels, -1, -1))
        elif isinstance(condition, ImageCondition):
            parts.append(rest[:, : condition.input_channels])
            rest = rest[:, condition.input_channels :]
    wide = torch.cat([*parts, rest, ones], dim=1)
    return wide * (wide.shape[1] / weight.shape[1]) ** 0.5
