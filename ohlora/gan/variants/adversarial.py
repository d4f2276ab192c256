"""Adversarial training of a StyleGAN, plain or with labels: the base, v1 and v4.

Non-saturating logistic loss, R1 on real portraits, style mixing, adaptive augmentation, progressive growing
and an averaged generator. What the original did and did not: its averaged generator was dead code, its
schedule never stepped, its labels were float64; here the average is the model, the rate falls along a cosine
where it is asked to, and labels are float32.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ohlora.gan.stylegan import Noise, StyleDiscriminator, StyleGenerator, mix_styles, update_average
from ohlora.gan.variants.augmentation import adapted, augment
from ohlora.gan.variants.data import PortraitSet
from ohlora.gan.variants.losses import critic_loss, generator_loss, r1_penalty
from ohlora.gan.variants.training import (
    WEIGHT_DECAY,
    Training,
    average_decay,
    cosine,
    mapping_groups,
    set_rate,
    trainable,
)

FIRST_RESOLUTION = 8  # of a growing picture
REAL, LATENTS, MIXING, NOISE, AUGMENT = range(5)  # streams of randomness
SAMPLES = 16  # of a snapshot
ATTEMPT = 100  # streams between two generator steps of one training step


@dataclass(frozen=True)
class AdversarialOptions:
    """How the two networks are trained."""

    steps: int
    batch_size: int
    learning_rate: float
    r1: float  # gamma
    r1_every: int  # steps between penalties
    mixing: float  # probability of style mixing
    ema: float  # decay of the averaged generator
    seed: int
    labels: tuple[int, ...] = ()  # columns of the conditions that are labels
    generator_parts: tuple[str, ...] | None = None  # submodules that train; None is all
    discriminator_parts: tuple[str, ...] | None = None
    mapping_rate: float = 1.0  # learning rate of the mapping network's layers, in those of the rest
    repeats: int = 1  # most generator steps while its loss is twice the discriminator's
    growth: float = 0.0  # share of the steps in which the picture grows
    augment_target: float = 0.0  # 0 is no augmentation
    augment_images: int = 20000
    decays: bool = False  # the learning rate falls along a cosine
    noise: Noise = "constant"


class AdversarialTraining(Training):
    """A generator against a discriminator."""

    def __init__(
        self,
        name: str,
        generator: StyleGenerator,
        discriminator: StyleDiscriminator,
        data: PortraitSet,
        options: AdversarialOptions,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(name, options.steps, options.seed)
        self.data, self.options, self.device, self.dtype = data, options, device, dtype
        self.generator = generator.to(device).train()
        self.discriminator = discriminator.to(device).train()
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.modules = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "average": self.average,
        }
        rate, plain = options.learning_rate, options.generator_parts is None
        betas = (0.0, 0.99) if plain else (0.9, 0.999)  # of GenForce's training, and of the fine-tuning
        decay = 0.0 if plain else WEIGHT_DECAY
        drawing = mapping_groups(self.generator, options.generator_parts, options.mapping_rate, decay)
        judging = trainable(self.discriminator, options.discriminator_parts)
        self.optimizers = {
            "generator": torch.optim.AdamW(drawing, lr=rate, betas=betas),
            "discriminator": torch.optim.AdamW(judging, lr=rate, betas=betas, weight_decay=decay),
        }
        self.numbers = {"augment": 0.0}

    @property
    def lod(self) -> float:
        """Level of detail of this step: each resolution fades in as long as it then stays."""
        config, growth = self.generator.config, self.options.growth
        levels = config.resolution.bit_length() - FIRST_RESOLUTION.bit_length()
        if growth == 0 or levels <= 0:
            return 0.0
        progress = self.step_number / max(growth * self.steps, 1) * levels  # in levels
        if progress >= levels:
            return 0.0
        level, within = divmod(progress, 1.0)
        return levels - level - max(0.0, 2 * within - 1)

    @torch.inference_mode()
    def picture(self) -> NDArray[np.uint8]:
        """The averaged generator's pictures of fixed latents, with labels of the first portraits."""
        z = torch.randn(SAMPLES, self.average.config.z_dim, generator=torch.Generator().manual_seed(0))
        labels = None
        if self.options.labels:
            rows = np.arange(SAMPLES) % len(self.data)
            labels = self.data.scores(self.data.raw[rows])[:, list(self.options.labels)].to(self.device)
        image = self.average(z.to(self.device), labels).clamp(-1, 1)
        return ((image + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()

    def step(self) -> dict[str, float]:
        """One discriminator step, then generator steps."""
        options = self.options
        factor = max(cosine(self.step_number, self.steps), 0.01) if options.decays else 1.0
        for optimizer in self.optimizers.values():
            set_rate(optimizer, options.learning_rate * factor)
        lod = self.lod
        for network in (self.generator.synthesis, self.average.synthesis, self.discriminator):
            network.lod.fill_(lod)
        batch = self.data.batch(options.batch_size, self.rng(REAL))
        labels = batch.labels[:, list(options.labels)].to(self.device) if options.labels else None
        real = at_level(batch.images.to(self.device), lod)
        d = self._discriminator_step(real, labels, lod)
        attempt, g_loss = 0, 0.0
        for attempt in range(options.repeats):
            g_loss = self._generator_step(labels, lod, (attempt + 1) * ATTEMPT)
            if g_loss < 2 * d["d_loss"]:
                break
        decay = average_decay(options.ema, self.step_number)
        update_average(self.average, self.generator, decay)
        self.step_number += 1
        return {**d, "g_loss": g_loss, "g_steps": attempt + 1.0, "lod": lod, "rate": factor}

    def _discriminator_step(self, real: Tensor, labels: Tensor | None, lod: float) -> dict[str, float]:
        options, critic = self.options, self.discriminator
        probability, flips = self.numbers["augment"], not options.labels
        with torch.no_grad():
            fake = self._draw(len(real), labels, lod, 0)
        rng = self.rng(AUGMENT)
        fake, real = augment(fake, probability, rng, flips), augment(real, probability, rng, flips)
        real_logits = critic(real, labels, lod, self.dtype)
        loss = critic_loss(real_logits, critic(fake, labels, lod, self.dtype))
        curve = {"d_loss": float(loss.detach()), "augment": probability}
        if options.r1 and self.step_number % options.r1_every == 0:
            penalty = r1_penalty(lambda images: critic(images, labels, lod), real)
            loss = loss + penalty * (options.r1 / 2 * options.r1_every)
            curve["r1"] = float(penalty.detach())
        optimizer = self.optimizers["discriminator"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        sureness = float(real_logits.detach().sign().mean())
        self.numbers["augment"] = adapted(
            probability, sureness, options.augment_target, len(real), options.augment_images
        )
        return curve | {"sureness": sureness}

    def _generator_step(self, labels: Tensor | None, lod: float, stream: int) -> float:
        options, critic = self.options, self.discriminator
        parameters = [p for group in self.optimizers["discriminator"].param_groups for p in group["params"]]
        for parameter in parameters:
            parameter.requires_grad_(False)
        fake = self._draw(options.batch_size, labels, lod, stream, track=True)
        rng = self.rng(AUGMENT + stream)
        fake = augment(fake, self.numbers["augment"], rng, flips=not options.labels)
        loss = generator_loss(critic(fake, labels, lod, self.dtype))
        optimizer = self.optimizers["generator"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        for parameter in parameters:
            parameter.requires_grad_(True)
        return float(loss.detach())

    def _draw(
        self, count: int, labels: Tensor | None, lod: float, stream: int, track: bool = False
    ) -> Tensor:
        """Pictures of new latents, some of them mixed; moves the average style if `track`."""
        generator, z_dim = self.generator, self.generator.config.z_dim
        w = generator.mapping(self.normal(LATENTS + stream, count, z_dim).to(self.device), labels)
        if track:
            generator.truncation.track(w)
        each = generator.truncation(w)
        rng = self.rng(MIXING + stream)
        if rng.random() < self.options.mixing:
            other = torch.from_numpy(rng.standard_normal((count, z_dim), "f4")).to(self.device)
            last = generator.config.layers - 2 * int(lod)
            mixed = generator.truncation(generator.mapping(other, labels))
            each = mix_styles(each, mixed, int(rng.integers(1, last)))
        source = self.generator_of_noise(stream)
        image: Tensor = generator.synthesis(each, self.options.noise, source, lod, self.dtype)
        return image

    def generator_of_noise(self, stream: int) -> torch.Generator | None:
        """Of this step's random noise; None where it is constant."""
        return self.generator_of(NOISE + stream) if self.options.noise == "random" else None


def at_level(images: Tensor, lod: float) -> Tensor:
    """Real portraits [n, 3, r, r] with as much detail as a generator draws at a level of detail."""
    whole, share = int(lod), lod - int(lod)
    small = F.avg_pool2d(images, 2**whole) if whole else images
    if share:
        coarser = F.interpolate(F.avg_pool2d(small, 2), scale_factor=2, mode="nearest")
        small = small * (1 - share) + coarser * share
    return F.interpolate(small, scale_factor=2**whole, mode="nearest") if whole else small
