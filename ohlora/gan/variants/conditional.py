"""`v1` and `v4`: a conditional GAN whose mapping network learns attributes.

As the original trained them: labels are projected to 16 numbers each for the mapping network, whose first
layer is new; the discriminator's last layer is new and sees the labels; of both networks only the mapping and
the discriminator's last three layers train; drawn pictures get the labels of the real batch; the generator
takes up to four steps while its loss is twice the discriminator's. v4 has three attributes instead of seven
and no style mixing, which had mixed attributes of the coarse layers with those of the fine ones.

Two things are mended by default, without either of which labels are not learnt. `label_score`: the
original's discriminator added a score of the labels to one of the picture, so that no picture gained by
fitting its labels; ours has a term in which they meet (see `discriminator_with_labels`). `mapping_rate`: the
mapping network's weights count a hundredth (equalized learning rate, its multiplier), so that at the rate of
the discriminator they hardly move.

A base without a discriminator (an import that had none) gets a new one, all of which trains.
"""

from __future__ import annotations

from typing import ClassVar

from ohlora.attributes import CONDITION_NAMES
from ohlora.gan.importing import StyleGAN
from ohlora.gan.variant_face import VariantFace
from ohlora.gan.variants.adversarial import AdversarialOptions, AdversarialTraining
from ohlora.gan.variants.data import PortraitSet
from ohlora.gan.variants.method import (
    Bench,
    Method,
    base_generator,
    columns,
    discriminator_with_labels,
    with_labels,
)
from ohlora.stage import Journal
from ohlora.variants_config import VariantsConfig

LABEL_WIDTH = 16  # of the embedding of each label, which are summed


class Conditional(Method):
    """A generator with labels against a discriminator with labels."""

    controlled: ClassVar[tuple[str, ...]]
    mixes: ClassVar[bool]

    def training(self, data: PortraitSet, base: StyleGAN, config: VariantsConfig) -> AdversarialTraining:
        """The training, before its first step."""
        settings, count = config.conditional, len(self.controlled)
        generator = with_labels(base_generator(base), count, LABEL_WIDTH, config.first_layer, config.seed)
        critic = discriminator_with_labels(
            base.discriminator, base.config, count, settings.label_score, config.seed
        )
        options = AdversarialOptions(
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            r1=settings.r1,
            r1_every=settings.r1_every,
            mixing=settings.mixing if self.mixes else 0.0,
            ema=settings.ema,
            seed=config.seed,
            labels=tuple(columns(self.controlled)),
            generator_parts=("mapping",),
            discriminator_parts=None if base.discriminator is None else critic.last_layers,
            mapping_rate=config.mapping_rate,
            repeats=settings.repeats,
            decays=True,
        )
        bench: Bench = self.bench
        return AdversarialTraining(self.name, generator, critic, data, options, bench.device, bench.dtype)

    def train(
        self, data: PortraitSet, base: StyleGAN, config: VariantsConfig, journal: Journal
    ) -> VariantFace:
        training = self.training(data, base, config)
        self.run(training, config, journal)
        return self.face(training.average, data, config, control="labels", controlled=self.controlled)


class V1(Conditional):
    """All seven attributes, with style mixing."""

    name = "v1"
    controlled = CONDITION_NAMES
    mixes = True


class V4(Conditional):
    """Eyes, mouth and pose, without style mixing."""

    name = "v4"
    controlled = ("eyes", "mouth", "pose")
    mixes = False
