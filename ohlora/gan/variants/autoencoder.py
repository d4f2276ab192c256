"""`v3`: a conditional variational autoencoder whose decoder is the generator.

As the original: five convolutions and the labels make mean and log variance of a latent; the generator,
with a new label matrix of 7 x 24 and a new first mapping layer, draws it; of it only the mapping trains.
The loss has no redrawing: what the frozen property network reads (eyes, mouth, pose), what the frozen
gender classifier says, and squares of mean and log variance, which keep latents where new people are sampled.

Otherwise than there: both readers are in `eval()` and get pictures in the range they were trained on, the
cosine schedule covers the training, the mapping network has a rate of its own (`mapping_rate`), and a
redrawing term can be switched on.
"""

from __future__ import annotations

import copy
import itertools

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ohlora.attributes import CONDITION_NAMES
from ohlora.gan.importing import StyleGAN
from ohlora.gan.stylegan import StyleGenerator, update_average
from ohlora.gan.variant_face import VariantFace
from ohlora.gan.variants.data import PortraitSet
from ohlora.gan.variants.losses import (
    attribute_error,
    gender_error,
    mean_penalty,
    redrawing_error,
    variance_penalty,
)
from ohlora.gan.variants.method import Method, base_generator, columns, with_labels
from ohlora.gan.variants.readers import GenderReader, PropertyReader
from ohlora.gan.variants.training import (
    WEIGHT_DECAY,
    Training,
    average_decay,
    cosine,
    mapping_groups,
    set_rate,
)
from ohlora.stage import Journal
from ohlora.variants_config import AutoencoderConfig, VariantsConfig

LABEL_WIDTH = 24  # of the labels' embedding
READ = CONDITION_NAMES[:3]  # eyes, mouth and pose
WIDTHS = (32, 64, 128, 128, 256)  # channels after each halving
REAL, LATENTS = range(2)  # streams of randomness


class Encoder(nn.Module):
    """Portrait and labels to mean and log variance of a latent."""

    def __init__(
        self,
        resolution: int,  # of the portraits, at least 32
        labels: int,  # numbers of a label
        z_dim: int,  # length of a latent
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((3, *WIDTHS)):
            convolution = nn.Conv2d(before, after, 4, 2, 1, padding_mode="reflect")
            layers += [convolution, nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers)
        features = WIDTHS[-1] * (resolution >> len(WIDTHS)) ** 2
        self.hidden = nn.Linear(features + labels, z_dim)
        self.mean = nn.Linear(z_dim + labels, z_dim)
        self.log_variance = nn.Linear(z_dim + labels, z_dim)

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [n, 3, r, r] in [-1, 1] and z-scores [n, labels] to two of float32 [n, z_dim]."""
        x = torch.cat([self.body(images).flatten(1), labels], 1)
        x = torch.cat([F.elu(self.hidden(x)), labels], 1)
        return self.mean(x), self.log_variance(x)


class AutoencoderTraining(Training):
    """An encoder and a mapping network against two frozen readers."""

    def __init__(
        self,
        generator: StyleGenerator,
        properties: PropertyReader,
        gender: GenderReader,
        data: PortraitSet,
        settings: AutoencoderConfig,
        mapping_rate: float,  # learning rate of the mapping network's layers, in those of the labels
        seed: int,
        device: torch.device,
    ) -> None:
        super().__init__("v3", settings.steps, seed)
        self.data, self.settings, self.device = data, settings, device
        self.properties, self.gender = properties.to(device), gender.to(device)
        self.generator = generator.to(device)
        config = self.generator.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = Encoder(config.resolution, config.label_dim, config.z_dim).to(device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.modules = {"generator": self.generator, "encoder": self.encoder, "average": self.average}
        mapping = mapping_groups(self.generator, ["mapping"], mapping_rate, WEIGHT_DECAY)
        self.optimizers = {
            "generator": torch.optim.AdamW(mapping, lr=settings.learning_rate),
            "encoder": torch.optim.AdamW(self.encoder.parameters(), lr=settings.encoder_learning_rate),
        }

    def step(self) -> dict[str, float]:
        settings, read = self.settings, columns(READ)
        factor = cosine(self.step_number, self.steps)
        set_rate(self.optimizers["generator"], settings.learning_rate * factor)
        set_rate(self.optimizers["encoder"], settings.encoder_learning_rate * factor)
        batch = self.data.batch(settings.batch_size, self.rng(REAL))
        portraits, labels = batch.images.to(self.device), batch.labels.to(self.device)
        mean, log_variance = self.encoder(portraits, labels)
        noise = self.normal(LATENTS, *mean.shape).to(self.device)
        drawn = self.generator(mean + noise * (0.5 * log_variance).exp(), labels)
        terms = {
            "attributes": attribute_error(self.properties(drawn)[:, read], labels[:, read]),
            "gender": gender_error(self.gender(drawn)),
            "mean": mean_penalty(mean),
            "log_variance": variance_penalty(log_variance),
        }
        if settings.reconstruction:
            terms["reconstruction"] = redrawing_error(drawn, portraits)
        loss = total(terms, settings)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
        update_average(self.average, self.generator, average_decay(settings.ema, self.step_number))
        self.step_number += 1
        curve = {name: float(value.detach()) for name, value in terms.items()}
        return {"loss": float(loss.detach()), **curve, "rate": factor}

    @torch.no_grad()
    def latents(self, rows: np.ndarray) -> Tensor:
        """Mean latents of portraits, float32 [n, z]."""
        labels = self.data.scores(self.data.raw[rows]).to(self.device)
        return self.encoder(self.data.pixels(rows).to(self.device), labels)[0].cpu()


def total(terms: dict[str, Tensor], settings: AutoencoderConfig) -> Tensor:
    """The loss: terms in the weights of the settings; attributes weigh 1."""
    loss = terms["attributes"]
    for name, value in terms.items():
        if name != "attributes":
            loss = loss + getattr(settings, name) * value
    return loss


class V3(Method):
    """Seven labels, three of which the property network checks."""

    name = "v3"

    def training(self, data: PortraitSet, base: StyleGAN, config: VariantsConfig) -> AutoencoderTraining:
        """The training, before its first step."""
        generator = with_labels(
            base_generator(base), len(CONDITION_NAMES), LABEL_WIDTH, config.first_layer, config.seed
        )
        readers = self.properties(), self.gender()
        return AutoencoderTraining(
            generator,
            *readers,
            data,
            config.autoencoder,
            config.mapping_rate,
            config.seed,
            self.bench.device,
        )

    def train(
        self, data: PortraitSet, base: StyleGAN, config: VariantsConfig, journal: Journal
    ) -> VariantFace:
        training = self.training(data, base, config)
        self.run(training, config, journal)
        self.candidates = training.latents(data.hers[:32])
        return self.face(training.average, data, config, control="labels", controlled=CONDITION_NAMES)
