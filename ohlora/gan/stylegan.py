"""StyleGAN (Karras et al. 2019, arXiv:1812.04948), with the parameter names and shapes of GenForce's port.

A state dict of `generator`, `generator_smooth` or `discriminator` of a GenForce checkpoint loads as it is,
and an imported generator draws the same picture.

Notable:
- The mapping network normalises its input, latent and label embedding together, to unit mean square: a
  latent's length says nothing. Its layers have a learning-rate multiplier of 0.01.
- A style acts behind each convolution: noise, bias, leaky ReLU, instance norm, then scale and shift (AdaIN).
- From `fused_from` on, upsampling or downsampling is part of the convolution; below, it is nearest neighbour
  or average pooling beside it. Both are followed or preceded by a [1, 2, 1] blur.
- `lod` is the level of detail of progressive growing (Karras et al. 2018, arXiv:1710.10196): 0 is the full
  resolution, 1 half of it, and a fraction fades between the two.
- Noise is the checkpoint's constant one unless asked for otherwise; random noise comes from a generator that
  the caller passes in.
- Labels have three forms. GenForce's: the embedding is as long as the latent, and the discriminator scores
  each label dimension. The original Oh-LoRA's: a short embedding (`label_width`), and a discriminator that
  gets the labels beside the input of its last layer (`label_concat`). Ours (`label_projection`): one score
  of the portrait and one for each number of the label (Miyato and Koyama 2018, arXiv:1802.05637).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FIRST = 4  # resolution of the learned constant
LEAK = 0.2  # slope of leaky ReLU
HE_GAIN = math.sqrt(2)
EPSILON = 1e-8

Noise = Literal["constant", "random", "none"]


@dataclass(frozen=True, slots=True)
class StyleGANConfig:
    """Shape of a generator and its discriminator; stored in a model's manifest."""

    resolution: int = 256  # of the picture, a power of two from 8
    z_dim: int = 512  # length of a latent
    w_dim: int = 512  # length of a style
    mapping_layers: int = 8  # fully connected layers of the mapping network
    mapping_fmaps: int = 512  # width of those between the first and the last
    mapping_lr: float = 0.01  # learning-rate multiplier of the mapping network
    fmaps_base: int = 16384  # channels at resolution r are fmaps_base / r ...
    fmaps_max: int = 512  # ... but never more than this
    fused_from: int = 128  # least resolution at which a convolution resamples by itself
    label_dim: int = 0  # numbers of a label; 0 is unconditional
    label_width: int = 0  # length of the label's embedding; 0 is as long as the latent, as in GenForce
    label_concat: bool = (
        False  # the discriminator's last layer sees the label, instead of scoring each number
    )
    label_projection: bool = False  # beside a score for each number of the label, one of the portrait alone
    group_size: int = 4  # portraits that the minibatch deviation compares

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: the resolution is no power of two from 8 on, or a size is not positive.
        """
        if self.resolution < 8 or self.resolution & (self.resolution - 1):
            raise ValueError(f"resolution must be a power of two from 8 on, got {self.resolution}")
        positive = ("z_dim", "w_dim", "mapping_layers", "mapping_fmaps", "fmaps_max", "group_size")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.fmaps_base < self.resolution:
            raise ValueError(f"fmaps_base {self.fmaps_base} leaves no channel at {self.resolution}")
        if self.label_concat and self.label_projection:
            raise ValueError("label_concat and label_projection exclude each other")

    def channels(self, resolution: int) -> int:
        """Feature maps at a resolution."""
        return min(self.fmaps_base // resolution, self.fmaps_max)

    @property
    def resolutions(self) -> list[int]:
        """4, 8, ..., the full one."""
        return [2**i for i in range(2, self.resolution.bit_length())]

    @property
    def layers(self) -> int:
        """Of the synthesis network: the number of styles of a picture."""
        return 2 * len(self.resolutions)

    @property
    def embedding(self) -> int:
        """Length of the label's embedding."""
        return (self.label_width or self.z_dim) if self.label_dim else 0


class ScaledLinear(nn.Module):
    """Fully connected layer whose weights are scaled when used (equalized learning rate)."""

    def __init__(
        self,
        in_features: int,  # length of an input
        out_features: int,  # length of an output
        gain: float = HE_GAIN,  # deviation of the output for a unit input, before the activation
        lr: float = 1.0,  # learning-rate multiplier
        activate: bool = True,  # leaky ReLU behind it
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr)
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.scale = gain / math.sqrt(in_features) * lr
        self.lr = lr
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """float32 [n, in_features] to [n, out_features]."""
        y = F.linear(x, self.weight * self.scale, self.bias * self.lr)
        return F.leaky_relu(y, LEAK) if self.activate else y


class Blur(nn.Module):
    """[1, 2, 1] x [1, 2, 1] filter of each channel; zero outside the picture."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0])
        kernel = torch.outer(line, line) / 16
        self.register_buffer("kernel", kernel.repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel.to(x.dtype), padding=1, groups=x.shape[1])


class NoiseInput(nn.Module):
    """One plane of noise, added to each channel with a strength of its own."""

    noise: Tensor

    def __init__(self, resolution: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("noise", torch.randn(1, 1, resolution, resolution))
        self.weight = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, mode: Noise, generator: torch.Generator | None) -> Tensor:
        if mode == "none":
            return x
        noise = self.noise
        if mode == "random":
            if generator is None:
                raise ValueError("random noise needs a generator")
            noise = torch.randn((len(x), 1, *x.shape[2:]), generator=generator, device=generator.device)
        return x + (noise.to(x.device) * self.weight.view(1, -1, 1, 1)).to(x.dtype)


def instance_norm(x: Tensor) -> Tensor:
    """[n, c, h, w] with zero mean and unit mean square in each channel, computed in float32."""
    y = x.float()
    y = y - y.mean((2, 3), keepdim=True)
    # root and division rather than rsqrt: rounding as in GenForce's port, so that pictures are equal
    return (y / (y.square().mean((2, 3), keepdim=True) + EPSILON).sqrt()).to(x.dtype)


def pixel_norm(x: Tensor) -> Tensor:
    """[n, d] with unit mean square in each row."""
    return x / (x.square().mean(1, keepdim=True) + EPSILON).sqrt()


def fused_kernel(weight: Tensor) -> Tensor:
    """A 3x3 kernel [..., 3, 3] summed over the four positions of a doubled grid: [..., 4, 4]."""
    padded = F.pad(weight, (1, 1, 1, 1))
    return padded[..., 1:, 1:] + padded[..., :-1, 1:] + padded[..., 1:, :-1] + padded[..., :-1, :-1]


class SynthesisLayer(nn.Module):
    """Constant or 3x3 convolution with optional upsampling, then noise, bias, leaky ReLU and style."""

    def __init__(
        self,
        in_channels: int,  # feature maps of the input
        out_channels: int,  # feature maps of the output
        resolution: int,  # of the output
        w_dim: int,  # length of a style
        kind: Literal["constant", "plain", "upsample", "fused"],
    ) -> None:
        super().__init__()
        self.kind = kind
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.apply_noise = NoiseInput(resolution, out_channels)
        self.style = ScaledLinear(w_dim, 2 * out_channels, gain=1.0, activate=False)
        if kind == "constant":
            self.const = nn.Parameter(torch.ones(1, out_channels, resolution, resolution))
            return
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.scale = HE_GAIN / math.sqrt(9 * in_channels)
        self.blur: nn.Module = nn.Identity() if kind == "plain" else Blur(out_channels)

    def forward(self, x: Tensor | None, w: Tensor, noise: Noise, generator: torch.Generator | None) -> Tensor:
        """[n, in_channels, h, w] (of a constant None) and float32 [n, w_dim] to [n, out_channels, h', w']."""
        if x is None:
            x = self.const.expand(len(w), -1, -1, -1)
        else:
            weight = self.weight * self.scale
            if self.kind == "fused":
                kernel = fused_kernel(weight).transpose(0, 1)
                x = F.conv_transpose2d(x, kernel.to(x.dtype), stride=2, padding=1)
            else:
                if self.kind == "upsample":
                    x = F.interpolate(x, scale_factor=2, mode="nearest")
                x = F.conv2d(x, weight.to(x.dtype), padding=1)
            x = self.blur(x)
        x = self.apply_noise(x, noise, generator)
        x = F.leaky_relu(x + self.bias.view(1, -1, 1, 1).to(x.dtype), LEAK)
        scale, shift = self.style(w)[:, :, None, None].to(x.dtype).chunk(2, 1)
        return instance_norm(x) * (scale + 1) + shift


class RGB(nn.Module):
    """1x1 convolution between pictures and features."""

    def __init__(self, in_channels: int, out_channels: int, gain: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.scale = gain / math.sqrt(in_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, (self.weight * self.scale).to(x.dtype), self.bias.to(x.dtype))


class MappingNetwork(nn.Module):
    """Latent, and a label if there are any, to a style."""

    def __init__(self, config: StyleGANConfig) -> None:
        super().__init__()
        self.config = config
        sizes = [config.z_dim + config.embedding, *[config.mapping_fmaps] * (config.mapping_layers - 1)]
        sizes.append(config.w_dim)
        for i in range(config.mapping_layers):
            self.add_module(f"dense{i}", ScaledLinear(sizes[i], sizes[i + 1], lr=config.mapping_lr))
        if config.label_dim:
            self.label_weight = nn.Parameter(torch.randn(config.label_dim, config.embedding))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents float32 [n, z_dim] and labels float32 [n, label_dim] to styles float32 [n, w_dim].

        Raises:
            ValueError: a shape does not fit, labels are missing or not asked for.
        """
        config = self.config
        if z.ndim != 2 or z.shape[1] != config.z_dim:
            raise ValueError(f"latents must be [n, {config.z_dim}], got {tuple(z.shape)}")
        check_labels(labels, config.label_dim, len(z))
        x = z if labels is None else torch.cat([z, labels @ self.label_weight], 1)
        x = pixel_norm(x)
        for i in range(config.mapping_layers):
            x = self.get_submodule(f"dense{i}")(x)
        return x


class Truncation(nn.Module):
    """Styles of all layers, drawn towards the average style (the truncation trick)."""

    w_avg: Tensor

    def __init__(self, config: StyleGANConfig) -> None:
        super().__init__()
        self.layers = config.layers
        self.register_buffer("w_avg", torch.zeros(config.w_dim))

    def forward(self, w: Tensor, psi: float = 1.0, truncated: int | None = None) -> Tensor:
        """Styles [n, w_dim], or of each layer [n, layers, w_dim], to truncated ones of each layer.

        Args:
            w: styles.
            psi: 0 is the average style, 1 no truncation.
            truncated: number of layers that are truncated, coarse ones first; None is all.
        """
        each = w[:, None].expand(-1, self.layers, -1) if w.ndim == 2 else w
        if psi == 1:
            return each
        count = self.layers if truncated is None else truncated
        layer = torch.arange(self.layers, device=w.device)[:, None]
        strength = torch.where(layer < count, psi, 1.0).to(w)
        return self.w_avg + (each - self.w_avg) * strength

    @torch.no_grad()
    def track(self, w: Tensor, decay: float = 0.995) -> None:
        """Move the average style towards the mean of styles [n, w_dim] of a training batch."""
        self.w_avg.lerp_(w.detach().mean(0), 1 - decay)


class SynthesisNetwork(nn.Module):
    """Styles of all layers to a picture."""

    lod: Tensor

    def __init__(self, config: StyleGANConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("lod", torch.zeros(()))
        for block, resolution in enumerate(config.resolutions):
            here, before = config.channels(resolution), config.channels(resolution // 2)
            fused = resolution >= config.fused_from
            kind: Literal["constant", "upsample", "fused"] = "constant"
            if block:
                kind = "fused" if fused else "upsample"
            first = SynthesisLayer(before if block else here, here, resolution, config.w_dim, kind)
            self.add_module(f"layer{2 * block}", first)
            second = SynthesisLayer(here, here, resolution, config.w_dim, "plain")
            self.add_module(f"layer{2 * block + 1}", second)
            self.add_module(f"output{block}", RGB(here, 3, gain=1.0))

    def forward(
        self,
        w: Tensor,
        noise: Noise = "constant",
        generator: torch.Generator | None = None,
        lod: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Styles float32 [n, layers, w_dim] to pictures float32 [n, 3, r, r], about [-1, 1].

        Args:
            w: styles.
            noise: the constant noise, random noise, or none.
            generator: of random noise, on the CPU or the styles' device.
            lod: level of detail; None takes the network's.
            dtype: of convolutions.

        Raises:
            ValueError: a shape does not fit, or the level of detail is beyond the first resolution.
        """
        config = self.config
        if w.ndim != 3 or w.shape[1:] != (config.layers, config.w_dim):
            raise ValueError(f"styles must be [n, {config.layers}, {config.w_dim}], got {tuple(w.shape)}")
        detail = checked_lod(self.lod, lod, config)
        x: Tensor | None = None
        image: Tensor | None = None
        last = len(config.resolutions) - 1
        for block in range(last + 1):
            level = last - block  # of detail that this block's picture has
            if detail >= level + 1:
                assert image is not None
                image = F.interpolate(image, scale_factor=2, mode="nearest")
                continue
            for layer in (2 * block, 2 * block + 1):
                x = self.get_submodule(f"layer{layer}")(x, w[:, layer], noise, generator)
                x = x.to(dtype)
            if detail <= level - 1:
                continue  # a finer block will draw the picture
            drawn = self.get_submodule(f"output{block}")(x).float()
            if image is None or detail <= level:
                image = drawn
            else:
                share = math.ceil(detail) - detail
                before = F.interpolate(image, scale_factor=2, mode="nearest")
                image = drawn * share + before * (1 - share)
        assert image is not None
        return image


class StyleGenerator(nn.Module):
    """Latents, and labels if there are any, to portraits."""

    def __init__(self, config: StyleGANConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping = MappingNetwork(config)
        self.truncation = Truncation(config)
        self.synthesis = SynthesisNetwork(config)

    def forward(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        *,
        psi: float = 1.0,
        truncated: int | None = None,
        noise: Noise = "constant",
        generator: torch.Generator | None = None,
        lod: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw portraits.

        Args:
            z: latents, float32 [n, z_dim].
            labels: float32 [n, label_dim], of a conditional generator only.
            psi: of the truncation trick: 0 average, 1 full variety.
            truncated: number of truncated layers, coarse ones first; None is all.
            noise: constant (the same picture each time), random, or none.
            generator: of random noise.
            lod: level of detail; None takes the network's.
            dtype: of the synthesis network's convolutions.

        Returns:
            float32 [n, 3, resolution, resolution], about [-1, 1].

        Raises:
            ValueError: a shape does not fit.
        """
        w = self.truncation(self.mapping(z, labels), psi, truncated)
        image: Tensor = self.synthesis(w, noise, generator, lod, dtype)
        return image


class DiscriminatorLayer(nn.Module):
    """3x3 convolution with optional blur and downsampling, bias and leaky ReLU."""

    def __init__(
        self,
        in_channels: int,  # feature maps of the input
        out_channels: int,  # feature maps of the output
        kind: Literal["plain", "downsample", "fused"] = "plain",
        group_size: int = 1,  # above 1 one more feature map: the minibatch deviation
    ) -> None:
        super().__init__()
        self.kind = kind
        self.group_size = group_size
        width = in_channels + (group_size > 1)
        self.weight = nn.Parameter(torch.randn(out_channels, width, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.scale = HE_GAIN / math.sqrt(9 * width)
        self.blur: nn.Module = nn.Identity() if kind == "plain" else Blur(width)

    def forward(self, x: Tensor) -> Tensor:
        if self.group_size > 1:
            x = torch.cat([x, minibatch_deviation(x, self.group_size)], 1)
        x = self.blur(x)
        weight, bias = (self.weight * self.scale), self.bias.to(x.dtype)
        if self.kind == "fused":
            x = F.conv2d(x, (fused_kernel(weight) / 4).to(x.dtype), bias, stride=2, padding=1)
        else:
            x = F.conv2d(x, weight.to(x.dtype), bias, padding=1)
            if self.kind == "downsample":
                x = F.avg_pool2d(x, 2)
        return F.leaky_relu(x, LEAK)


def minibatch_deviation(x: Tensor, group_size: int) -> Tensor:
    """How much the portraits of a group differ, as one feature map [n, 1, h, w] of [n, c, h, w].

    Portraits i, i + n/g, i + 2n/g, ... form a group of g; a batch that does not divide is one group.
    """
    n, _, h, w = x.shape
    group = min(group_size, n)
    if n % group:
        group = n
    y = x.float().view(group, n // group, -1)
    deviation = (y.var(0, correction=0) + EPSILON).sqrt().mean(1)
    return deviation.repeat(group)[:, None, None, None].expand(-1, -1, h, w).to(x.dtype)


class StyleDiscriminator(nn.Module):
    """Portraits, and labels if there are any, to how real they look."""

    lod: Tensor

    def __init__(self, config: StyleGANConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("lod", torch.zeros(()))
        sizes = config.resolutions[::-1]
        for block, resolution in enumerate(sizes):
            here, after = config.channels(resolution), config.channels(resolution // 2)
            self.add_module(f"input{block}", RGB(3, here, gain=HE_GAIN))
            if resolution == FIRST:
                first = DiscriminatorLayer(here, here, group_size=config.group_size)
                self.add_module(f"layer{2 * block}", first)
                dense = ScaledLinear(here * FIRST * FIRST, after)
                self.add_module(f"layer{2 * block + 1}", dense)
            else:
                self.add_module(f"layer{2 * block}", DiscriminatorLayer(here, here))
                kind: Literal["downsample", "fused"] = "downsample"
                if resolution >= config.fused_from:
                    kind = "fused"
                self.add_module(f"layer{2 * block + 1}", DiscriminatorLayer(here, after, kind))
        features = config.channels(FIRST // 2) + config.label_dim * config.label_concat
        alone = not config.label_dim or config.label_concat or config.label_projection
        scores = int(alone) + (0 if config.label_concat else config.label_dim)
        self.add_module(f"layer{2 * len(sizes)}", ScaledLinear(features, scores, gain=1.0, activate=False))

    @property
    def last_layers(self) -> tuple[str, str, str]:
        """Names of the layers from 4x4 on: convolution, dense, score. At 256 they are 12, 13 and 14."""
        last = 2 * len(self.config.resolutions)
        return f"layer{last - 2}", f"layer{last - 1}", f"layer{last}"

    def forward(
        self,
        image: Tensor,
        labels: Tensor | None = None,
        lod: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Logits float32 [n, 1] of portraits float32 [n, 3, r, r] in [-1, 1].

        Args:
            image: portraits.
            labels: float32 [n, label_dim], of a conditional discriminator only.
            lod: level of detail; None takes the network's.
            dtype: of convolutions.

        Raises:
            ValueError: a shape does not fit, labels are missing or not asked for.
        """
        config = self.config
        shape = (3, config.resolution, config.resolution)
        if image.ndim != 4 or image.shape[1:] != shape:
            raise ValueError(f"portraits must be [n, 3, {shape[1]}, {shape[2]}], got {tuple(image.shape)}")
        check_labels(labels, config.label_dim, len(image))
        detail = checked_lod(self.lod, lod, config)
        x: Tensor | None = None
        last = len(config.resolutions) - 1
        for block in range(last + 1):
            if detail < block + 1:  # the picture has features at this resolution
                if x is None or detail > block - 1:
                    fresh = self.get_submodule(f"input{block}")(image.to(dtype))
                    fresh = F.leaky_relu(fresh, LEAK)
                    share = 1.0 if x is None else max(detail - (block - 1), 0.0)
                    x = fresh if x is None else fresh * share + x * (1 - share)
                x = self.get_submodule(f"layer{2 * block}")(x)
                if block == last:
                    x = x.float().flatten(1)
                x = self.get_submodule(f"layer{2 * block + 1}")(x)
            if detail > block:
                image = F.avg_pool2d(image, 2)
        assert x is not None
        head = self.get_submodule(self.last_layers[2])
        if labels is not None and config.label_concat:
            x = torch.cat([x, labels], 1)
        scores: Tensor = head(x)
        if labels is not None and not config.label_concat:
            if config.label_projection:
                labels = F.pad(labels, (1, 0), value=1.0)
            scores = (scores * labels).sum(1, keepdim=True)
        return scores


def check_labels(labels: Tensor | None, label_dim: int, n: int) -> None:
    """
    Raises:
        ValueError: labels are not float32 [n, label_dim], or there are some for an unconditional network.
    """
    shape = None if labels is None else tuple(labels.shape)
    wanted = (n, label_dim) if label_dim else None
    if shape != wanted:
        raise ValueError(f"labels must be {list(wanted) if wanted else None}, got {shape}")
    if labels is not None and labels.dtype != torch.float32:
        raise ValueError(f"labels must be float32, got {labels.dtype}")


def checked_lod(stored: Tensor, lod: float | None, config: StyleGANConfig) -> float:
    """The level of detail to draw at.

    Raises:
        ValueError: it is negative, or coarser than the first resolution.
    """
    detail = float(stored) if lod is None else float(lod)
    if not 0 <= detail <= len(config.resolutions) - 1:
        raise ValueError(f"level of detail {detail} is not in 0 .. {len(config.resolutions) - 1}")
    return detail


def mix_styles(w: Tensor, other: Tensor, crossover: int) -> Tensor:
    """Styles of each layer [n, layers, w_dim] that change to other ones from layer `crossover` on."""
    return torch.cat([w[:, :crossover], other[:, crossover:]], 1)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move an averaged copy (EMA) towards a model: average <- decay * average + (1 - decay) * model.

    Buffers (average style, level of detail) are copied.
    """
    for old, new in zip(average.parameters(), model.parameters(), strict=True):
        old.lerp_(new.to(old), 1 - decay)
    for kept, current in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(current)
