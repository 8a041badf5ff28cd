"""Config G in the plain form in which papers print it: what our network, training step and sampler are timed against.

Written line by line from the formulas (Karras et al. 2024, arXiv 2312.02696v2; for the sampler EDM's Algorithm 2, arXiv
2206.00364), and with nothing done for speed: weights are normalized in every forward pass, and in training overwritten
there too (Algorithm 1); attention is two einsums around a float32 softmax; every function is an operation of its own on
contiguous tensors; resampling convolves with the filter; Adam, averages and non-finite gradients go tensor by tensor,
as torch's defaults have it. Half precision comes from casting, not from autocast.

It computes what `edm2.networks` computes: same names of parameters, same outputs and gradients up to rounding. It is
for measuring only. Shapes: N images, C channels, H by W pixels, E embedding width.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2.networks import NetworkConfig, Precond

# ----------------------------------------------------------------------------------------------------------------------
# Functions


def normalize(x: Tensor, dim: Sequence[int] | None = None, eps: float = 1e-4) -> Tensor:
    """x / (eps + rms(x)), the root mean square over `dim`, by default all but the first (Eqs. 30 and 47)."""
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
    """The two concatenated, scaled so that they contribute (1 - t)² and t² (Eq. 103)."""
    n_a, n_b = a.shape[1], b.shape[1]
    scale = math.sqrt((n_a + n_b) / ((1 - t) ** 2 + t**2))
    return torch.cat([scale * (1 - t) / math.sqrt(n_a) * a, scale * t / math.sqrt(n_b) * b], dim=1)


# ----------------------------------------------------------------------------------------------------------------------
# Layers


class PlainConv(nn.Module):
    """Convolution or linear layer whose weights are normalized in every forward pass (Algorithm 1)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))

    def forward(self, x: Tensor, gain: Tensor | float = 1) -> Tensor:
        """[N, in, ...] -> [N, out, ...] in the dtype of `x`; in training mode the parameter is normalized too."""
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalize(self.weight))
        w = normalize(self.weight.to(torch.float32))
        w = w * (gain / math.sqrt(w[0].numel()))
        w = w.to(x.dtype)
        return F.linear(x, w) if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)


class PlainFourier(nn.Module):
    """sqrt(2) cos(f x + p) (Eq. 75)."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(num_channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N] -> [N, num_channels]."""
        return math.sqrt(2) * (x.to(torch.float32).outer(self.freqs) + self.phases).cos().to(x.dtype)


class PlainResample(nn.Module):
    """Halve or double the resolution: convolution of every channel with the filter."""

    def __init__(self, mode: str, taps: Sequence[float]) -> None:
        super().__init__()
        filter = torch.tensor(taps, dtype=torch.float32)
        kernel = (filter / filter.sum()).outer(filter / filter.sum())
        self.convolve = {"down": F.conv2d, "up": F.conv_transpose2d}[mode]
        self.padding = (len(taps) - 1) // 2
        self.register_buffer("kernel", kernel if mode == "down" else 4 * kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H/2, W/2] or [N, C, 2 H, 2 W]."""
        kernel = self.kernel.to(x.dtype).tile(x.shape[1], 1, 1, 1)
        return self.convolve(x, kernel, groups=x.shape[1], stride=2, padding=self.padding)


# ----------------------------------------------------------------------------------------------------------------------
# Network


class PlainBlock(nn.Module):
    """Encoder or decoder block (Figure 22)."""

    def __init__(
        self,
        config: NetworkConfig,
        in_channels: int,
        out_channels: int,
        *,
        encoder: bool,
        resample: str | None = None,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.resample = None if resample is None else PlainResample(resample, config.resample_filter)
        self.num_heads = out_channels // config.channels_per_head if attention else 0
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = PlainConv(out_channels if encoder else in_channels, out_channels, (3, 3))
        self.emb_linear = PlainConv(config.emb_channels, out_channels)
        self.conv_res1 = PlainConv(out_channels, out_channels, (3, 3))
        self.conv_skip = PlainConv(in_channels, out_channels, (1, 1)) if in_channels != out_channels else None
        self.attn_qkv = PlainConv(out_channels, 3 * out_channels, (1, 1)) if self.num_heads else None
        self.attn_proj = PlainConv(out_channels, out_channels, (1, 1)) if self.num_heads else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[N, in_channels, H, W] and [N, E] -> [N, out_channels, H', W']."""
        config = self.config
        if self.resample is not None:
            x = self.resample(x)
        if self.encoder:
            x = x if self.conv_skip is None else self.conv_skip(x)
            x = normalize(x, dim=[1])
        y = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, gain=self.emb_gain) + 1
        y = mp_silu(y * scale[:, :, None, None].to(y.dtype))
        if self.training and config.dropout:
            y = F.dropout(y, config.dropout)
        y = self.conv_res1(y)
        if not self.encoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, config.res_balance)
        if self.num_heads:
            x = mp_sum(x, self.attn_proj(self.attention(self.attn_qkv(x))), config.attn_balance)
        return x if config.clip_act is None else x.clamp(-config.clip_act, config.clip_act)

    def attention(self, qkv: Tensor) -> Tensor:
        """Cosine attention (Eq. 27), softmax in float32: [N, 3 C, H, W] -> [N, C, H, W]."""
        n, c, h, w = qkv.shape
        qkv = qkv.reshape(n, self.num_heads, -1, 3, h * w)
        q, k, v = normalize(qkv, dim=[2]).unbind(3)
        logits = torch.einsum("nhcq,nhck->nhqk", q, k / math.sqrt(q.shape[2]))
        shares = logits.to(torch.float32).softmax(dim=3).to(q.dtype)
        return torch.einsum("nhqk,nhck->nhcq", shares, v).reshape(n, c // 3, h, w)


class PlainUNet(nn.Module):
    """F(x; c_noise, label) (Figure 22); the names of its parameters are those of `edm2.networks.UNet`."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = PlainFourier(config.noise_channels)
        self.emb_noise = PlainConv(config.noise_channels, config.emb_channels)
        self.emb_label = PlainConv(config.label_dim, config.emb_channels) if config.label_dim else None
        self.enc = nn.ModuleDict()
        self.dec = nn.ModuleDict()
        self._build_decoder(self._build_encoder())
        self.out_conv = PlainConv(config.widths[0], config.img_channels, (3, 3))

    def _build_encoder(self) -> list[int]:
        """Fill `enc`; return the channels of each of its outputs."""
        config, outputs = self.config, []
        for level, width in enumerate(config.widths):
            name, attention = self._level(level)
            if level == 0:
                self.enc[f"{name}_conv"] = PlainConv(config.img_channels + 1, width, (3, 3))
                outputs.append(width)
            else:
                block = PlainBlock(config, outputs[-1], outputs[-1], encoder=True, resample="down")
                self.enc[f"{name}_down"] = block
                outputs.append(outputs[-1])
            for i in range(config.num_blocks):
                block = PlainBlock(config, outputs[-1], width, encoder=True, attention=attention)
                self.enc[f"{name}_block{i}"] = block
                outputs.append(width)
        return outputs

    def _build_decoder(self, skips: list[int]) -> None:
        """Fill `dec`; `skips` are the channels of the encoder's outputs."""
        config, channels = self.config, skips[-1]
        for level, width in reversed(list(enumerate(config.widths))):
            name, attention = self._level(level)
            if level == len(config.widths) - 1:
                block = PlainBlock(config, channels, channels, encoder=False, attention=True)
                self.dec[f"{name}_in0"] = block
                self.dec[f"{name}_in1"] = PlainBlock(config, channels, channels, encoder=False)
            else:
                block = PlainBlock(config, channels, channels, encoder=False, resample="up")
                self.dec[f"{name}_up"] = block
            for i in range(config.num_blocks + 1):
                inputs = channels + skips.pop()
                block = PlainBlock(config, inputs, width, encoder=False, attention=attention)
                self.dec[f"{name}_block{i}"] = block
                channels = width

    def _level(self, level: int) -> tuple[str, bool]:
        """Name, and whether its blocks have attention."""
        height, width = (side >> level for side in self.config.size)
        return f"{height}x{width}", max(height, width) in self.config.attn_resolutions

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None) -> Tensor:
        """[N, C, H, W], [N] and one-hot [N, label_dim] -> [N, C, H, W]."""
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            labels = self.emb_label(class_labels * math.sqrt(self.config.label_dim))
            emb = mp_sum(emb, labels, self.config.label_balance)
        emb = mp_silu(emb)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for name, layer in self.enc.items():
            x = layer(x) if "conv" in name else layer(x, emb)
            skips.append(x)
        for name, block in self.dec.items():
            if "block" in name:
                x = mp_cat(x, skips.pop(), self.config.concat_balance)
            x = block(x, emb)
        return self.out_conv(x, gain=self.out_gain)


class PlainPrecond(nn.Module):
    """Denoiser D(x; sigma) and uncertainty u(sigma) (Eqs. 4-8 and 21), taking state dicts of `edm2.networks.Precond`.

    Args:
        config: Of config G.

    Attributes:
        compute_dtype: dtype of the U-Net's activations.

    Raises:
        ValueError: the description of another configuration.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        if config.config != "G":
            raise ValueError(f"config={config.config}: the plain form is written for config G alone")
        self.config = config
        self.unet = PlainUNet(config)
        self.logvar_fourier = PlainFourier(config.logvar_channels)
        self.logvar_linear = PlainConv(config.logvar_channels, 1)
        self.compute_dtype = torch.float32

    def forward(
        self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, return_logvar: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """[N, C, H, W], sigma [N] or a number, one-hot labels [N, label_dim] or None -> D_x, or (D_x, u)."""
        x = x.to(torch.float32)
        sigma = sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        label_dim, sd = self.config.label_dim, self.config.sigma_data
        if label_dim and class_labels is None:
            class_labels = torch.zeros([1, label_dim], device=x.device)
        labels = class_labels.to(torch.float32).reshape(-1, label_dim) if label_dim else None
        c_skip = sd**2 / (sigma**2 + sd**2)
        c_out = sigma * sd / (sigma**2 + sd**2).sqrt()
        c_in = 1 / (sd**2 + sigma**2).sqrt()
        c_noise = sigma.flatten().log() / 4
        F_x = self.unet((c_in * x).to(self.compute_dtype), c_noise, labels)
        D_x = c_skip * x + c_out * F_x.to(torch.float32)
        if return_logvar:
            return D_x, self.logvar_linear(self.logvar_fourier(c_noise)).reshape(-1, 1, 1, 1)
        return D_x


def plain_copy(net: Precond) -> PlainPrecond:
    """The plain form of a network of config G, with copies of its weights, in its mode, dtype and place.

    Raises:
        ValueError: a network of another configuration.
    """
    plain = PlainPrecond(net.config).to(next(net.parameters()).device)
    plain.load_state_dict(net.state_dict())
    plain.compute_dtype = net.compute_dtype
    return plain.train(net.training)


# ----------------------------------------------------------------------------------------------------------------------
# Training


def plain_loss(net: nn.Module, images: Tensor, labels: Tensor | None, sigma: Tensor, noise: Tensor) -> Tensor:
    """(lambda / e^u) (D - y)² + u per element (Eqs. 14, 15 and 21)."""
    sd = net.config.sigma_data
    sigma = sigma.reshape(-1, 1, 1, 1)
    weight = (sigma**2 + sd**2) / (sigma * sd) ** 2
    denoised, u = net(images + noise * sigma, sigma, labels, return_logvar=True)
    return weight / u.exp() * (denoised - images) ** 2 + u


class PlainEMA:
    """Power-function averages (Eq. 127): a copy of the network per length, updated tensor by tensor."""

    def __init__(self, net: nn.Module, gammas: Sequence[float]) -> None:
        self.net = net
        self.gammas = tuple(gammas)
        self.averages = [copy.deepcopy(net).requires_grad_(False) for _ in gammas]

    @torch.no_grad()
    def update(self, images_seen: int, batch_size: int) -> None:
        """After a step of `batch_size` images, `images_seen` with it."""
        for gamma, average in zip(self.gammas, self.averages, strict=True):
            beta = (1 - batch_size / images_seen) ** (gamma + 1)
            for p_net, p_average in zip(self.net.parameters(), average.parameters(), strict=True):
                p_average.lerp_(p_net, 1 - beta)


class PlainTraining:
    """Training as Algorithm 1 and Appendix D.2 print it.

    Args:
        net: In training mode; its forward pass normalizes the parameters.
        batch_size: Images per step.
        learning_rate: Of the step that begins at so many images seen.
        betas: Of Adam.
        gammas: Exponents of the averages.
        loss_scale: Constant factor on the loss, for float16.
    """

    def __init__(
        self,
        net: PlainPrecond,
        batch_size: int,
        learning_rate: Callable[[int], float],
        betas: tuple[float, float] = (0.9, 0.99),
        gammas: Sequence[float] = (16.97, 6.94),
        loss_scale: float = 1.0,
    ) -> None:
        self.net = net
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.loss_scale = loss_scale
        self.optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate(0), betas=betas)
        self.ema = PlainEMA(net, gammas)
        self.images_seen = 0

    def step(self, rounds: Iterable[tuple[Tensor, Tensor | None, Tensor, Tensor]]) -> None:
        """One optimizer step on (images, one-hot labels, sigma, noise) of each accumulation round."""
        self.optimizer.zero_grad(set_to_none=True)
        for images, labels, sigma, noise in rounds:
            loss = plain_loss(self.net, images, labels, sigma, noise)
            loss.sum().mul(self.loss_scale / self.batch_size).backward()
        self.clean_gradients()
        self.set_learning_rate()
        self.optimizer.step()
        self.images_seen += self.batch_size
        self.ema.update(self.images_seen, self.batch_size)

    def clean_gradients(self) -> None:
        """Non-finite entries to zero, tensor by tensor."""
        for parameter in self.net.parameters():
            if parameter.grad is not None:
                torch.nan_to_num(parameter.grad, nan=0, posinf=0, neginf=0, out=parameter.grad)

    def set_learning_rate(self) -> None:
        """That of the step to come."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.images_seen)


# ----------------------------------------------------------------------------------------------------------------------
# Sampling


@torch.no_grad()
def plain_heun(
    net: Callable[..., Tensor],
    noise: Tensor,
    labels: Tensor | None = None,
    *,
    num_steps: int = 32,
    guide: Callable[..., Tensor] | None = None,
    guidance: float = 1,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7,
) -> Tensor:
    """Heun's method (EDM's Algorithm 2) without fresh noise; the guide, if any, is evaluated apart, without labels."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        D_x = net(x, t, labels)
        return D_x if guide is None else guide(x, t).lerp(D_x, guidance)

    index = torch.arange(num_steps, device=noise.device)
    start, end = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    t_steps = (start + index / max(num_steps - 1, 1) * (end - start)) ** rho
    t_steps = torch.cat([t_steps, torch.zeros_like(t_steps[:1])])
    x_next = noise * t_steps[0]
    for i, (t, t_next) in enumerate(pairwise(t_steps)):
        x = x_next
        d = (x - denoise(x, t)) / t
        x_next = x + (t_next - t) * d
        if i < num_steps - 1:
            d_next = (x_next - denoise(x_next, t_next)) / t_next
            x_next = x + (t_next - t) * (d + d_next) / 2
    return x_next
