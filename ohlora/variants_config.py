"""Settings of the fine-tuning variants of the face; part of `ohlora.config`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ohlora.section import Fraction, Positive, Rate, Section


class BaseGANConfig(Section):
    """Plain StyleGAN that the variants start from, trained adversarially."""

    z_dim: Positive = 512
    w_dim: Positive = 512
    mapping_layers: Positive = 8
    fmaps_base: Positive = Field(16384, description="channels at resolution r are fmaps_base/r, capped")
    fmaps_max: Positive = 512
    steps: Positive = 25000
    growth: Fraction = Field(0.4, description="share of the steps in which the picture grows from 8 pixels")
    batch_size: Positive = 16
    learning_rate: Rate = 1e-3
    r1: float = Field(10.0, ge=0, description="weight of the penalty on the discriminator's gradients")
    r1_every: Positive = Field(16, description="steps between penalties, which weigh as much more")
    mixing: Fraction = Field(0.9, description="probability that two latents share a picture's layers")
    augment_target: Fraction = Field(
        0.6, description="adaptive augmentation keeps the discriminator this sure of real pictures; 0 is none"
    )
    augment_images: Positive = Field(
        20000, description="pictures over which its strength can change from none to full"
    )
    ema: Fraction = Field(0.999, description="decay of the averaged weights, which are the model")


class ConditionalGANConfig(Section):
    """v1 and v4: mapping network and last discriminator layers learn attributes."""

    steps: Positive = 12000
    batch_size: Positive = 16
    learning_rate: Rate = 1e-4
    r1: float = Field(10.0, ge=0, description="weight of the penalty on the discriminator's gradients")
    r1_every: Positive = 1
    mixing: Fraction = Field(0.9, description="of v1: probability that two latents share a picture's layers")
    label_score: Literal["projection", "concatenation"] = Field(
        "projection",
        description="how the discriminator scores a portrait with its labels: with a term in which they "
        "meet, or, as the original, labels beside its last layer's input, from which they cannot be learnt",
    )
    repeats: Positive = Field(4, description="most generator steps while its loss is twice the other's")
    ema: Fraction = 0.999


class GuidedConfig(Section):
    """v2: the property network says what the generator drew."""

    steps: Positive = 10000
    batch_size: Positive = 16
    learning_rate: Rate = 1e-5
    group: Positive = Field(50, description="steps between changes of how random latents and labels are")
    anneal: Fraction = Field(0.9, description="what is left of the fixed latents and labels after a group")
    patience: Positive = Field(100, description="groups without a better loss before training ends")
    anchor: float = Field(0.0, ge=0, description="weight of the styles' squared distance from the base's")
    ema: Fraction = 0.999


class AutoencoderConfig(Section):
    """v3: conditional variational autoencoder with the generator as decoder."""

    steps: Positive = 18000
    batch_size: Positive = 8
    learning_rate: Rate = Field(1e-4, description="of the mapping network")
    encoder_learning_rate: Rate = 1e-5
    gender: float = Field(1.0, ge=0, description="weight of the squared distance from a woman")
    mean: float = Field(0.2, ge=0, description="weight of the squared means of the latents")
    log_variance: float = Field(0.05, ge=0, description="weight of their squared log variances")
    reconstruction: float = Field(
        0.0, ge=0, description="weight of redrawing the portrait, which the original lacked"
    )
    ema: Fraction = 0.999


class DirectionsConfig(Section):
    """directions: normals of support-vector classifiers in the space of styles."""

    samples: int = Field(20000, ge=20, description="pictures that the property network scores")
    share: float = Field(0.15, gt=0, le=0.5, description="top and bottom of each attribute to separate")
    penalty: Annotated[float, Field(gt=0)] = Field(1.0, description="C of the classifier")
    probes: Positive = Field(64, description="styles on which the effect of a normal is measured")
    reach: Annotated[float, Field(gt=0)] = Field(
        4.0, description="largest edit along a normal, in deviations of the styles"
    )


class VariantsConfig(Section):
    """The original's ways to make a StyleGAN obey, as one stage."""

    methods: list[Literal["base", "v1", "v2", "v3", "v4", "directions"]] = Field(
        [], description="what is trained; empty trains nothing"
    )
    start: str = Field(
        "", description="folder of kind stylegan, e.g. of ohlora gan import; empty trains the base"
    )
    resolution: Literal[32, 64, 128, 256] = Field(256, description="of a base that is trained here")
    labels: Literal["truth", "network", "formulas"] = Field(
        "truth", description="attributes that win; the other fills gaps"
    )
    first_layer: Literal["new", "kept"] = Field(
        "new", description="first mapping layer of v1, v3 and v4: drawn anew, or kept beside new labels"
    )
    mapping_rate: Annotated[float, Field(gt=0)] = Field(
        100.0,
        description="learning rate of the mapping network's layers in v1 to v4, in those of the rest: its "
        "weights count a hundredth; the original had 1, at which they hardly move",
    )
    truncation: Fraction = Field(1.0, description="psi of sampled people: 0 average, 1 full variety")
    persona_candidates: Positive = Field(256, description="latents among which Oh-LoRA's is looked for")
    persona_steps: int = Field(100, ge=0, description="of refining the best one")
    snapshot_every: Positive = Field(1000, description="steps between grids of samples")
    base: BaseGANConfig = BaseGANConfig()
    conditional: ConditionalGANConfig = ConditionalGANConfig()
    guided: GuidedConfig = GuidedConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    directions: DirectionsConfig = DirectionsConfig()
    seed: int = 0
