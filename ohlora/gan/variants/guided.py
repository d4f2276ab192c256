"""`v2`: the property network reads what was drawn, and the mapping network learns to make it what was asked.

As the original: mean squared error on six attributes, latents and labels that start fixed and become random
by a factor of 0.9 per group of steps, patience over groups. Otherwise than there: the property network is in
`eval()` and gets pictures in its own range; only the mapping network trains, where the original could not
freeze the rest and drifted to men, and its layers have a rate of their own (`mapping_rate`); it starts from
the base's mapping, because a new first layer would have no discriminator to lead it back to faces.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ohlora.attributes import CONDITION_NAMES
from ohlora.gan.importing import StyleGAN
from ohlora.gan.stylegan import StyleGenerator, update_average
from ohlora.gan.variant_face import VariantFace
from ohlora.gan.variants.conditional import LABEL_WIDTH
from ohlora.gan.variants.data import PortraitSet
from ohlora.gan.variants.losses import attribute_error
from ohlora.gan.variants.method import Method, base_generator, columns, with_labels
from ohlora.gan.variants.readers import PropertyReader
from ohlora.gan.variants.training import (
    WEIGHT_DECAY,
    Training,
    average_decay,
    cosine,
    mapping_groups,
    set_rate,
)
from ohlora.stage import Journal
from ohlora.variants_config import GuidedConfig, VariantsConfig

READ = CONDITION_NAMES[:6]  # all but the background's deviation
LATENTS, LABELS = range(2)  # streams of randomness


class GuidedTraining(Training):
    """A mapping network against a frozen property network."""

    def __init__(
        self,
        generator: StyleGenerator,
        reader: PropertyReader,
        data: PortraitSet,
        settings: GuidedConfig,
        mapping_rate: float,  # learning rate of the mapping network's layers, in those of the labels
        seed: int,
        device: torch.device,
    ) -> None:
        super().__init__("v2", settings.steps, seed)
        self.data, self.settings, self.device = data, settings, device
        self.reader = reader.to(device)
        self.generator = generator.to(device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.start = copy.deepcopy(self.generator.mapping).requires_grad_(False)
        self.modules = {"generator": self.generator, "average": self.average}
        groups = mapping_groups(self.generator, ["mapping"], mapping_rate, WEIGHT_DECAY)
        self.optimizers = {"generator": torch.optim.AdamW(groups, lr=settings.learning_rate)}
        self.numbers = {"group_loss": 0.0, "best": float("inf"), "waited": 0.0}
        size = settings.batch_size
        self.fixed_latents = self.normal(LATENTS, size, self.generator.config.z_dim)
        self.fixed_labels = data.random_labels(size, self.rng(LABELS))

    @property
    def fixed(self) -> float:
        """Share of the fixed latents and labels in this step's."""
        return float(self.settings.anneal ** (self.step_number // self.settings.group))

    @property
    def is_done(self) -> bool:
        return super().is_done or self.numbers["waited"] >= self.settings.patience

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Latents [n, z], still of unit variance, and labels [n, 7] of this step."""
        share = self.fixed
        fresh = self.normal(LATENTS, *self.fixed_latents.shape)
        labels = self.data.random_labels(len(fresh), self.rng(LABELS))
        z = share * self.fixed_latents + (1 - share**2) ** 0.5 * fresh
        mixed = share * self.fixed_labels + (1 - share) * labels
        return z.to(self.device), mixed.to(self.device)

    def step(self) -> dict[str, float]:
        settings, read = self.settings, columns(READ)
        optimizer = self.optimizers["generator"]
        rate = settings.learning_rate * cosine(self.step_number, self.steps)
        set_rate(optimizer, rate)
        z, labels = self.inputs()
        w = self.generator.mapping(z, labels)
        image = self.generator.synthesis(self.generator.truncation(w))
        error = attribute_error(self.reader(image)[:, read], labels[:, read])
        loss, curve = error, {"attributes": float(error.detach()), "fixed": self.fixed, "rate": rate}
        if settings.anchor:
            anchor = (w - self.start(z, labels).detach()).square().mean()
            loss = loss + settings.anchor * anchor
            curve["anchor"] = float(anchor.detach())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        update_average(self.average, self.generator, average_decay(settings.ema, self.step_number))
        self.step_number += 1
        self._count(curve["attributes"])
        return curve

    def _count(self, loss: float) -> None:
        """Note whether a group that ends here was better than all before."""
        numbers, group = self.numbers, self.settings.group
        numbers["group_loss"] += loss / group
        if self.step_number % group == 0:
            better = numbers["group_loss"] < numbers["best"]
            numbers["waited"] = 0.0 if better else numbers["waited"] + 1
            numbers["best"] = min(numbers["best"], numbers["group_loss"])
            numbers["group_loss"] = 0.0


class V2(Method):
    """Seven labels, six of which the property network checks."""

    name = "v2"

    def training(self, data: PortraitSet, base: StyleGAN, config: VariantsConfig) -> GuidedTraining:
        """The training, before its first step."""
        generator = with_labels(base_generator(base), len(CONDITION_NAMES), LABEL_WIDTH, "kept", config.seed)
        return GuidedTraining(
            generator,
            self.properties(),
            data,
            config.guided,
            config.mapping_rate,
            config.seed,
            self.bench.device,
        )

    def train(
        self, data: PortraitSet, base: StyleGAN, config: VariantsConfig, journal: Journal
    ) -> VariantFace:
        training = self.training(data, base, config)
        self.run(training, config, journal)
        return self.face(training.average, data, config, control="labels", controlled=CONDITION_NAMES)
