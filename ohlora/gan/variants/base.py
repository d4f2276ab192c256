"""`base`: the plain StyleGAN, trained on our portraits or imported. It obeys nothing."""

from __future__ import annotations

from pathlib import Path

from ohlora.gan.importing import StyleGAN, load_stylegan, save_stylegan
from ohlora.gan.stylegan import StyleGANConfig
from ohlora.gan.variant_face import VariantFace
from ohlora.gan.variants.adversarial import AdversarialOptions, AdversarialTraining
from ohlora.gan.variants.data import PortraitSet
from ohlora.gan.variants.method import Bench, Method, VariantUnusable, base_generator, new_stylegan
from ohlora.gan.variants.training import run_training
from ohlora.stage import Journal
from ohlora.variants_config import VariantsConfig

NAME = "base"


def shape_of(config: VariantsConfig) -> StyleGANConfig:
    """Of a base that is trained here."""
    base = config.base
    return StyleGANConfig(
        resolution=config.resolution,
        z_dim=base.z_dim,
        w_dim=base.w_dim,
        mapping_layers=base.mapping_layers,
        mapping_fmaps=base.w_dim,
        fmaps_base=base.fmaps_base,
        fmaps_max=base.fmaps_max,
    )


def find_base(config: VariantsConfig) -> StyleGAN | None:
    """The imported StyleGAN that `variants.start` names; None if the base is to be trained.

    Raises:
        ArtifactError: the folder is missing or corrupt.
        VariantUnusable: it holds no generator, or one with labels.
    """
    if not config.start:
        return None
    base = load_stylegan(Path(config.start))
    base_generator(base)
    return base


def adversarial(
    config: VariantsConfig, networks: StyleGAN, data: PortraitSet, bench: Bench
) -> AdversarialTraining:
    """Training of the base from untrained networks.

    Raises:
        VariantUnusable: a network is missing.
    """
    if networks.generator is None or networks.discriminator is None:
        raise VariantUnusable("training a base takes a generator and a discriminator")
    base = config.base
    options = AdversarialOptions(
        steps=base.steps,
        batch_size=base.batch_size,
        learning_rate=base.learning_rate,
        r1=base.r1,
        r1_every=base.r1_every,
        mixing=base.mixing,
        ema=base.ema,
        seed=config.seed,
        growth=base.growth,
        augment_target=base.augment_target,
        augment_images=base.augment_images,
        noise="random",
    )
    return AdversarialTraining(
        NAME, networks.generator, networks.discriminator, data, options, bench.device, bench.dtype
    )


def train_base(
    data: PortraitSet, config: VariantsConfig, bench: Bench, journal: Journal
) -> tuple[StyleGAN, float]:
    """Train the StyleGAN that all variants start from; returns it on the CPU, and seconds.

    Raises:
        TrainingDiverged: a loss is not finite.
    """
    training = adversarial(config, new_stylegan(shape_of(config), config.seed), data, bench)
    seconds = run_training(
        training, journal, bench.checkpoint(NAME), pictures=bench.pictures, every=config.snapshot_every
    )
    generator, critic = training.average.cpu(), training.discriminator.cpu().eval()
    for network in (generator.synthesis, critic):
        network.lod.zero_()
    return StyleGAN(generator.config, generator, critic), seconds


def save_base(folder: Path, base: StyleGAN, config: VariantsConfig) -> None:
    """Write a trained base as a folder of kind `stylegan`, which `variants.start` may name."""
    provenance = {"steps": config.base.steps, "seed": config.seed, "licence": "Apache-2.0"}
    save_stylegan(folder, base, provenance)


class Base(Method):
    """The base as a face: people of all kinds, none of whom obeys."""

    name = NAME

    def train(
        self, data: PortraitSet, base: StyleGAN, config: VariantsConfig, journal: Journal
    ) -> VariantFace:
        generator = base_generator(base).to(self.bench.device)
        return self.face(generator, data, config, control="none")
