"""Fresh networks, and networks that start from a snapshot."""

from pathlib import Path

import torch
from torch import nn

from edm2.networks import NetworkConfig, Precond, build_network
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

    The label embedding keeps its fresh weights if the number of classes differs.

    Raises:
        SnapshotError: no snapshot, or one of another network or configuration of the ladder.
    """
    if Path(path).suffix == ".pkl":
        raise SnapshotError(
            f"{path}: make a snapshot of a published network first: edm2 convert {path} OUT.safetensors"
        )
    snapshot = SafetensorsSnapshot(path)
    if isinstance(net, Precond):
        _check_config(net, snapshot)
    own = net.state_dict()
    missing = set(own) - set(snapshot.names) - LABEL_EMBEDDINGS
    foreign = set(snapshot.names) - set(own) - LABEL_EMBEDDINGS
    if missing or foreign:
        example = sorted(missing or foreign)[0]
        raise SnapshotError(f"{path}: is a snapshot of another network ({example} is only in one of them)")
    alike = [name for name in snapshot.names if name in own and snapshot.layout(name).shape == tuple(own[name].shape)]
    if others := sorted(set(snapshot.names).difference(alike, LABEL_EMBEDDINGS)):
        name = others[0]
        there, here = snapshot.layout(name).shape, tuple(own[name].shape)
        raise SnapshotError(f"{path}: is a snapshot of another network ({name} is {there} there, {here} here)")
    for name in alike:
        own[name].copy_(snapshot.read(name))


def _check_config(net: Precond, snapshot: SafetensorsSnapshot) -> None:
    """Raise if the snapshot is of another configuration: neighbours on the ladder may have the same shapes."""
    description = snapshot.metadata.get("network")
    config = description.get("config", "G") if isinstance(description, dict) else net.config.config
    if config != net.config.config:
        raise SnapshotError(
            f"{snapshot.path}: is a snapshot of config {config}, not of config {net.config.config}; "
            "start from one of the same configuration"
        )
