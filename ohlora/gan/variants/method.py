"""The interface of the variants: a base StyleGAN and portraits go in, a face that obeys comes out."""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from ohlora.attributes import CONDITION_NAMES
from ohlora.errors import UserError
from ohlora.gan.importing import StyleGAN
from ohlora.gan.stylegan import StyleDiscriminator, StyleGANConfig, StyleGenerator
from ohlora.gan.variant_face import Control, Editor, VariantFace, VariantPeople
from ohlora.gan.variants.data import PortraitSet
from ohlora.gan.variants.readers import GenderReader, PropertyReader
from ohlora.gan.variants.training import Training, run_training
from ohlora.stage import Journal
from ohlora.variants_config import VariantsConfig

KEPT_LABELS = 0.1  # deviation of a kept first layer's weights for labels, of those that a new one has


class VariantUnusable(UserError, ValueError):
    """A variant cannot be trained from what there is; the message says what is missing."""


@dataclass(frozen=True)
class Bench:
    """What a method works with beside portraits and base."""

    device: torch.device
    dtype: torch.dtype = torch.float32  # of the convolutions of adversarial training
    properties: PropertyReader | None = None
    gender: GenderReader | None = None
    checkpoints: Path | None = None  # folder; None saves nothing
    pictures: Path | None = None  # folder of grids of samples; None draws none

    def checkpoint(self, name: str) -> Path | None:
        """Where the training of a method leaves its state."""
        return None if self.checkpoints is None else self.checkpoints / f"{name}.safetensors"


class Method(ABC):
    """One way to make a StyleGAN obey."""

    name: ClassVar[str]

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.seconds = 0.0  # that training took here
        self.candidates: torch.Tensor | None = None  # latents that may be Oh-LoRA's, float32 [n, z]

    @abstractmethod
    def train(
        self, data: PortraitSet, base: StyleGAN, config: VariantsConfig, journal: Journal
    ) -> VariantFace:
        """Make a face. The base is not changed.

        Args:
            data: portraits and their attributes.
            base: unconditional generator and, where there is one, discriminator.
            config: the section; each method has a part of it.
            journal: takes curves as `NAME_...` and shows progress.

        Raises:
            VariantUnusable: a network is missing, or the base does not fit.
            TrainingDiverged: a loss is not finite.
        """

    def run(self, training: Training, config: VariantsConfig, journal: Journal) -> None:
        """Train to the end, from the checkpoint if there is one."""
        self.seconds = run_training(
            training,
            journal,
            self.bench.checkpoint(self.name),
            pictures=self.bench.pictures,
            every=config.snapshot_every,
        )

    def properties(self) -> PropertyReader:
        """
        Raises:
            VariantUnusable: there is none.
        """
        if self.bench.properties is None:
            raise VariantUnusable(f"variant {self.name} needs the property network: ohlora stage properties")
        return self.bench.properties

    def gender(self) -> GenderReader:
        """
        Raises:
            VariantUnusable: there is none.
        """
        if self.bench.gender is None:
            raise VariantUnusable(f"variant {self.name} needs the gender classifier: ohlora stage filters")
        return self.bench.gender

    def face(
        self,
        generator: StyleGenerator,
        data: PortraitSet,
        config: VariantsConfig,
        *,
        control: Control,
        controlled: tuple[str, ...] = (),
        editor: Editor | None = None,
        notes: dict[str, Any] | None = None,
    ) -> VariantFace:
        """A face whose Oh-LoRA is not looked for yet: her latent is a random one."""
        z = torch.randn(generator.config.z_dim, generator=torch.Generator().manual_seed(config.seed))
        people = VariantPeople(
            data.normalisation,
            persona_latent=z / z.square().mean().sqrt(),
            persona_conditions=torch.from_numpy(data.raw[data.hers].mean(0)).float(),
        )
        return VariantFace(
            generator,
            people,
            method=self.name,
            control=control,
            controlled=controlled,
            editor=editor,
            truncation=config.truncation,
            notes=notes,
        )


def columns(names: tuple[str, ...]) -> list[int]:
    """Positions of attributes in a row of conditions."""
    return [CONDITION_NAMES.index(name) for name in names]


def base_generator(base: StyleGAN) -> StyleGenerator:
    """A copy of the base's generator.

    Raises:
        VariantUnusable: there is none, or it has labels already.
    """
    if base.generator is None:
        raise VariantUnusable(
            "the base has no generator; import one with: ohlora gan import FILE --out FOLDER"
        )
    if base.config.label_dim:
        raise VariantUnusable(f"the base takes {base.config.label_dim} labels; variants start without any")
    return copy.deepcopy(base.generator)


@torch.no_grad()
def with_labels(
    generator: StyleGenerator, labels: int, width: int, first_layer: Literal["new", "kept"], seed: int
) -> StyleGenerator:
    """A generator that takes labels beside its latents.

    Only the first mapping layer and the labels' embedding are new. `new` draws the layer's weights, as the
    original did, which makes other people of all latents; `kept` keeps those of the latent, so that a label
    of 0 changes nothing, and draws the labels' small.

    Args:
        generator: unconditional.
        labels: numbers of a label.
        width: length of its embedding.
        first_layer: what becomes of the first mapping layer.
        seed: of new weights.
    """
    config = dataclasses.replace(generator.config, label_dim=labels, label_width=width)
    source = torch.Generator().manual_seed(seed)
    wide = _built(StyleGenerator, config, seed)
    old = generator.state_dict()
    own = wide.state_dict()
    for name, value in old.items():
        if own[name].shape == value.shape:
            own[name].copy_(value)
    own["mapping.label_weight"].copy_(torch.randn(labels, width, generator=source))
    name = "mapping.dense0.weight"
    fresh = torch.randn(own[name].shape, generator=source) / config.mapping_lr
    if first_layer == "kept":
        # the layer's gain falls with the length of the input as much as the input's norm lets it grow
        fresh[:, : config.z_dim] = old[name]
        fresh[:, config.z_dim :] *= KEPT_LABELS
    else:
        own["mapping.dense0.bias"].zero_()
    own[name].copy_(fresh)
    return wide


@torch.no_grad()
def discriminator_with_labels(
    discriminator: StyleDiscriminator | None,
    config: StyleGANConfig,
    labels: int,
    form: Literal["projection", "concatenation"],
    seed: int,
) -> StyleDiscriminator:
    """A discriminator that scores portraits together with labels; its last layer is new.

    The layer is linear. Labels beside its input (`concatenation`, the original's way) add a number that is
    the same for all portraits: two portraits' scores differ as much under one label as under another, so
    that the generator gains nothing by obeying. `projection` has a score for each number of the label, which
    the label weighs (Miyato and Koyama 2018, arXiv:1802.05637, section 3).

    Args:
        discriminator: unconditional; None makes a new one.
        config: of the base.
        labels: numbers of a label.
        form: how portrait and label meet.
        seed: of new weights.
    """
    group = config.group_size if discriminator is None else discriminator.config.group_size
    shape = dataclasses.replace(
        config,
        label_dim=labels,
        label_concat=form == "concatenation",
        label_projection=form == "projection",
        group_size=group,
    )
    wide = _built(StyleDiscriminator, shape, seed)
    if discriminator is not None:
        own = wide.state_dict()
        for name, value in discriminator.state_dict().items():
            if own[name].shape == value.shape and not name.startswith(wide.last_layers[2]):
                own[name].copy_(value)
    return wide


def _built(network: Any, config: StyleGANConfig, seed: int) -> Any:
    """A network with weights of a seed; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network(config)


def new_stylegan(config: StyleGANConfig, seed: int) -> StyleGAN:
    """Untrained networks of a shape."""
    return StyleGAN(
        config, _built(StyleGenerator, config, seed), _built(StyleDiscriminator, config, seed + 1)
    )
