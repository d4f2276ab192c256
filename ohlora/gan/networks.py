"""The portrait generator: StyleGAN2's synthesis network, conditioned on attributes.

Notable:
- Modulated convolutions with demodulation (Karras et al. 2020, arXiv:1912.04958, section 2). The style
  scales the
  activations in front of one shared convolution and the demodulation scales them behind it: the same
  function as a convolution with modulated weights per sample, in one plain convolution for the whole batch.
- Skip-RGB: each resolution adds its picture to the upsampled sum of the earlier ones, so that training can
  start at a low resolution and grow without any fade-in.
- The first convolution of a block runs before the upsampling, a quarter of the cost. The upsampling is
  bilinear, which is StyleGAN2's [1, 3, 3, 1] filter but for the border pixels.
- The last doubling is a sub-pixel head (Shi et al. 2016, arXiv:1609.05158): features stay at half the
  resolution and one modulated convolution predicts four sub-pixels of each. The full-resolution block is the
  slowest of a StyleGAN2 on a CPU; MobileStyleGAN (arXiv:2104.04767) leaves it out in the same way, with
  wavelets.
- Noise inputs are constants made from a seed, not drawn per call: one latent and one condition are one
  picture.
- The 4x4 input is a learned constant plus a linear function of the style, so that a turning head may move.
- Conditions enter the mapping network beside the latent as smooth features, without normalisation: a small
  change of an attribute is a small change of the picture.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ohlora.attributes import CONDITION_NAMES

NUISANCE_NAMES = (
    "pitch",
    "roll",
    "smile",
)  # what else may move between portraits of one person; 0 when drawing
LEAK = 0.2  # slope of leaky ReLU, as in StyleGAN2
ACTIVATION_GAIN = math.sqrt(2)  # keeps the variance of a leaky ReLU's output


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """Shape of a generator; stored in a model's manifest."""

    resolution: int = 256  # of the picture, a power of two from 16
    z_dim: int = 64  # length of an identity's latent
    w_dim: int = 256  # length of a style
    channel_base: int = 3072  # channels at resolution r are channel_base / r ...
    channel_max: int = 256  # ... but never more than this
    channel_min: int = 32  # ... nor fewer than this
    mapping_layers: int = 4  # fully connected layers of the mapping network
    mapping_lr: float = 0.5  # learning-rate multiplier of the mapping network
    noise_seed: int = 1  # of the constant noise inputs

    def channels(self, resolution: int) -> int:
        """Feature maps at a resolution."""
        return max(self.channel_min, min(self.channel_max, self.channel_base // resolution))

    @property
    def resolutions(self) -> list[int]:
        """Of the pictures a generator can draw: 8, 16, ..., its own."""
        return [2**i for i in range(3, self.resolution.bit_length())]


@dataclass(frozen=True)
class Normalisation:
    """From raw conditions and nuisance to what a generator takes."""

    condition_mean: Tensor  # float32 [7]
    condition_scale: Tensor  # float32 [7]
    nuisance_mean: Tensor  # float32 [3]; the persona's average, which a generator draws unless told otherwise
    nuisance_scale: Tensor  # float32 [3]

    def __call__(self, conditions: Tensor, nuisance: Tensor | None) -> tuple[Tensor, Tensor]:
        """Raw float32 [n, 7] and [n, 3] or None (the average) to normalised ones."""
        normal = (conditions - self.condition_mean) / self.condition_scale
        if nuisance is None:
            return normal, conditions.new_zeros(len(conditions), len(NUISANCE_NAMES))
        return normal, (nuisance - self.nuisance_mean) / self.nuisance_scale


class EqualizedLinear(nn.Module):
    """Fully connected layer with equalized learning rate (Karras et al. 2018, arXiv:1710.10196)."""

    def __init__(
        self,
        in_features: int,  # length of an input
        out_features: int,  # length of an output
        bias: float = 0.0,  # initial bias
        lr_multiplier: float = 1.0,  # scales both the step and the stored weights
        gain: float = 1.0,  # standard deviation of the output for a unit input
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias / lr_multiplier))
        self.weight_gain = gain * lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """float32 [n, in_features] to [n, out_features]."""
        return F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)


class ModulatedConv2d(nn.Module):
    """Convolution whose input channels are scaled by a style, optionally demodulated; no bias."""

    def __init__(
        self,
        in_channels: int,  # feature maps of the input
        out_channels: int,  # feature maps of the output
        kernel_size: int,  # odd
        w_dim: int,  # length of a style
        demodulate: bool = True,  # scale each output map to unit expected variance
        weight_std: float = 1.0,  # of the initial weights
    ) -> None:
        super().__init__()
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(weight_std * torch.randn(shape))
        self.affine = EqualizedLinear(w_dim, in_channels, bias=1.0)
        self.gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.padding = kernel_size // 2
        self.demodulate = demodulate
        self.power: Tensor | None = None  # of the weights per in and out channel, kept by `freeze`

    def freeze(self) -> None:
        """Keep what depends on the weights alone, for inference."""
        self.power = self._power().detach()

    def _power(self) -> Tensor:
        return self.weight.square().sum((2, 3)).t()

    def forward(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor | None]:
        """Convolve.

        Args:
            x: [n, in_channels, h, w].
            w: float32 [n, w_dim].

        Returns:
            The convolution [n, out_channels, h, w] and the demodulation float32 [n, out_channels, 1, 1] that
            the caller still has to multiply with (it does so after the upsampling, together with bias and
            noise), or None for a layer without demodulation.
        """
        style = self.affine(w) * self.gain
        y = F.conv2d(x * style[:, :, None, None].to(x.dtype), self.weight.to(x.dtype), padding=self.padding)
        if not self.demodulate:
            return y, None
        power = style.square() @ (self._power() if self.power is None else self.power)
        return y, torch.rsqrt(power + 1e-8)[:, :, None, None]


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, optional upsampling, constant noise, bias and leaky ReLU."""

    noise: Tensor

    def __init__(
        self,
        in_channels: int,  # feature maps of the input
        out_channels: int,  # feature maps of the output
        resolution: int,  # of the output
        w_dim: int,  # length of a style
        upsample: bool,  # double the resolution after the convolution
        generator: torch.Generator,  # of the constant noise
    ) -> None:
        super().__init__()
        self.convolution = ModulatedConv2d(in_channels, out_channels, 3, w_dim)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.upsample = upsample
        noise = torch.randn(1, 1, resolution, resolution, generator=generator)
        self.register_buffer("noise", noise, persistent=False)  # the seed in the settings remakes it

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """[n, in_channels, h, w] and float32 [n, w_dim] to [n, out_channels, h', w']."""
        y, demodulation = self.convolution(x, w)
        assert demodulation is not None
        if self.upsample:
            y = F.interpolate(y, scale_factor=2, mode="bilinear")
        offset = self.bias[None, :, None, None] + self.noise * self.noise_strength
        # sqrt(2) * leaky_relu(y) == leaky_relu(sqrt(2) * y): the gain joins factors that are there anyway
        y = torch.addcmul(
            (offset * ACTIVATION_GAIN).to(y.dtype).contiguous(memory_format=torch.channels_last),
            y,
            (demodulation * ACTIVATION_GAIN).to(y.dtype),
        )
        return F.leaky_relu(y, LEAK, inplace=True)


class Block(nn.Module):
    """Two synthesis layers and a picture of one resolution."""

    def __init__(self, config: GeneratorConfig, resolution: int, generator: torch.Generator) -> None:
        super().__init__()
        before, here = config.channels(resolution // 2), config.channels(resolution)
        self.up = SynthesisLayer(before, here, resolution, config.w_dim, True, generator)
        self.refine = SynthesisLayer(here, here, resolution, config.w_dim, False, generator)
        self.to_rgb = ModulatedConv2d(here, 3, 1, config.w_dim, demodulate=False, weight_std=0.3)
        self.rgb_bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, image: Tensor | None, w: Tensor) -> tuple[Tensor, Tensor]:
        """Features [n, c, h, w] and picture [n, 3, h, w] to those of twice the resolution."""
        x = self.refine(self.up(x, w), w)
        rgb, _ = self.to_rgb(x, w)
        rgb = rgb.float() + self.rgb_bias[None, :, None, None]
        return x, rgb if image is None else F.interpolate(image, scale_factor=2, mode="bilinear") + rgb


class Mapping(nn.Module):
    """Latent and normalised conditions to a style."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        inputs = config.z_dim + 2 * len(CONDITION_NAMES) + len(NUISANCE_NAMES)
        sizes = [inputs] + [config.w_dim] * config.mapping_layers
        self.layers = nn.ModuleList(
            EqualizedLinear(i, o, lr_multiplier=config.mapping_lr, gain=ACTIVATION_GAIN)
            for i, o in itertools.pairwise(sizes)
        )
        self.condition_gain = 2.0  # seven numbers must hold their own beside a long latent

    def forward(self, z: Tensor, conditions: Tensor, nuisance: Tensor) -> Tensor:
        """float32 [n, z_dim], normalised conditions [n, 7] and nuisance [n, 3] to styles [n, w_dim]."""
        features = torch.cat([conditions, torch.cos(0.5 * math.pi * conditions), nuisance], 1)
        x = torch.cat([z, self.condition_gain * features], 1)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), LEAK)
        return x


class Generator(nn.Module):
    """Latent and conditions to a portrait."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        noise = torch.Generator().manual_seed(config.noise_seed)
        first = config.channels(4)
        self.mapping = Mapping(config)
        self.constant = nn.Parameter(torch.randn(1, first, 4, 4))
        self.shift = EqualizedLinear(config.w_dim, first * 16)
        self.start = SynthesisLayer(first, first, 4, config.w_dim, False, noise)
        self.blocks = nn.ModuleList(Block(config, r, noise) for r in config.resolutions[:-1])
        last = config.channels(config.resolution // 2)
        self.head = ModulatedConv2d(last, 3 * 4, 3, config.w_dim, demodulate=False, weight_std=0.1)

    def synthesis(self, w: Tensor, resolution: int | None = None) -> Tensor:
        """Styles float32 [n, w_dim] to pictures float32 [n, 3, r, r] of a resolution, about [-1, 1]."""
        last = resolution or self.config.resolution
        if last not in self.config.resolutions:
            raise ValueError(f"resolution {last} is not one of {self.config.resolutions}")
        x = self.constant + self.shift(w).view(len(w), -1, 4, 4)
        if torch.is_autocast_enabled(w.device.type):
            x = x.to(torch.get_autocast_dtype(w.device.type))
        x = self.start(x.contiguous(memory_format=torch.channels_last), w)
        image: Tensor | None = None
        for size, block in zip(self.config.resolutions[:-1], self.blocks, strict=True):
            if size <= last:
                x, image = block(x, image, w)
        assert image is not None
        if last < self.config.resolution:
            return image
        detail = F.pixel_shuffle(self.head(x, w)[0].float(), 2)
        return F.interpolate(image, scale_factor=2, mode="bilinear") + detail

    def freeze(self) -> Generator:
        """Make the generator ready for inference; its weights must not change after."""
        for module in self.modules():
            if isinstance(module, ModulatedConv2d):
                module.freeze()
        return self.eval().requires_grad_(False)

    def forward(
        self, z: Tensor, conditions: Tensor, resolution: int | None = None, nuisance: Tensor | None = None
    ) -> Tensor:
        """Draw portraits.

        Args:
            z: latents, float32 [n, z_dim].
            conditions: normalised conditions, float32 [n, 7] in the order of `CONDITION_NAMES`.
            resolution: of the pictures; None means the generator's own.
            nuisance: what the conditions do not say, float32 [n, 3] in the order of `NUISANCE_NAMES`,
                standardised; None means 0, the average.

        Returns:
            float32 [n, 3, r, r], about [-1, 1].

        Raises:
            ValueError: a shape does not fit, or the generator has no block of this resolution.
        """
        if z.ndim != 2 or z.shape[1] != self.config.z_dim:
            raise ValueError(f"latents must be [n, {self.config.z_dim}], got {tuple(z.shape)}")
        if conditions.shape != (len(z), len(CONDITION_NAMES)):
            raise ValueError(
                f"conditions must be [{len(z)}, {len(CONDITION_NAMES)}], got {tuple(conditions.shape)}"
            )
        # styles in float32 even under autocast: rounding them to bfloat16 would step the attributes
        if nuisance is None:
            nuisance = z.new_zeros(len(z), len(NUISANCE_NAMES))
        with torch.autocast(z.device.type, enabled=False):
            w = self.mapping(z.float(), conditions.float(), nuisance.float())
        return self.synthesis(w, resolution)
