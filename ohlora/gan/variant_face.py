"""A face made of a StyleGAN: the same surface as `Face`, whatever way attributes reach the picture.

A latent is a point of the StyleGAN's z, whose length the mapping network ignores. Its root mean square says
how far the person is from the average instead: 1 is the person, 0 the average one (truncation). The average
is that of the same labels, so that eyes, mouth and pose do not shrink with the person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from ohlora.artifacts import ArtifactError, Manifest, verify, write_manifest
from ohlora.attributes import CONDITION_NAMES, Expression
from ohlora.gan.face import IMAGE_SIZE, MOVING
from ohlora.gan.importing import load_state
from ohlora.gan.networks import Normalisation
from ohlora.gan.stylegan import StyleGANConfig, StyleGenerator

KIND = "face-variant"
GENERATOR, PEOPLE = "generator.safetensors", "people.safetensors"
PROBES = 64  # latents over which the average style of a label is taken
EDITOR = "editor."  # prefix of an editor's tensors in PEOPLE

Control = Literal["none", "labels", "directions"]


@dataclass(frozen=True)
class Editor:
    """Moves a style along normals until it shows what is asked for."""

    normals: Tensor  # unit vectors, float32 [k, w]
    response: Tensor  # change of z-score i along normal j, float32 [k, k]
    regression: Tensor  # z-scores of a style: w @ regression + intercept, float32 [w, k]
    intercept: Tensor  # float32 [k]
    limit: Tensor  # largest step along each normal, float32 [k]

    def __call__(self, w: Tensor, wanted: Tensor) -> Tensor:
        """Styles float32 [n, w] and wanted z-scores [n, k] to edited styles [n, w]."""
        missing = wanted - (w @ self.regression + self.intercept)
        steps = missing @ torch.linalg.pinv(self.response, rtol=0.02).t()
        return w + torch.minimum(torch.maximum(steps, -self.limit), self.limit) @ self.normals

    def to(self, device: torch.device | str) -> Editor:
        return Editor(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True)
class VariantPeople:
    """Who a variant knows: Oh-LoRA, and what is usual for others."""

    normalisation: Normalisation
    persona_latent: Tensor  # float32 [z], unit mean square
    persona_conditions: Tensor  # her raw mean conditions in the corpus, float32 [7]

    @property
    def conditions(self) -> Tensor:
        """Raw conditions two standard deviations below and above the mean, float32 [2, 7]."""
        scale = 2 * self.normalisation.condition_scale
        return torch.stack([self.typical - scale, self.typical + scale])

    @property
    def typical(self) -> Tensor:
        """Raw mean conditions of the corpus, float32 [7]: z-scores of 0."""
        return self.normalisation.condition_mean


class VariantFace:
    """Draws Oh-LoRA and new people under any expression."""

    def __init__(
        self,
        generator: StyleGenerator,
        people: VariantPeople,
        *,
        method: str,
        control: Control,
        controlled: Sequence[str] = (),
        editor: Editor | None = None,
        truncation: float = 1.0,
        manifest: Manifest | None = None,
        notes: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            generator: the averaged one; its labels are the z-scores of `controlled`.
            people: normalisation of conditions, and Oh-LoRA.
            method: that trained it.
            control: how conditions reach the picture.
            controlled: names of `CONDITION_NAMES` that do; the others have no effect.
            editor: of control "directions"; its normals are those of `controlled`.
            truncation: psi of sampled people.
            manifest: of a loaded folder.
            notes: what the training has to say, for the manifest's provenance.

        Raises:
            ValueError: the parts do not fit each other.
        """
        labels = len(controlled) if control == "labels" else 0
        if generator.config.label_dim != labels or (editor is None) == (control == "directions"):
            raise ValueError(
                f"control {control!r} of {len(controlled)} attributes does not fit a generator with "
                f"{generator.config.label_dim} labels and {'no' if editor is None else 'an'} editor"
            )
        self.generator = generator.eval().requires_grad_(False)
        self.people = people
        self.method, self.control, self.editor = method, control, editor
        self.controlled = tuple(controlled)
        self._columns = [CONDITION_NAMES.index(name) for name in controlled]
        self.truncation = truncation
        self.notes = notes or {}
        self._manifest = manifest
        self.device = next(generator.parameters()).device

    @classmethod
    def load(cls, folder: Path | str, device: str | torch.device = "cpu") -> VariantFace:
        """Read a model folder of kind `face-variant` after checking its hashes.

        Raises:
            ArtifactError: a file is missing or corrupt, or does not fit the settings of the manifest.
        """
        folder = Path(folder)
        manifest = verify(folder, KIND)
        settings = manifest.settings
        try:
            generator = StyleGenerator(StyleGANConfig(**settings["generator"]))
            tensors = load_file(folder / PEOPLE)
            normalisation = Normalisation(**{f.name: tensors[f.name] for f in fields(Normalisation)})
            people = VariantPeople(normalisation, tensors["persona_latent"], tensors["persona_conditions"])
            load_state(generator, load_file(folder / GENERATOR), str(folder / GENERATOR))
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "cpu"
            editor = None
            if settings["control"] == "directions":
                parts = {f.name: tensors[EDITOR + f.name] for f in fields(Editor)}
                editor = Editor(**parts).to(device)
            return cls(
                generator.to(device),
                people,
                method=str(settings["method"]),
                control=settings["control"],
                controlled=settings["controlled"],
                editor=editor,
                truncation=float(settings["truncation"]),
                manifest=manifest,
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise (
                error
                if isinstance(error, ArtifactError)
                else ArtifactError(f"{folder} does not fit its settings: {error}")
            ) from error

    @property
    def manifest(self) -> Manifest:
        """Of the folder.

        Raises:
            ValueError: the face was trained, but not saved and loaded yet.
        """
        if self._manifest is None:
            raise ValueError("a face that was not loaded from a folder has no manifest")
        return self._manifest

    @property
    def persona_latent(self) -> Tensor:
        """Oh-LoRA's latent, float32 [z]."""
        return self.people.persona_latent

    def sample_latent(self, seed: int, truncation: float | None = None) -> Tensor:
        """Draw a new person.

        Args:
            seed: names the person.
            truncation: psi: 0 is the average person, 1 the whole variety; None takes the model's.

        Returns:
            float32 [z], whose root mean square is psi.
        """
        psi = self.truncation if truncation is None else truncation
        z = torch.randn(self.generator.config.z_dim, generator=torch.Generator().manual_seed(seed))
        return psi * z / z.square().mean().sqrt()

    def conditions(self, expression: Expression, latent: Tensor | None = None) -> Tensor:
        """Raw conditions of a person under an expression, float32 [7] in the order of `CONDITION_NAMES`.

        Args:
            expression: eyes, mouth and pose.
            latent: float32 [z]; None, or hers, is Oh-LoRA with her hair and background. Others get the
                corpus's average there: the original's labels of 0.
        """
        hers = latent is None or torch.equal(latent.cpu(), self.persona_latent.cpu())
        person = self.people.persona_conditions if hers else self.people.typical
        moving = torch.tensor([expression.eyes, expression.mouth, expression.pose])
        return torch.cat([moving, person[MOVING:]])

    def styles(self, latents: Tensor, scores: Tensor) -> Tensor:
        """Styles of people under conditions.

        Args:
            latents: float32 [n, z] on the face's device.
            scores: z-scores of conditions, float32 [n, 7] on the face's device.

        Returns:
            float32 [n, w]; differentiable.
        """
        psi = latents.square().mean(1, keepdim=True).sqrt()
        wanted = scores[:, self._columns]
        labels = wanted if self.control == "labels" else None
        mapping = self.generator.mapping
        w: Tensor = mapping(latents / psi.clamp_min(1e-6), labels)
        if bool((psi < 0.999).any()):
            average = self._average(labels) if labels is not None else self.generator.truncation.w_avg
            w = average + psi.clamp_max(1.0) * (w - average)
        return w if self.editor is None else self.editor(w, wanted)

    def _average(self, labels: Tensor) -> Tensor:
        """Mean style of each label [n, k] over latents that are always the same, [n, w]."""
        z = torch.randn(PROBES, self.generator.config.z_dim, generator=torch.Generator().manual_seed(0))
        z = z.to(labels.device)
        return torch.stack([self.generator.mapping(z, row.expand(PROBES, -1)).mean(0) for row in labels])

    def pixels(self, latents: Tensor, conditions: Tensor) -> Tensor:
        """Draw portraits as a network sees them.

        Args:
            latents: float32 [n, z].
            conditions: raw, float32 [n, 7].

        Returns:
            float32 [n, 3, r, r] of the generator's resolution, about [-1, 1]; differentiable.
        """
        scores, _ = self.people.normalisation(conditions.float(), None)
        w = self.styles(latents.to(self.device), scores.to(self.device))
        layers = w[:, None].expand(-1, self.generator.config.layers, -1)
        image: Tensor = self.generator.synthesis(layers, "constant")
        return image

    @torch.inference_mode()
    def images(
        self, latents: Tensor, conditions: Tensor, nuisance: Tensor | None = None, batch_size: int = 8
    ) -> NDArray[np.uint8]:
        """Draw portraits; the same arguments give the same pictures.

        Args:
            latents: float32 [n, z].
            conditions: raw, float32 [n, 7] in the order of `CONDITION_NAMES`.
            nuisance: what a `Face` knows of pitch, roll and smile; a variant does not, and ignores it.
            batch_size: portraits drawn at once.

        Returns:
            uint8 [n, 256, 256, 3].

        Raises:
            ValueError: a shape does not fit the generator.
        """
        if conditions.shape != (len(latents), len(CONDITION_NAMES)):
            raise ValueError(
                f"conditions must be [{len(latents)}, {len(CONDITION_NAMES)}], got {tuple(conditions.shape)}"
            )
        parts = [np.empty((0, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)]
        for start in range(0, len(latents), batch_size):
            rows = slice(start, start + batch_size)
            image = self.pixels(latents[rows], conditions[rows])
            if image.shape[-1] != IMAGE_SIZE:
                shrinks = image.shape[-1] > IMAGE_SIZE
                image = F.interpolate(image, (IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", antialias=shrinks)
            parts.append(((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
        return np.ascontiguousarray(np.concatenate(parts))

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

    def with_persona(self, latent: Tensor, notes: dict[str, Any]) -> VariantFace:
        """The same face with another latent for Oh-LoRA, and a word on how it was found."""
        people = VariantPeople(
            self.people.normalisation, latent.detach().cpu(), self.people.persona_conditions
        )
        return VariantFace(
            self.generator,
            people,
            method=self.method,
            control=self.control,
            controlled=self.controlled,
            editor=self.editor,
            truncation=self.truncation,
            notes=self.notes | {"persona": notes},
        )

    def save(self, folder: Path, provenance: dict[str, Any]) -> Manifest:
        """Write a model folder; the generator's weights are stored as float16 where they fit into it."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: _compact(value) for name, value in self.generator.state_dict().items()}
        save_file(state, folder / GENERATOR)
        tensors = dict(vars(self.people.normalisation))
        tensors |= {
            "persona_latent": self.people.persona_latent,
            "persona_conditions": self.people.persona_conditions,
        }
        if self.editor is not None:
            tensors |= {EDITOR + f.name: getattr(self.editor, f.name) for f in fields(Editor)}
        save_file(
            {name: t.detach().float().cpu().contiguous() for name, t in tensors.items()}, folder / PEOPLE
        )
        settings = {
            "method": self.method,
            "control": self.control,
            "controlled": list(self.controlled),
            "generator": asdict(self.generator.config),
            "truncation": self.truncation,
        }
        return write_manifest(
            folder,
            KIND,
            files=[GENERATOR, PEOPLE],
            settings=settings,
            provenance=provenance | self.notes,
        )


def _compact(value: Tensor) -> Tensor:
    half = value.detach().half().contiguous().cpu()
    return half if bool(torch.isfinite(half).all()) else value.detach().contiguous().cpu()
