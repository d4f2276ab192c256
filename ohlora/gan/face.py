"""A trained face: the generator, the people it knows and how to draw new ones.

A person is a latent. The latents of the corpus's people are learned with the generator; a density over them,
together with what belongs to each person (hair, background), says what new people are like. Oh-LoRA's latent
is stored, so that a face model is hers without any file beside it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ohlora.artifacts import ArtifactError, Manifest, verify, write_manifest
from ohlora.attributes import CONDITION_NAMES, Expression
from ohlora.gan.identity import IdentityNetwork
from ohlora.gan.networks import Generator, GeneratorConfig, Normalisation

KIND = "face"
GENERATOR, PEOPLE, IDENTITY = "generator.safetensors", "people.safetensors", "identity.safetensors"
IMAGE_SIZE = 256  # of every picture that leaves this module, whatever the generator's resolution
MOVING = 3  # eyes, mouth and pose; the rest of the conditions belong to a person


@dataclass(frozen=True)
class People:
    """Who a face model knows, and the distribution of people."""

    numbers: Tensor  # identity numbers in the corpus, int64 [k]
    latents: Tensor  # float32 [k, z]
    mirrored: Tensor  # of their mirror images, float32 [k, z]; only a training that goes on needs them
    conditions: Tensor  # raw mean conditions of each person, float32 [k, 7]
    normalisation: Normalisation
    latent_mean: Tensor  # of the Gaussian, float32 [z]
    latent_factor: Tensor  # Cholesky factor of its covariance, float32 [z, z]
    regression: Tensor  # from a latent's offset to standardised person conditions, float32 [z, 4]
    persona: int  # row of Oh-LoRA

    @property
    def others(self) -> Tensor:
        """Latents of everybody but Oh-LoRA, and of their mirror images; hers if there is nobody else."""
        return others_of(torch.cat([self.latents, self.mirrored]), self.persona)

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the persona's row, as it is stored."""
        names = [name for name in self.__dataclass_fields__ if name not in ("persona", "normalisation")]
        tensors = {name: getattr(self, name) for name in names} | vars(self.normalisation)
        return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}

    @classmethod
    def of(cls, tensors: dict[str, Tensor], persona: int) -> People:
        """The inverse of `tensors`.

        Raises:
            KeyError: a tensor is missing.
            TypeError: a tensor is not known.
        """
        own = {name: tensors[name] for name in Normalisation.__dataclass_fields__}
        rest = {name: tensor for name, tensor in tensors.items() if name not in own}
        return cls(**rest, normalisation=Normalisation(**own), persona=persona)


def others_of(codes: Tensor, persona: int) -> Tensor:
    """Of latents [2k, z], of people and their mirror images: those of others than row `persona` of each."""
    half = len(codes) // 2
    if half == 1:
        return codes
    row = torch.arange(len(codes), device=codes.device) % half
    return codes[row != persona]


def new_people(
    mean: Tensor, factor: Tensor, known: Tensor, picked: Tensor, noise: Tensor, novelty: float
) -> Tensor:
    """Latents of new people: a known one each, moved towards the mean and away in a random direction.

    A smoothed bootstrap (Silverman and Young 1987): whatever `novelty` is, mean and covariance are those of
    the known people. At 1 this is the Gaussian, in 64 dimensions a shell on which nobody lives and all
    look alike; at 0 it is the known people themselves.

    Args:
        mean: of the people, float32 [z].
        factor: Cholesky factor of their covariance, float32 [z, z].
        known: latents to start from, float32 [k, z].
        picked: rows of `known`, int64 [n].
        noise: standard normal, float32 [n, z].
        novelty: share of the deviation that is new, 0..1.

    Returns:
        float32 [n, z].
    """
    old = torch.lerp(mean.expand_as(known[picked]), known[picked], math.sqrt(1 - novelty**2))
    return old + novelty * noise @ factor.t()


def fit_people(
    numbers: NDArray[np.integer],
    latents: Tensor,
    mirrored: Tensor,
    conditions: NDArray[np.float32],
    normalisation: Normalisation,
    persona: int,
) -> People:
    """Fit the distribution of people to learned latents.

    The covariance is shrunk towards a scaled identity by the rule of Ledoit and Wolf (2004): with fewer
    people than dimensions the sample covariance alone would be singular. What belongs to a person is
    regressed on the latent (ridge, rescaled to the variety of the corpus), so that a sampled person's hair
    colour fits the hair that its latent draws.

    Args:
        numbers: identity numbers, [k].
        latents: of the people, float32 [k, z].
        mirrored: latents of their mirror images, float32 [k, z]; people as good as any others for the
            Gaussian.
        conditions: raw mean conditions of each person, float32 [k, 7].
        normalisation: of the conditions.
        persona: row of Oh-LoRA.
    """
    z = torch.cat([latents, mirrored]).double()
    raw = torch.from_numpy(conditions.astype(np.float32))
    person = normalisation(raw, None)[0][:, MOVING:].double().repeat(2, 1)
    center = z.mean(0)
    offset = z - center
    n, d = offset.shape
    sample = offset.t() @ offset / n
    target = sample.diagonal().mean()
    spread = (sample - target * torch.eye(d)).square().sum() / d
    noise = (torch.einsum("ni,nj->nij", offset, offset) - sample).square().sum((1, 2)).sum() / (n * n * d)
    shrinkage = float((noise / spread.clamp_min(1e-12)).clamp(0.02, 1))
    covariance = (1 - shrinkage) * sample + (shrinkage * target + 1e-6) * torch.eye(d)
    ridge = n * covariance  # the shrunk covariance is the regression's prior as well
    regression = torch.linalg.solve(ridge, offset.t() @ person)
    # a regression shrinks towards the mean: stretch it, so that new people vary as known people do
    explained = torch.einsum("zc,zy,yc->c", regression, covariance, regression).sqrt()
    variety = person.std(0)
    regression = regression * (variety / explained.clamp_min(1e-6)).clamp_max(5.0)
    return People(
        numbers=torch.from_numpy(np.asarray(numbers, np.int64)),
        latents=latents.float(),
        mirrored=mirrored.float(),
        conditions=raw,
        normalisation=normalisation,
        latent_mean=center.float(),
        latent_factor=torch.linalg.cholesky(covariance).float(),
        regression=regression.float(),
        persona=persona,
    )


class Face:
    """Draws Oh-LoRA, other known people and new ones under any expression."""

    def __init__(
        self,
        generator: Generator,
        people: People,
        manifest: Manifest,
        truncation: float,
        novelty: float = 1.0,
    ) -> None:
        self.generator = generator.freeze()
        self.people = people
        self.manifest = manifest
        self.truncation = truncation
        self.novelty = novelty
        self.device = next(generator.parameters()).device

    @classmethod
    def load(cls, folder: Path | str, device: str | torch.device = "cpu") -> Face:
        """Read a model folder after checking its hashes.

        Args:
            folder: of kind `face`.
            device: where it draws; "auto" takes a GPU if there is one.

        Raises:
            ArtifactError: a file is missing or corrupt, or does not fit the settings of the manifest.
        """
        folder = Path(folder)
        manifest = verify(folder, KIND)
        try:
            generator = Generator(GeneratorConfig(**manifest.settings["generator"]))
            generator.load_state_dict(_floats(load_file(folder / GENERATOR)))
            people = People.of(load_file(folder / PEOPLE), int(manifest.settings["persona"]))
            truncation = float(manifest.settings["truncation"])
            novelty = float(manifest.settings.get("novelty", 1.0))  # models of before have a Gaussian
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"{folder} does not fit its settings: {error}") from error
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        generator = generator.to(device).to(memory_format=torch.channels_last)
        return cls(generator, people, manifest, truncation, novelty)

    @property
    def persona_latent(self) -> Tensor:
        """Oh-LoRA's latent, float32 [z]."""
        return self.people.latents[self.people.persona]

    def sample_latent(self, seed: int, truncation: float | None = None) -> Tensor:
        """Draw a new person.

        Args:
            seed: names the person.
            truncation: psi of the truncation trick: 0 is the average person, 1 the whole variety; None takes
                the model's. It scales the latent rather than the style, because the style also carries eyes,
                mouth and pose, which must not shrink.

        Returns:
            float32 [z].
        """
        psi = self.truncation if truncation is None else truncation
        people, random = self.people, torch.Generator().manual_seed(seed)
        noise = torch.randn(1, len(people.latent_mean), generator=random)
        known = people.others
        picked = torch.randint(len(known), (1,), generator=random)
        new = new_people(people.latent_mean, people.latent_factor, known, picked, noise, self.novelty)[0]
        return torch.lerp(people.latent_mean, new, psi)

    def conditions(self, expression: Expression, latent: Tensor | None = None) -> Tensor:
        """Raw conditions of a person under an expression, float32 [7] in the order of `CONDITION_NAMES`.

        Args:
            expression: eyes, mouth and pose.
            latent: float32 [z]; None is Oh-LoRA. What belongs to a known person (hair, background) is
                stored, of a new one it is what the corpus says of such latents, within the range of the
                corpus.
        """
        moving = torch.tensor([expression.eyes, expression.mouth, expression.pose])
        if latent is None:
            return torch.cat([moving, self.people.conditions[self.people.persona, MOVING:]])
        known = (self.people.latents == latent).all(1).nonzero()
        if len(known):
            return torch.cat([moving, self.people.conditions[int(known[0, 0]), MOVING:]])
        standard = (latent - self.people.latent_mean) @ self.people.regression
        scales = self.people.normalisation
        person = scales.condition_mean[MOVING:] + standard * scales.condition_scale[MOVING:]
        seen = self.people.conditions[:, MOVING:]
        return torch.cat([moving, person.clamp(seen.amin(0), seen.amax(0))])

    @torch.inference_mode()
    def images(
        self, latents: Tensor, conditions: Tensor, nuisance: Tensor | None = None, batch_size: int = 8
    ) -> NDArray[np.uint8]:
        """Draw portraits.

        Args:
            latents: float32 [n, z].
            conditions: raw, float32 [n, 7] in the order of `CONDITION_NAMES`.
            nuisance: pitch and roll in degrees and smile 0..1, float32 [n, 3] in the order of
                `NUISANCE_NAMES`; None is how Oh-LoRA usually holds herself.
            batch_size: portraits drawn at once.

        Returns:
            uint8 [n, 256, 256, 3].

        Raises:
            ValueError: a shape does not fit the generator.
        """
        if conditions.ndim != 2 or conditions.shape[1] != len(CONDITION_NAMES):
            raise ValueError(f"conditions must be [n, {len(CONDITION_NAMES)}], got {tuple(conditions.shape)}")
        normal, rest = self.people.normalisation(conditions, nuisance)
        parts = []
        for start in range(0, len(latents), batch_size):
            rows = slice(start, start + batch_size)
            image = self.generator(
                latents[rows].to(self.device),
                normal[rows].to(self.device),
                nuisance=rest[rows].to(self.device),
            )
            if image.shape[-1] != IMAGE_SIZE:
                image = F.interpolate(image, (IMAGE_SIZE, IMAGE_SIZE), mode="bicubic")
            parts.append(((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu())
        pixels: NDArray[np.uint8] = torch.cat(parts).contiguous().numpy()
        return pixels

    def render(
        self, expression: Expression, latent: Tensor | None = None, seed: int | None = None
    ) -> NDArray[np.uint8]:
        """Draw one portrait: Oh-LoRA, or the person of a latent, or the new person of a seed.

        Returns:
            uint8 [256, 256, 3].

        Raises:
            ValueError: both a latent and a seed are given, or the latent has another length.
        """
        if latent is not None and seed is not None:
            raise ValueError("give a latent or a seed, not both")
        if seed is not None:
            latent = self.sample_latent(seed)
        z = self.persona_latent if latent is None else latent
        image: NDArray[np.uint8] = self.images(z[None], self.conditions(expression, latent)[None])[0]
        return image


def save_face(
    folder: Path,
    generator: Generator,
    people: People,
    truncation: float,
    provenance: dict[str, Any],
    identity: IdentityNetwork | None = None,
    novelty: float = 1.0,
) -> Manifest:
    """Write a model folder; weights are stored as float16.

    `identity` is what held people to be the same in training: drawing does not need it, training on does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [GENERATOR, PEOPLE]
    _save_half(generator, folder / GENERATOR)
    save_file(people.tensors(), folder / PEOPLE)
    if identity is not None:
        _save_half(identity, folder / IDENTITY)
        files.append(IDENTITY)
    settings = {
        "generator": asdict(generator.config),
        "persona": people.persona,
        "truncation": truncation,
        "novelty": novelty,
    }
    return write_manifest(folder, KIND, files=files, settings=settings, provenance=provenance)


def load_identity(folder: Path | str) -> IdentityNetwork | None:
    """The identity network that a face was trained with; None if the folder has none.

    Raises:
        ArtifactError: a file is missing or corrupt.
    """
    manifest = verify(Path(folder), KIND)
    if IDENTITY not in manifest.files:
        return None
    network = IdentityNetwork()
    try:
        network.load_state_dict(_floats(load_file(Path(folder) / IDENTITY)))
    except RuntimeError as error:
        raise ArtifactError(f"{folder}: {IDENTITY} does not fit: {error}") from error
    return network.eval()


def _save_half(module: nn.Module, path: Path) -> None:
    state = {
        name: (value.half() if value.is_floating_point() else value).detach().contiguous().cpu()
        for name, value in module.state_dict().items()
    }
    save_file(state, path)


def _floats(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
