"""Config G line by line from the paper (Karras et al. 2024, arXiv 2312.02696v2), with nothing done for speed.

Read this first. Every operation stands where Figure 22 has it: weights are normalized at each use (Algorithm 1),
MP-SiLU and MP-sum are operations of their own, attention is two einsums around a softmax, resampling convolves with the
filter.

`edm2.networks.build_network` computes the same function, faster; both have the same names of parameters (those of the
published checkpoints), and the tests hold outputs and gradients of one to those of the other.

Shapes: N images, C channels, H by W pixels, E embedding width.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2.networks.config import NetworkConfig

# ----------------------------------------------------------------------------------------------------------------------
# Functions that preserve magnitude


def normalize(x: Tensor, dim: Sequence[int] | None = None, eps: float = 1e-4) -> Tensor:
    """x / (eps + rms(x)), the root-mean-square over `dim`, by default all but the first (Eqs. 30 and 47)."""
    dim = list(range(1, x.ndim)) if dim is None else dim
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32)
    norm = eps + norm * math.sqrt(norm.numel() / x.numel())
    return x / norm.to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """silu(x) / 0.596 (Eq. 81)."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """((1 - t) a + t b) / sqrt((1 - t)² + t²) (Eq. 88)."""
    return a.lerp(b, t) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Concatenation of the channels, scaled so that the two contribute as (1 - t)² to t² (Eq. 103)."""
    N_a, N_b = a.shape[1], b.shape[1]
    K = math.sqrt((N_a + N_b) / ((1 - t) ** 2 + t**2))
    return torch.cat([K * (1 - t) / math.sqrt(N_a) * a, K * t / math.sqrt(N_b) * b], dim=1)


def resample(x: Tensor, mode: str, taps: Sequence[float]) -> Tensor:
    """Halve ("down") or double ("up") the resolution: convolve every channel with a separable filter."""
    f = torch.tensor(taps, dtype=torch.float32, device=x.device)
    f = f / f.sum()
    kernel = f.outer(f).to(x.dtype).tile(x.shape[1], 1, 1, 1)  # [C, 1, k, k]
    groups, padding = x.shape[1], (len(taps) - 1) // 2
    if mode == "down":
        return F.conv2d(x, kernel, stride=2, padding=padding, groups=groups)
    return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=groups)


# ----------------------------------------------------------------------------------------------------------------------
# Layers


class ReferenceConv(nn.Module):
    """Convolution or linear layer whose weights are normalized in every forward pass (Eqs. 47 and 66, Algorithm 1)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))

    def forward(self, x: Tensor, gain: Tensor | float = 1) -> Tensor:
        """[N, in, ...] -> [N, out, ...] in the dtype of `x`."""
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalize(self.weight))  # forced weight normalization: for good
        w = normalize(self.weight.to(torch.float32))  # and once more for the gradient
        w = w * (gain / math.sqrt(w[0].numel()))  # fan-in: a sum of unit-magnitude products has unit magnitude
        w = w.to(x.dtype)
        return F.linear(x, w) if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)


class ReferenceFourier(nn.Module):
    """Random Fourier features: sqrt(2) cos(f x + p) (Eq. 75)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(num_channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N] -> [N, num_channels]."""
        return math.sqrt(2) * (x.to(torch.float32).outer(self.freqs) + self.phases).cos().to(x.dtype)


# ----------------------------------------------------------------------------------------------------------------------
# Blocks (Figure 22)


class ReferenceBlock(nn.Module):
    """Layers of both kinds of block: a residual branch that the embedding modulates, and attention."""

    def __init__(
        self,
        config: NetworkConfig,
        in_channels: int,
        residual_channels: int,
        out_channels: int,
        resample: str = "keep",
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.resample = resample
        self.num_heads = out_channels // config.channels_per_head if attention else 0
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = ReferenceConv(residual_channels, out_channels, (3, 3))
        self.emb_linear = ReferenceConv(config.emb_channels, out_channels)
        self.conv_res1 = ReferenceConv(out_channels, out_channels, (3, 3))
        self.conv_skip = ReferenceConv(in_channels, out_channels, (1, 1)) if in_channels != out_channels else None
        if self.num_heads:
            self.attn_qkv = ReferenceConv(out_channels, 3 * out_channels, (1, 1))
            self.attn_proj = ReferenceConv(out_channels, out_channels, (1, 1))

    def residual(self, x: Tensor, emb: Tensor) -> Tensor:
        """[N, residual_channels, H, W] and [N, E] -> [N, out_channels, H, W]."""
        y = self.conv_res0(mp_silu(x))
        modulation = 1 + self.emb_linear(emb, gain=self.emb_gain)  # a factor per channel
        y = mp_silu(y * modulation[:, :, None, None].to(y.dtype))
        y = F.dropout(y, self.config.dropout, self.training)
        return self.conv_res1(y)

    def attention(self, x: Tensor) -> Tensor:
        """Cosine attention over the pixels (Eq. 27), softmax in float32: [N, C, H, W] -> [N, C, H, W]."""
        n, c, h, w = x.shape
        qkv = self.attn_qkv(x).reshape(n, self.num_heads, -1, 3, h * w)  # [N, heads, d, q/k/v, pixels]
        q, k, v = normalize(qkv, dim=[2]).unbind(3)
        logits = torch.einsum("nhdq,nhdk->nhqk", q, k / math.sqrt(q.shape[2]))
        weights = logits.to(torch.float32).softmax(dim=3).to(q.dtype)
        y = torch.einsum("nhqk,nhdk->nhdq", weights, v).reshape(n, c, h, w)
        return self.attn_proj(y)

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        """Main path `x` plus residual branch `y`, plus attention, then the bound on the activations."""
        x = mp_sum(x, y, self.config.res_balance)
        if self.num_heads:
            x = mp_sum(x, self.attention(x), self.config.attn_balance)
        return x if self.config.clip_act is None else x.clamp(-self.config.clip_act, self.config.clip_act)


class ReferenceEncoderBlock(ReferenceBlock):
    """Resampling, 1x1 convolution and pixel normalization of the main path, then the residual branch."""

    def __init__(self, config: NetworkConfig, in_channels: int, out_channels: int, **options) -> None:
        super().__init__(config, in_channels, out_channels, out_channels, **options)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[N, in_channels, H, W] and [N, E] -> [N, out_channels, H', W']."""
        if self.resample != "keep":
            x = resample(x, self.resample, self.config.resample_filter)
        if self.conv_skip is not None:
            x = self.conv_skip(x)
        x = normalize(x, dim=[1])  # pixel norm
        return self.merge(x, self.residual(x, emb))


class ReferenceDecoderBlock(ReferenceBlock):
    """Resampling, then the residual branch beside the 1x1 convolution of the main path."""

    def __init__(self, config: NetworkConfig, in_channels: int, out_channels: int, **options) -> None:
        super().__init__(config, in_channels, in_channels, out_channels, **options)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[N, in_channels, H, W] and [N, E] -> [N, out_channels, H', W']."""
        if self.resample != "keep":
            x = resample(x, self.resample, self.config.resample_filter)
        y = self.residual(x, emb)
        if self.conv_skip is not None:
            x = self.conv_skip(x)
        return self.merge(x, y)


# ----------------------------------------------------------------------------------------------------------------------
# U-Net and preconditioning


class ReferenceUNet(nn.Module):
    """F(x; c_noise, label) (Figure 22)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = ReferenceFourier(config.noise_channels)
        self.emb_noise = ReferenceConv(config.noise_channels, config.emb_channels)
        self.emb_label = ReferenceConv(config.label_dim, config.emb_channels) if config.label_dim else None
        self.enc = nn.ModuleDict()
        self.dec = nn.ModuleDict()
        self.build_decoder(self.build_encoder())
        self.out_conv = ReferenceConv(config.widths[0], config.img_channels, (3, 3))

    def build_encoder(self) -> list[int]:
        """Fill `enc`, from the full resolution down; return the channels of each of its outputs."""
        config, outputs = self.config, []
        for level, width in enumerate(config.widths):
            name, attention = self.level(level)
            if level == 0:
                self.enc[f"{name}_conv"] = ReferenceConv(config.img_channels + 1, width, (3, 3))
                outputs.append(width)
            else:
                self.enc[f"{name}_down"] = ReferenceEncoderBlock(config, outputs[-1], outputs[-1], resample="down")
                outputs.append(outputs[-1])
            for i in range(config.num_blocks):
                block = ReferenceEncoderBlock(config, outputs[-1], width, attention=attention)
                self.enc[f"{name}_block{i}"] = block
                outputs.append(width)
        return outputs

    def build_decoder(self, skips: list[int]) -> None:
        """Fill `dec`, from the lowest resolution up; `skips` are the channels of the encoder's outputs."""
        config, channels = self.config, skips[-1]
        for level, width in reversed(list(enumerate(config.widths))):
            name, attention = self.level(level)
            if level == len(config.widths) - 1:
                self.dec[f"{name}_in0"] = ReferenceDecoderBlock(config, channels, channels, attention=True)
                self.dec[f"{name}_in1"] = ReferenceDecoderBlock(config, channels, channels)
            else:
                self.dec[f"{name}_up"] = ReferenceDecoderBlock(config, channels, channels, resample="up")
            for i in range(config.num_blocks + 1):
                block = ReferenceDecoderBlock(config, channels + skips.pop(), width, attention=attention)
                self.dec[f"{name}_block{i}"] = block
                channels = width

    def level(self, level: int) -> tuple[str, bool]:
        """Name of a level, "32x32", and True if its blocks have attention."""
        height, width = (side >> level for side in self.config.size)
        return f"{height}x{width}", max(height, width) in self.config.attn_resolutions

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None) -> Tensor:
        """[N, C, H, W], [N] and one-hot [N, label_dim] -> [N, C, H, W]."""
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            assert class_labels is not None  # `Precond` hands some to every network with classes
            label = self.emb_label(class_labels * math.sqrt(self.config.label_dim))  # one-hot vectors of unit magnitude
            emb = mp_sum(emb, label, self.config.label_balance)
        emb = mp_silu(emb)

        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # a channel of ones in place of biases
        skips = []
        for name, layer in self.enc.items():
            x = layer(x) if "conv" in name else layer(x, emb)
            skips.append(x)
        for name, block in self.dec.items():
            if "block" in name:
                x = mp_cat(x, skips.pop(), self.config.concat_balance)
            x = block(x, emb)
        return self.out_conv(x, gain=self.out_gain)


class ReferencePrecond(nn.Module):
    """Denoiser D(x; sigma) (Eqs. 4-8) and uncertainty u(sigma) (Eq. 21); takes state dicts of `edm2.networks.Precond`.

    Args:
        config: Description of a network of config G.

    Attributes:
        compute_dtype: dtype of the U-Net's activations.

    Raises:
        ValueError: the description of another configuration.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        if config.config != "G":
            raise ValueError(f"config={config.config}: the reference network is config G alone")
        self.config = config
        self.unet = ReferenceUNet(config)
        self.logvar_fourier = ReferenceFourier(config.logvar_channels)
        self.logvar_linear = ReferenceConv(config.logvar_channels, 1)
        self.compute_dtype = torch.float32

    def forward(
        self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, return_logvar: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """[N, C, H, W], sigma [N] or a number, one-hot labels [N, label_dim] or None -> D_x, or (D_x, u)."""
        x = x.to(torch.float32)
        sigma = sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        label_dim, sd = self.config.label_dim, self.config.sigma_data
        labels = None
        if label_dim:
            labels = torch.zeros([1, label_dim], device=x.device) if class_labels is None else class_labels
            labels = labels.to(torch.float32).reshape(-1, label_dim)

        c_skip = sd**2 / (sigma**2 + sd**2)
        c_out = sigma * sd / (sigma**2 + sd**2).sqrt()
        c_in = 1 / (sd**2 + sigma**2).sqrt()
        c_noise = sigma.flatten().log() / 4
        F_x = self.unet((c_in * x).to(self.compute_dtype), c_noise, labels)
        D_x = c_skip * x + c_out * F_x.to(torch.float32)
        if return_logvar:
            return D_x, self.logvar_linear(self.logvar_fourier(c_noise)).reshape(-1, 1, 1, 1)
        return D_x


# ----------------------------------------------------------------------------------------------------------------------
# Loss


def reference_loss(
    net: Callable[..., tuple[Tensor, Tensor]],
    images: Tensor,
    labels: Tensor | None,
    sigma: Tensor,
    noise: Tensor,
    sigma_data: float = 0.5,
) -> Tensor:
    """(lambda / e^u) (D - y)² + u per element (Eqs. 14, 15 and 21); training minimizes its sum per image."""
    sigma = sigma.reshape(-1, 1, 1, 1)
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    denoised, u = net(images + noise * sigma, sigma, labels, return_logvar=True)
    return weight / u.exp() * (denoised - images) ** 2 + u
