"""The face stage: distil portraits into a generator that can be told how to look.

Each person has a learned latent (GLO, Bojanowski et al. 2018, arXiv:1707.05776), which starts as principal
components of how she looks, and each portrait its conditions; the generator learns to redraw the portraits
from both. `guidance` holds sampled people to what was asked for and to themselves, and in the end a patch
discriminator may sharpen what pairs leave soft.

Notable:
- The picture grows: most steps run at half the resolution, the last ones at the full one.
- Batches are a function of (seed, step) and the state is saved every minute, so that a killed training goes
  on where it was; the checkpoint lies outside the stage's output, which DVC deletes before each run.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ohlora.attributes import CONDITION_NAMES
from ohlora.config import Config, FaceConfig, state_dir
from ohlora.corpus import Portraits
from ohlora.gan.data import MOVING, Batch, TrainingSet, conditions_of, kept_of
from ohlora.gan.discriminator import Discriminator, discriminator_loss, generator_loss, r1_penalty
from ohlora.gan.face import Face, People, fit_people, load_identity, new_people, others_of, save_face
from ohlora.gan.guidance import Guide, draw_pairs, outside_change
from ohlora.gan.identity import IdentityNetwork, IdentityTraining
from ohlora.gan.losses import psnr, reconstruction, wall_difference
from ohlora.gan.networks import Generator, GeneratorConfig
from ohlora.gan.pictures import save_grid, save_sheet
from ohlora.labeling.properties import Properties
from ohlora.stage import Journal, Report

LOG_EVERY = 20  # steps between points of a curve
LATENT_NOISE = 0.1  # of the first latents, times their spread
PEOPLE_EVERY = 100  # steps after which the distribution of people is fitted anew
R1_EVERY, R1_WEIGHT = 8, 2.0  # steps; gamma of the gradient penalty
DISCRIMINATOR_RATE = 1e-3
WALL = [CONDITION_NAMES.index(name) for name in ("background_mean", "background_std")]
IDENTITY_STEPS, IDENTITY_BATCH, IDENTITY_RESOLUTION = 300, 48, 128


@dataclass(frozen=True, slots=True)
class Device:
    """Where and how a training computes."""

    name: str  # "cpu" or "cuda"
    dtype: torch.dtype  # of convolutions

    @classmethod
    def choose(cls, config: Config) -> Device:
        """Resolve `auto`: a GPU if there is one; bfloat16 where the processor multiplies it."""
        name = config.runtime.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if config.runtime.precision != "auto":
            return cls(name, getattr(torch, config.runtime.precision))
        # measured with batches of 8 at 256²: AVX-512-BF16 is 1.3 times as fast as float32, AVX-512 slower
        fast = name == "cuda" or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return cls(name, torch.bfloat16 if fast else torch.float32)


def first_latents(looks: Tensor, length: int, spread: float) -> Tensor:
    """Latents in which people who look alike are neighbours: principal components (GLO, section 3.2).

    From random ones every person is as far from every other, and between them there is nobody but the
    average. Components are scaled by the root of their deviation, so that the first few do not drown the
    others; a little noise tells apart who looks the same.

    Args:
        looks: of each person, float32 [n, d].
        length: of a latent.
        spread: deviation of a latent's numbers.

    Returns:
        float32 [n, length].
    """
    offset = looks - looks.mean(0)
    u, s, _ = torch.linalg.svd(offset, full_matrices=False)
    kept = min(length, len(s))
    latents = torch.zeros(len(looks), length)
    latents[:, :kept] = u[:, :kept] * s[:kept].sqrt()
    latents = latents * (spread / latents.square().mean().sqrt().clamp_min(1e-8))
    return latents + LATENT_NOISE * spread * torch.randn(latents.shape)


def generator_config(config: FaceConfig) -> GeneratorConfig:
    """Shape of the generator that the settings ask for."""
    return GeneratorConfig(
        resolution=config.resolution,
        z_dim=config.z_dim,
        w_dim=config.w_dim,
        channel_base=config.channel_base,
        channel_max=config.channel_max,
        mapping_layers=config.mapping_layers,
    )


class Distillation:
    """A generator, its average over time, the latents and the optimiser; one step at a time."""

    def __init__(
        self, config: FaceConfig, data: TrainingSet, device: Device, guide: Guide | None = None
    ) -> None:
        self.config, self.data, self.device = config, data.to(device.name), device
        self.guide = guide.to(device.name) if guide else None
        # torch's layers draw their weights from the global generator: seed it inside, leave it outside as it
        # was
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            generator = Generator(generator_config(config))
            codes = first_latents(data.looks(), config.z_dim, config.latent_spread)
            discriminator = Discriminator() if config.adversarial else None
        self.generator = generator.to(device.name).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.codes = nn.Parameter(codes.to(device.name))
        groups = [{"params": list(self.generator.parameters())}, {"params": [self.codes]}]
        self.optimizer = torch.optim.Adam(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)
        self.discriminator = discriminator.to(device.name) if discriminator else None
        self.discriminator_optimizer = (
            torch.optim.Adam(self.discriminator.parameters(), DISCRIMINATOR_RATE, betas=(0.0, 0.99))
            if self.discriminator
            else None
        )
        self.step_number = 0
        self.continued = False
        self.sampler: tuple[Tensor, Tensor] | None = None  # mean and factor of the people's distribution

    def start_from(self, face: Face, numbers: NDArray[np.integer]) -> bool:
        """Continue a trained model: its weights, and its latents of people that this corpus has too.

        People it does not know start as the average person. False, and nothing changed, if its network has
        another shape than the settings ask for.

        Args:
            face: the model.
            numbers: identity number of each latent of this training.
        """
        if face.generator.config != self.generator.config:
            return False
        state = face.generator.state_dict()
        self.generator.load_state_dict(state)
        self.average.load_state_dict(state)
        known = {int(number): row for row, number in enumerate(face.people.numbers)}
        half = len(numbers)
        with torch.no_grad():
            for k, number in enumerate(numbers):
                row = known.get(int(number))
                for target, table in ((k, face.people.latents), (half + k, face.people.mirrored)):
                    self.codes[target] = face.people.latent_mean if row is None else table[row]
        self.continued = True
        return True

    def resolution(self, step: int) -> int:
        """Of the pictures of a step: quarter, half, then full; a continued model skips the quarter."""
        share = step / self.config.steps
        full = self.config.resolution
        if self.continued:
            return max(8, full // 2 if share < self.config.continued_growth else full)
        first, second = self.config.growth
        return max(8, full // 4 if share < first else full // 2 if share < second else full)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up over 50 steps, constant, cosine from the middle on; a continued model's is lower."""
        share = step / self.config.steps
        decay = 0.5 * (1 + math.cos(math.pi * (share - 0.5) / 0.5)) if share > 0.5 else 1.0
        peak = self.config.learning_rate * (self.config.continued_speed if self.continued else 1.0)
        return peak * min(1.0, (step + 1) / 50) * max(decay, 0.03)

    def step(self) -> dict[str, float]:
        """Train one batch; returns the parts of the loss."""
        config, step = self.config, self.step_number
        batch = self.data.batch(step, config.batch_size, self.resolution(step), config.seed)
        target, weights = batch.images.to(self.device.name), batch.weights.to(self.device.name)
        rate = self.learning_rate(step)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.param_groups[1]["lr"] = rate * config.latent_speed
        rng = np.random.default_rng([config.seed, step, 1])
        noise = torch.from_numpy(rng.standard_normal((len(batch.codes), config.z_dim), np.float32))
        noise *= (
            config.latent_noise * (batch.codes != self.data.persona)[:, None]
        )  # hers is to be one exact face
        codes = self.codes[batch.codes.to(self.device.name)]
        output = self._draw(self.generator, codes + noise.to(self.device.name), batch)
        parts = {"loss": reconstruction(output, target, weights, edges=config.edges)}
        loss = parts["loss"] + config.latent_prior * codes.square().mean()
        if config.walls:
            scales = self.data.normalisation.condition_scale[WALL].to(output)
            parts["walls"] = wall_difference(output, target, batch.walls, scales)
            loss = loss + config.walls * parts["walls"]
        if self.guide:
            shown = torch.lerp(target, output, (weights > 0).float())  # what is excused is as it should be
            parts["features"] = self.guide.feature_difference(shown, target)
            loss = loss + config.features * parts["features"]
            sampled = None
            if config.pairs and step >= config.guided_from * config.steps:
                sampled, guided = self._guided(rng)
                loss = loss + sum(getattr(config, name) * part for name, part in guided.items())
                parts |= guided
            if self.discriminator and step >= config.adversarial_from * config.steps:
                redrawn = output[len(output) // 2 :]
                fake = redrawn if sampled is None else torch.cat([sampled, redrawn])
                parts["discriminator"] = self._train_discriminator(target[-len(fake) :], fake.detach())
                parts["adversarial"] = generator_loss(self.discriminator(fake))
                loss = loss + config.adversarial * parts["adversarial"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.generator.parameters(), config.clip)
        self.optimizer.step()
        self.step_number += 1
        decay = min(config.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            old: list[Tensor] = list(self.average.parameters())
            torch._foreach_lerp_(old, list(self.generator.parameters()), 1 - decay)
        # read together: a GPU is waited for once a step
        curves = torch.stack([*(part.detach() for part in parts.values()), norm]).tolist()
        return dict(zip([*parts, "gradient_norm"], curves, strict=True)) | {"learning_rate": rate}

    def people(self) -> People:
        """The people as their latents are now."""
        half, codes = len(self.data.numbers), self.codes.detach().cpu()
        data = self.data
        return fit_people(
            data.numbers, codes[:half], codes[half:], data.person, data.normalisation, data.persona
        )

    def _guided(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures of sampled people and the parts of the loss that hold for them."""
        assert self.guide is not None
        name, data = self.device.name, self.data
        if self.sampler is None or self.step_number % PEOPLE_EVERY == 0:
            people = self.people()
            self.sampler = people.latent_mean, people.latent_factor
        mean, factor = self.sampler
        noise = torch.from_numpy(rng.standard_normal((self.config.pairs, self.config.z_dim), np.float32))
        known = others_of(self.codes.detach().cpu(), data.persona)
        picked = torch.from_numpy(rng.integers(len(known), size=self.config.pairs))
        z = new_people(mean, factor, known, picked, noise, self.config.novelty).repeat(2, 1)
        low, high = np.percentile(data.person[:, MOVING:], [5, 95], axis=0)
        pairs = draw_pairs(self.config.pairs, low, high, rng)
        wanted = torch.cat([pairs.first, pairs.second])
        normal, nuisance = data.normalisation(wanted, None)
        with torch.autocast(name, self.device.dtype, enabled=self.device.dtype != torch.float32):
            size = self.resolution(self.step_number)
            images = self.generator(z.to(name), normal.to(name), size, nuisance.to(name)).float()
        first, second = images.chunk(2)
        parts: dict[str, Tensor] = {}
        if self.config.obedience:
            parts["obedience"] = self.guide.obedience(images, wanted.to(name))
        if self.config.colours:
            parts["colours"] = self.guide.colours(images, wanted.to(name))
        if self.config.same_person:
            parts["same_person"] = self.guide.strangeness(first, second)
        still = pairs.still.to(name)
        if still.any():
            parts["same_place"] = outside_change(first[still], second[still])
        return images, parts

    def _train_discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        assert self.discriminator is not None
        assert self.discriminator_optimizer is not None
        loss = discriminator_loss(self.discriminator(real), self.discriminator(fake))
        total = loss
        if self.step_number % R1_EVERY == 0:
            total = loss + R1_EVERY * R1_WEIGHT / 2 * r1_penalty(self.discriminator, real)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.discriminator_optimizer.step()
        return loss

    def _draw(self, generator: Generator, z: Tensor, batch: Batch) -> Tensor:
        name = self.device.name
        with torch.autocast(name, self.device.dtype, enabled=self.device.dtype != torch.float32):
            image = generator(z, batch.conditions.to(name), batch.images.shape[-1], batch.nuisance.to(name))
        return image.float()

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """PSNR in dB and L1 in grey levels of the averaged generator on the persona's held-out portraits."""
        batch = self.data.judged(self.resolution(self.step_number - 1))
        if not len(batch.codes):
            return {}
        codes = self.codes[batch.codes.to(self.device.name)]
        output = self._draw(self.average, codes, batch).clamp(-1, 1)
        return {
            "held_out_psnr": float(psnr(output, batch.images).mean()),
            "held_out_l1": float((output - batch.images).abs().mean() * 127.5),
        }

    def save(self, path: Path) -> None:
        """Write the whole state at once: a kill leaves the old file or the new one."""
        tensors = {f"generator.{k}": v for k, v in self.generator.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        tensors["codes"] = self.codes.detach()
        if self.sampler is not None:
            tensors |= dict(zip(("sampler.mean", "sampler.factor"), self.sampler, strict=True))
        if self.discriminator and self.discriminator_optimizer:
            tensors |= {f"discriminator.{k}": v for k, v in self.discriminator.state_dict().items()}
            moments = self.discriminator_optimizer.state_dict()["state"]
            tensors |= {f"opponent.{i}.{k}": v for i, state in moments.items() for k, v in state.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".tmp")
        metadata = {"step": json.dumps(self.step_number)}
        save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, draft, metadata)
        draft.replace(path)

    def resume(self, path: Path) -> bool:
        """Go on from a checkpoint; False, and nothing changed, if there is none that fits."""
        if not path.is_file():
            return False
        try:
            with safe_open(path, "pt") as f:
                step = int((f.metadata() or {})["step"])
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, KeyError, ValueError):
            return False
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        codes = tensors.pop("codes", None)
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        own = {k: v.shape for k, v in self.generator.state_dict().items()}
        if (
            codes is None
            or codes.shape != self.codes.shape
            or own != {k: v.shape for k, v in parts["generator"].items()}
        ):
            return False
        self.generator.load_state_dict(parts["generator"])
        self.average.load_state_dict(parts["average"])
        self.codes.data.copy_(codes)
        _restore(self.optimizer, parts["optimizer"])
        if parts["sampler"]:
            self.sampler = parts["sampler"]["mean"], parts["sampler"]["factor"]
        if self.discriminator and self.discriminator_optimizer and parts["discriminator"]:
            self.discriminator.load_state_dict(parts["discriminator"])
            _restore(self.discriminator_optimizer, parts["opponent"])
        self.step_number = step
        return True


def _restore(optimizer: torch.optim.Optimizer, stored: dict[str, Tensor]) -> None:
    """Give an optimiser its moments back, named `index.key`."""
    state = optimizer.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}
    parameters = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    for name, tensor in stored.items():
        index, _, key = name.partition(".")
        if tensor.ndim:  # the fused step walks memory: moments must lie there as their parameter does
            tensor = torch.empty_like(parameters[int(index)]).copy_(tensor)
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})


def train_identity(data: TrainingSet, seed: int, journal: Journal) -> IdentityNetwork:
    """A network that tells the people of a training set apart."""
    training = IdentityTraining(len(data.numbers), seed, data.device)
    images = data.at(min(IDENTITY_RESOLUTION, data.full_resolution))[0]
    rng = np.random.default_rng([seed, 2])
    for _ in journal.progress(range(IDENTITY_STEPS), "face: telling people apart"):
        # people first: Oh-LoRA has more portraits than anybody
        people = rng.integers(len(data.numbers), size=IDENTITY_BATCH)
        rows = torch.from_numpy(np.array([rng.choice(data.rows_of(int(person))) for person in people]))
        seen = images[rows.to(data.device)].float() / 127.5 - 1
        training.step(seen, torch.from_numpy(people).to(data.device))
    return training.network.eval()


def fingerprint(
    config: FaceConfig, portraits: Portraits, conditions: NDArray[np.float32], start: str = ""
) -> str:
    """Names a training: the same settings and start on the same data continue the same checkpoint."""
    digest = hashlib.sha256((config.model_dump_json() + start).encode())
    for array in (portraits.images, portraits.masks, portraits.identity, conditions):
        if array is not None:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def run_distillation(
    distillation: Distillation, journal: Journal, checkpoint: Path | None = None, save_every_s: float = 60.0
) -> float:
    """Train to the last step; returns seconds."""
    started = saved = time.monotonic()
    steps = distillation.config.steps
    window: list[dict[str, float]] = []
    for _ in journal.progress(range(distillation.step_number, steps), "face: distilling portraits"):
        window.append(distillation.step())
        number = distillation.step_number
        if number % LOG_EVERY == 0 or number == steps:
            keys = dict.fromkeys(key for row in window for key in row)  # some parts join in later
            curve = {key: float(np.mean([row[key] for row in window if key in row])) for key in keys}
            curve["resolution"] = float(distillation.resolution(number - 1))
            if number % (10 * LOG_EVERY) == 0 or number == steps:
                curve |= distillation.judge()
            journal.log(number, **curve)
            window.clear()
        if checkpoint is not None and time.monotonic() - saved > save_every_s:
            distillation.save(checkpoint)
            saved = time.monotonic()
    return time.monotonic() - started


def train(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """The face stage.

    Raises:
        CorpusUnusable: the corpus has no usable portrait.
    """
    torch.set_num_threads(config.runtime.threads or torch.get_num_threads())
    folder = outputs["output"]
    folder.mkdir(parents=True, exist_ok=True)
    portraits = Portraits.load(inputs["corpus"])
    conditions = conditions_of(portraits, inputs.get("labels"), config.face.labels)
    kept = kept_of(portraits, inputs.get("labels"))
    data = TrainingSet(portraits, conditions, config.face.persona_share, kept, config.face.repainted)
    identity, properties = None, inputs.get("properties")
    if properties is not None:
        identity = (load_identity(config.face.start) if config.face.start else None) or train_identity(
            data, config.face.seed, journal
        )
    guide = Guide(Properties.load(properties, "cpu").network, identity) if properties and identity else None
    distillation = Distillation(config.face, data, Device.choose(config), guide)
    notes = [
        f"{len(data.rows)} portraits of {len(data.numbers)} people, {len(data.hers)} of them Oh-LoRA's; "
        f"{len(data.held_rows)} of hers kept apart."
    ]
    start = ""
    if config.face.start:
        face = Face.load(config.face.start)
        if distillation.start_from(face, data.numbers):
            start = face.manifest.digest
            notes.append(f"Continued from {config.face.start}, digest {start[:12]}.")
        else:
            notes.append(f"{config.face.start} has another shape than the settings: started from scratch.")
    name = fingerprint(config.face, portraits, conditions, start)
    checkpoint = state_dir(config, Path()) / "checkpoints" / "face" / name / "state.safetensors"
    resumed = distillation.resume(checkpoint)
    first = distillation.step_number
    seconds = run_distillation(distillation, journal, checkpoint)
    people = distillation.people()
    provenance = {
        "profile": config.profile,
        "steps": config.face.steps,
        "batch_size": config.face.batch_size,
        "seed": config.face.seed,
        "portraits": len(data.rows),
        "people": len(data.numbers),
        "training": name,
        "start": start,
        "labels": config.face.labels,
        "licence": "Apache-2.0",
    }
    save_face(
        folder,
        distillation.average.cpu(),
        people,
        config.face.truncation,
        provenance,
        identity,
        config.face.novelty,
    )
    face = Face.load(folder)
    save_sheet(face, folder / "sheet.png")
    save_held_out(face, data, portraits, folder / "held_out.png")
    metrics = distillation_metrics(face, data, portraits) | {"seconds": seconds}
    checkpoint.unlink(missing_ok=True)
    if resumed:
        notes.append(f"Resumed at step {first} from a checkpoint.")
    pictures = {"Oh-LoRA and sampled people: eyes, mouth, yaw": "sheet.png"}
    if len(data.held_rows):
        pictures["Held-out renders (top) and their redrawing"] = "held_out.png"
    else:
        notes.append("The corpus has too few portraits of Oh-LoRA to keep any apart; raise corpus.limit.")
    return Report(
        metrics=metrics,
        pictures=pictures,
        notes=notes,
    )


def redraw(face: Face, data: TrainingSet) -> NDArray[np.uint8]:
    """The persona's held-out portraits as the model draws them, uint8 [n, 256, 256, 3]."""
    conditions = torch.from_numpy(data.raw[data.held_rows])
    nuisance = torch.from_numpy(data.raw_nuisance[data.held_rows])
    return face.images(face.persona_latent.expand(len(conditions), -1), conditions, nuisance)


def save_held_out(face: Face, data: TrainingSet, portraits: Portraits, path: Path) -> None:
    """Renders that the generator never saw above its redrawing of them."""
    if len(data.held_rows):
        save_grid([portraits.images[data.held_rows], redraw(face, data)], path, 192)


def distillation_metrics(face: Face, data: TrainingSet, portraits: Portraits) -> dict[str, float]:
    """PSNR in dB and L1 in grey levels of the stored model on the persona's held-out renders."""
    if not len(data.held_rows):
        return {}
    drawn = redraw(face, data).astype(np.float64)
    truth = portraits.images[data.held_rows].astype(np.float64)
    error = ((drawn - truth) ** 2).mean((1, 2, 3))
    return {
        "persona_psnr": float((10 * np.log10(255**2 / error)).mean()),
        "persona_l1": float(np.abs(drawn - truth).mean()),
    }
