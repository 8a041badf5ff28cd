"""The program that torch.hub keeps of DINOv2, for the lack of it: a vision transformer with the published names.

Written into a folder as torch.hub lays them out, and imported from there as any program of the hub is. Widths are read
from the environment so that tests may have a small one; ViT-L/14 is 1024 wide, 24 deep, with 16 heads.
"""

from pathlib import Path

HUB_FOLDER = "facebookresearch_dinov2_main"

PROGRAM = '''
"""A vision transformer (arXiv 2010.11929) with layer scale; shapes and names are those of DINOv2's weights."""

import os

import torch
from torch import nn

WIDTH, DEPTH, HEADS = (int(x) for x in os.environ.get("STAND_IN_VIT", "1024,24,16").split(","))
PATCH, TRAINED = 14, 518


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.full([WIDTH], 1e-5))

    def forward(self, x):
        return x * self.gamma


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(WIDTH, 1e-6), Attention(), Scale()
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(WIDTH, 1e-6), MLP(), Scale()

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        side = TRAINED // PATCH
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side**2, WIDTH))
        self.mask_token = nn.Parameter(torch.zeros(1, WIDTH))
        self.patch_embed = Patches()
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, 1e-6)

    def forward(self, x):
        rows, columns = x.shape[2] // PATCH, x.shape[3] // PATCH
        side = TRAINED // PATCH
        places = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        places = nn.functional.interpolate(places, (rows, columns), mode="bicubic").flatten(2).transpose(1, 2)
        token = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([token, self.patch_embed(x) + places], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


def dinov2_vitl14(pretrained=True):
    assert not pretrained, "there are no weights to fetch"
    return Transformer()
'''


def install(hub: Path) -> Path:
    """Put the program where torch.hub, whose folder is `hub`, would have kept it."""
    folder = hub / HUB_FOLDER
    folder.mkdir(parents=True)
    (folder / "hubconf.py").write_text(PROGRAM)
    return folder
