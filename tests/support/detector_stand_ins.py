"""Networks with the interface of the published weights, for the lack of those: tiny, random, always the same."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn


class Layers(nn.Module):
    """[N, 3, 299, 299] scaled to about [-1, 1] -> [N, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(192, 2048, generator=torch.Generator().manual_seed(0)) / 14)

    def forward(self, x: Tensor) -> Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(x, [8, 8])
        return (pooled.flatten(1) @ self.weight).relu()


class StandIn(nn.Module):
    """What clean-fid expects of inception-2015-12-05.pt."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()
        self.output = nn.Linear(2048, 1008)

    def forward(self, img: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        x = nn.functional.interpolate(img.float(), [299, 299], mode="bilinear", align_corners=False)
        features = self.layers((x - 128) / 128)
        if return_features:
            return features
        logits = features @ self.output.weight.T
        if not no_output_bias:
            logits = logits + self.output.bias
        return logits.softmax(dim=1)


class Averages(nn.Module):
    """In place of DINOv2: [N, 3, 224, 224] -> [N, 12], means of quarters."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x, [2, 2]).flatten(1)


def save_script(network: nn.Module, path: Path) -> Path:
    """Write a TorchScript file."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripting is deprecated; published weights are scripts all the same
        torch.manual_seed(0)
        torch.jit.save(torch.jit.script(network.eval()), path)
    return path


def save_inception(path: Path) -> Path:
    """Write the stand-in for Inception."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return save_script(StandIn(), path)


DINOV2 = '''
"""A vision transformer (arXiv 2010.11929) with layer scale; names are those of DINOv2's weights, shapes smaller."""

import torch
from torch import nn

WIDTH, DEPTH, HEADS, PATCH, PATCHES = 48, 2, 3, 14, 16**2


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, 1e-6), nn.LayerNorm(WIDTH, 1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, 4 * WIDTH), "fc2": nn.Linear(4 * WIDTH, WIDTH)})
        for name in ("ls1", "ls2"):
            setattr(self, name, nn.ParameterDict({"gamma": torch.full([WIDTH], 1e-5)}))

    def forward(self, x):
        q, k, v = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.attn["proj"](y) * self.ls1["gamma"]
        y = nn.functional.gelu(self.mlp["fc1"](self.norm2(x)))
        return x + self.mlp["fc2"](y) * self.ls2["gamma"]


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + PATCHES, WIDTH))
        self.mask_token = nn.Parameter(torch.zeros(1, WIDTH))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, 1e-6)

    def forward(self, x):
        patches = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


def dinov2_vitl14(pretrained=True):
    assert not pretrained, "there are no weights to fetch"
    return Transformer()
'''


def install_dinov2(hub: Path) -> Path:
    """Put a small program in place of DINOv2's where torch.hub, whose folder is `hub`, would have kept that."""
    folder = hub / "facebookresearch_dinov2_main"
    folder.mkdir(parents=True)
    (folder / "hubconf.py").write_text(DINOV2)
    return folder
