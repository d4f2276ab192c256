"""Stage `judge`: the independent judge of the face generator's attributes and identity.

Notable: it shares no code, weights, seed, architecture or training data with what it judges. The original
project scored its generator with the very network that the generator had been optimised against; here the
judge learns from the identities that every other model holds out, and is itself judged on the others; a test
makes sure that no module of `ohlora.gan` or `ohlora.labeling` imports this one. It sees the whole portrait
coarsely and eyes and mouth finely, and learns from the renderer's truth under strong changes of light,
sharpness, noise and background.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ohlora.artifacts import ArtifactError, verify, write_manifest
from ohlora.attributes import FaceClass
from ohlora.config import Config, JudgeConfig
from ohlora.corpus.portraits import PERSONA_IDENTITY, Portraits
from ohlora.stage import Journal, Report

KIND = "judge"
WEIGHTS = "judge.safetensors"
SCATTER = "judge.png"

TARGETS = (
    "eyes",
    "mouth",
    "pose",
    "gender",
    "hair_color",
    "hair_length",
    "background_mean",
    "background_std",
)
WEIGHT_OF = {"eyes": 2.0, "mouth": 2.0, "pose": 2.0}  # what the generator's gate looks at
LIMITS = {"eyes": (0.0, 1.0), "mouth": (0.0, 1.0), "gender": (0.0, 1.0)}

EYES_BOX = (0.18, 0.28, 0.82, 0.52)  # left, top, right, bottom, of the image; for yaws within 30 degrees
MOUTH_BOX = (0.22, 0.59, 0.78, 0.98)
EMBEDDING = 64
COSINE_SCALE = 16.0  # of the identity logits
IDENTITY_WEIGHT = 0.3
LOG_EVERY = 10  # steps
JUDGE_BATCH = 32


@dataclass(frozen=True)
class Views:
    """What the judge sees of a batch of images, float32 in [-1, 1]."""

    whole: Tensor  # [n, 3, r, r]
    eyes: Tensor  # [n, 3, 3r/8, r]
    mouth: Tensor  # [n, 3, r/2, 3r/4]

    def to(self, device: torch.device) -> Views:
        return Views(self.whole.to(device), self.eyes.to(device), self.mouth.to(device))


def _stage(inputs: int, outputs: int, stride: int = 2) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
    )


class JudgeNetwork(nn.Module):
    """Three plain convolutional branches, one linear head per attribute, one embedding."""

    def __init__(
        self,
        resolution: int,  # pixels of the whole view; crops are seen twice as fine
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.whole = nn.Sequential(
            _stage(3, 24),
            _stage(24, 48),
            _stage(48, 48, 1),
            _stage(48, 96),
            _stage(96, 128),
            _stage(128, 160),
        )
        self.eyes = nn.Sequential(_stage(3, 20), _stage(20, 40), _stage(40, 64), _stage(64, 96))
        self.mouth = nn.Sequential(_stage(3, 20), _stage(20, 40), _stage(40, 64), _stage(64, 96))
        self.whole_features = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.LazyLinear(192), nn.SiLU())
        self.eyes_features = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.LazyLinear(96), nn.SiLU())
        self.mouth_features = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.LazyLinear(96), nn.SiLU())
        self.heads = nn.ModuleDict(
            {name: nn.Linear(192 + (96 if name in ("eyes", "mouth") else 0), 1) for name in TARGETS}
        )
        self.embedding = nn.Linear(192, EMBEDDING)
        with torch.no_grad():  # a first look gives the lazy layers their sizes
            self.eval()(look(torch.zeros(1, 3, 2 * resolution, 2 * resolution), resolution))

    def forward(self, views: Views) -> tuple[Tensor, Tensor]:
        """Standardised attributes [n, len(TARGETS)] and embeddings [n, EMBEDDING] of length 1."""
        assert views.whole.shape[2:] == (self.resolution, self.resolution), views.whole.shape
        whole = self.whole_features(self.whole(views.whole))
        near = {
            "eyes": self.eyes_features(self.eyes(views.eyes)),
            "mouth": self.mouth_features(self.mouth(views.mouth)),
        }
        scores = [
            head(torch.cat([whole, near[name]], 1) if name in near else whole)
            for name, head in self.heads.items()
        ]
        return torch.cat(scores, 1), F.normalize(self.embedding(whole), dim=1)


def look(images: Tensor, resolution: int, moves: Tensor | None = None) -> Views:
    """Cut the three views out of images float32 [n, 3, 2r, 2r].

    Args:
        images: in [-1, 1].
        resolution: r.
        moves: [n, 2, 3] affine maps from output to input coordinates in [-1, 1]; None is the identity.
    """
    if moves is None:
        moves = torch.eye(2, 3).expand(len(images), 2, 3)
    coarse = F.avg_pool2d(images, 2)
    return Views(
        whole=_cut(coarse, moves, (0.0, 0.0, 1.0, 1.0), resolution, resolution),
        eyes=_cut(images, moves, EYES_BOX, resolution * 3 // 8, resolution),
        mouth=_cut(images, moves, MOUTH_BOX, resolution // 2, resolution * 3 // 4),
    )


def _cut(images: Tensor, moves: Tensor, box: tuple[float, ...], height: int, width: int) -> Tensor:
    left, top, right, bottom = (2 * edge - 1 for edge in box)
    inside = torch.tensor(
        [
            [(right - left) / 2, 0.0, (right + left) / 2],
            [0.0, (bottom - top) / 2, (bottom + top) / 2],
            [0.0, 0.0, 1.0],
        ]
    )
    grid = F.affine_grid(moves @ inside, [len(images), 3, height, width], align_corners=False)
    return F.grid_sample(images, grid.to(images.device), padding_mode="border", align_corners=False)


def fine_images(images: NDArray[np.uint8], resolution: int) -> Tensor:
    """Images uint8 [n, h, w, 3] -> float32 [n, 3, 2r, 2r] in [-1, 1], antialiased."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    size = (2 * resolution, 2 * resolution)
    if pixels.shape[2:] == size:
        return pixels
    return F.interpolate(pixels, size, mode="bilinear", antialias=True).clamp(-1, 1)


class Judge:
    """A trained judge, always in `eval()`."""

    def __init__(
        self,
        network: JudgeNetwork,
        scales: dict[str, list[float]],
        people: Iterable[int] = (),
        digest: str = "",
    ) -> None:
        self.network = network.eval()
        self.scales = scales  # attribute -> [mean, standard deviation] of the standardised outputs
        self.people = tuple(people)  # identities that it was trained on
        self.digest = digest  # of the manifest

    @classmethod
    def load(cls, folder: Path, device: str = "auto") -> Judge:
        """Load a model folder of kind `judge`.

        Raises:
            ArtifactError: a file is missing or corrupt, or the weights are of another network.
        """
        manifest = verify(folder, KIND)
        try:
            network = JudgeNetwork(manifest.settings["resolution"])
            stored = load_file(folder / WEIGHTS)
            network.load_state_dict(
                {name: w.float() if w.is_floating_point() else w for name, w in stored.items()}
            )
            scales = {name: list(manifest.settings["scales"][name]) for name in TARGETS}
            people = [int(number) for number in manifest.settings["people"]]
        except (KeyError, TypeError, RuntimeError) as error:
            raise ArtifactError(f"{folder}: settings or weights do not make a judge: {error}") from error
        return cls(network.to(_device(device)), scales, people, manifest.digest)

    def attributes(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """What images uint8 [n, h, w, 3] show: `TARGETS` -> float32 [n] in the units of `Attributes`.

        Raises:
            ValueError: not an array of RGB images.
        """
        standardised, _ = self._see(images)
        answer = {}
        for i, name in enumerate(TARGETS):
            mean, std = self.scales[name]
            low, high = LIMITS.get(name, (-math.inf, math.inf))
            answer[name] = np.clip(standardised[:, i] * std + mean, low, high).astype(np.float32)
        return answer

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Identity of images uint8 [n, h, w, 3]: float32 [n, d] of length 1; the cosine says how alike.

        It covers face, hair and clothes; backgrounds were changed at random in training.

        Raises:
            ValueError: not an array of RGB images.
        """
        return self._see(images)[1]

    @torch.no_grad()
    def _see(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise ValueError(f"images must be uint8 [n, h, w, 3], got {images.dtype} {images.shape}")
        self.network.eval()
        device = next(self.network.parameters()).device
        scores = np.empty((len(images), len(TARGETS)), np.float32)
        embeddings = np.empty((len(images), EMBEDDING), np.float32)
        for start in range(0, len(images), JUDGE_BATCH):
            rows = slice(start, start + JUDGE_BATCH)
            views = look(fine_images(images[rows], self.network.resolution), self.network.resolution)
            score, embedding = self.network(views.to(device))
            scores[rows], embeddings[rows] = score.float().cpu().numpy(), embedding.float().cpu().numpy()
        return scores, embeddings


# --- training -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Examples:
    """Portraits as tensors."""

    images: Tensor  # uint8 [n, 3, 2r, 2r]
    behind: Tensor  # bool [n, 2r, 2r], where the background is
    truth: Tensor  # float32 [n, len(TARGETS)], NaN is unknown
    identity: Tensor  # int64 [n], 0..identities-1
    people: tuple[int, ...]  # identity number of each of them


def examples(portraits: Portraits, resolution: int) -> Examples:
    """Portraits at twice the judge's resolution."""
    fine = fine_images(portraits.images, resolution)
    masks = torch.from_numpy(portraits.masks)[:, None].float()
    nearest = F.interpolate(masks, fine.shape[2:], mode="nearest-exact")[:, 0]
    people, identity = np.unique(portraits.identity, return_inverse=True)
    return Examples(
        images=((fine + 1) * 127.5).round().to(torch.uint8),
        behind=nearest == FaceClass.BACKGROUND,
        truth=torch.from_numpy(np.stack([portraits.truth[name] for name in TARGETS], 1)),
        identity=torch.from_numpy(identity.astype(np.int64)),
        people=tuple(people.tolist()),
    )


def disturb(
    images: Tensor, behind: Tensor, truth: Tensor, resolution: int, generator: torch.Generator
) -> tuple[Views, Tensor]:
    """Change backgrounds, light, colour, place, sharpness and noise, and the truth with them.

    Args:
        images: float32 [n, 3, 2r, 2r] in [-1, 1].
        behind: bool [n, 2r, 2r].
        truth: float32 [n, len(TARGETS)].
        resolution: r.
        generator: all randomness comes from it.

    Returns:
        The views and the truth of what they show.
    """
    n = len(images)
    truth = truth.clone()

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    fresh = F.interpolate(
        uniform(-0.9, 0.9, 3, 1, 1) + uniform(0, 0.3, 1, 1, 1) * torch.randn(n, 3, 3, 3, generator=generator),
        images.shape[2:],
        mode="bilinear",
    ).clamp(-1, 1)
    replaced = uniform(0, 1) < 0.6
    images = torch.where(replaced[:, None, None, None] & behind[:, None], fresh, images)
    upper = slice(0, images.shape[2] // 2)
    gray, where = images[:, :, upper].mean(1), behind[:, upper].float()
    area = where.sum((1, 2))
    mean = (gray * where).sum((1, 2)) / area.clamp(min=1)
    variance = (((gray - mean[:, None, None]) * where) ** 2).sum((1, 2)) / area.clamp(min=1)
    mean_at, std_at = TARGETS.index("background_mean"), TARGETS.index("background_std")
    changed = replaced & (area > 0)
    truth[:, mean_at] = torch.where(changed, (mean + 1) * 127.5, truth[:, mean_at])
    truth[:, std_at] = torch.where(changed, variance.sqrt() * 127.5, truth[:, std_at])

    contrast, light = uniform(0.8, 1.2), uniform(-0.15, 0.15)
    tint = uniform(-0.08, 0.08, 3)
    tint = tint - tint.mean(1, keepdim=True)  # keeps the brightness, and so its truth
    images = images * contrast[:, None, None, None] + (light[:, None] + tint)[:, :, None, None]
    for name in ("hair_color", "background_mean"):
        at = TARGETS.index(name)
        truth[:, at] = ((truth[:, at] / 127.5 - 1) * contrast + light + 1) * 127.5
    truth[:, std_at] *= contrast

    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    truth[:, TARGETS.index("pose")] *= flip
    turn, zoom = uniform(-0.12, 0.12), uniform(0.93, 1.07)
    cos, sin = turn.cos() * zoom, turn.sin() * zoom
    moves = torch.stack(
        [
            torch.stack([cos * flip, -sin, uniform(-0.06, 0.06)], 1),
            torch.stack([sin * flip, cos, uniform(-0.06, 0.06)], 1),
        ],
        1,
    )
    coarser = 2 ** float(torch.randint(0, 4, (1,), generator=generator) / 2)  # 1, 1.4, 2 or 2.8
    if coarser > 1:  # generated faces are softer than rendered ones
        size = images.shape[2:]
        small = [max(8, round(s / coarser)) for s in size]
        images = F.interpolate(images, small, mode="bilinear", antialias=True)
        images = F.interpolate(images, size, mode="bilinear")
    views = look(images, resolution, moves)

    sigma = uniform(0, 0.08, 1, 1, 1)

    def noisy(view: Tensor) -> Tensor:
        return (view + sigma * torch.randn(view.shape, generator=generator)).clamp(-1, 1)

    return Views(noisy(views.whole), noisy(views.eyes), noisy(views.mouth)), truth


def find_start(config: JudgeConfig, trained_on: NDArray[Any]) -> tuple[Judge | None, str]:
    """The judge to continue, and a note; none if its shape differs or it knows people of the other models.

    Args:
        config: the section; `start` names a model folder.
        trained_on: identities [k] that the other models learn from.

    Raises:
        ArtifactError: `start` is no intact model folder.
    """
    if not config.start:
        return None, ""
    judge = Judge.load(Path(config.start), "cpu")
    if judge.network.resolution != config.resolution:
        return None, f"{config.start} has another shape than the settings: started from scratch."
    if met := len(set(trained_on.tolist()) & set(judge.people)):
        return None, f"{config.start} knows {met} of the people others train on here: started from scratch."
    return judge, f"Continued from {config.start}, digest {judge.digest[:12]}."


def fit(
    data: Examples, config: JudgeConfig, device: torch.device, journal: Journal, start: Judge | None = None
) -> Judge:
    """Train a judge on the examples, from scratch or from the weights and scales of `start`."""
    generator = torch.Generator().manual_seed(config.seed)
    if start:
        mean, std = torch.tensor([start.scales[name] for name in TARGETS]).t()
    else:
        mean = torch.nanmean(data.truth, 0)
        std = torch.nanmean((data.truth - mean) ** 2, 0).sqrt()
        mean, std = torch.nan_to_num(mean), torch.nan_to_num(std, nan=1.0).clamp(min=1e-3)
    peak = config.learning_rate * (config.continued_speed if start else 1.0)
    with torch.random.fork_rng():  # layers initialise and dropout draws from the global generator
        torch.manual_seed(config.seed)
        network = JudgeNetwork(config.resolution)
        if start:
            network.load_state_dict(start.network.state_dict())
        identities = nn.Linear(EMBEDDING, int(data.identity.max()) + 1, bias=False)
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        identities.to(device)
        parameters = [*network.parameters(), *identities.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, peak, total_steps=config.steps, pct_start=0.15
        )
        weights = torch.tensor([WEIGHT_OF.get(name, 1.0) for name in TARGETS], device=device)
        network.train()
        order = _batches(len(data.images), config.batch_size, generator)
        for step in journal.progress(range(config.steps), "judge", config.steps):
            rows = next(order)
            images = data.images[rows].float() / 127.5 - 1
            views, truth = disturb(images, data.behind[rows], data.truth[rows], config.resolution, generator)
            wanted = ((truth - mean) / std).to(device)
            known = torch.isfinite(wanted)
            scores, embeddings = network(views.to(device))
            errors = F.smooth_l1_loss(scores, torch.nan_to_num(wanted), reduction="none", beta=0.3)
            regression = (errors * known * weights).sum() / (known * weights).sum().clamp(min=1)
            cosines = embeddings @ F.normalize(identities.weight, dim=1).T
            identity = F.cross_entropy(COSINE_SCALE * cosines, data.identity[rows].to(device))
            (regression + IDENTITY_WEIGHT * identity).backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            if step % LOG_EVERY == 0 or step == config.steps - 1:
                journal.log(step, regression=regression.item(), identity=identity.item())
    scales = {name: [float(mean[i]), float(std[i])] for i, name in enumerate(TARGETS)}
    people = {*data.people, *(start.people if start else ())}
    return Judge(network, scales, sorted(people))


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of row numbers; every portrait once before any twice."""
    pending = torch.empty(0, dtype=torch.long)
    while True:
        while len(pending) < size:
            pending = torch.cat([pending, torch.randperm(count, generator=generator)])
        yield pending[:size]
        pending = pending[size:]


def save(judge: Judge, folder: Path, provenance: dict[str, Any]) -> None:
    """Write a model folder: learned weights in half precision, running statistics as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    learned = dict(judge.network.named_parameters())
    weights = {
        name: (w.half() if name in learned else w).cpu().contiguous()
        for name, w in judge.network.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS)
    settings = {
        "resolution": judge.network.resolution,
        "scales": judge.scales,
        "people": list(judge.people),
    }
    write_manifest(folder, KIND, files=[WEIGHTS], settings=settings, provenance=provenance)


def train(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """Train the judge on the identities that others hold out, judge it on those that others train on.

    Portraits with a defect take no part, and neither does Oh-LoRA: the judge must not know her by heart.

    Raises:
        CorpusError: the corpus is corrupt, or lacks train or test portraits.
    """
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    portraits = Portraits.load(inputs["corpus"])
    usable = (portraits.identity != PERSONA_IDENTITY) & ~(portraits.truth["quality"] == 0)
    training = portraits.select(usable & (portraits.split == "test"))
    test = portraits.select(usable & (portraits.split == "train"))
    settings = config.judge
    device = _device(config.runtime.device)
    start, note = find_start(settings, np.unique(portraits.identity[portraits.split == "train"]))
    judge = fit(examples(training, settings.resolution), settings, device, journal, start)
    out = outputs["output"]
    provenance = {
        "profile": config.profile,
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "portraits": len(training),
        "identities": len(np.unique(training.identity)),
        "start": start.digest if start else "",
        "licence": "Apache-2.0",
    }
    save(judge, out, provenance)

    judge = Judge.load(out, config.runtime.device)
    images = test.images
    truth = {name: test.truth[name] for name in TARGETS}
    seen = judge.attributes(images)
    metrics = agreement(seen, truth)
    soft = agreement(judge.attributes(_soften(images)), truth)
    metrics |= {f"soft_{name}": soft[name] for name in soft if name.startswith(tuple(WEIGHT_OF))}
    metrics |= verification(judge.embed(images), test.identity)
    draw(seen, truth, out / SCATTER)
    return Report(
        metrics=metrics,
        pictures={"Judge against the truth, people it never saw": SCATTER},
        notes=[note] if note else [],
    )


def agreement(
    seen: dict[str, NDArray[np.float32]], truth: dict[str, NDArray[np.float32]]
) -> dict[str, float]:
    """`<name>_mae` and `<name>_correlation` of each attribute with a varying, known truth."""
    metrics = {}
    for name, values in truth.items():
        known = np.isfinite(values)
        a, b = seen[name][known].astype(np.float64), values[known].astype(np.float64)
        if len(a) < 2:
            continue
        metrics[f"{name}_mae"] = float(np.abs(a - b).mean())
        if a.std() > 0 and b.std() > 0:
            metrics[f"{name}_correlation"] = float(np.corrcoef(a, b)[0, 1])
    return metrics


def verification(embeddings: NDArray[np.float32], identity: NDArray[Any]) -> dict[str, float]:
    """How well cosines tell portraits of one held-out person from those of two.

    Args:
        embeddings: float32 [n, d] of length 1.
        identity: [n].

    Returns:
        Mean cosines within and between people, and the probability that a pair of one person is more alike
        than a pair of two (AUROC); empty where one kind of pair is missing.
    """
    a, b = np.triu_indices(len(identity), 1)
    cosine = (embeddings @ embeddings.T)[a, b]
    same = identity[a] == identity[b]
    if not same.any() or same.all():
        return {}
    ranks = np.empty(len(cosine))
    ranks[np.argsort(cosine)] = np.arange(1, len(cosine) + 1)
    hits = same.sum()
    auroc = (ranks[same].sum() - hits * (hits + 1) / 2) / (hits * (~same).sum())
    return {
        "identity_auroc": float(auroc),
        "identity_same_cosine": float(cosine[same].mean()),
        "identity_other_cosine": float(cosine[~same].mean()),
    }


def draw(seen: dict[str, NDArray[np.float32]], truth: dict[str, NDArray[np.float32]], path: Path) -> None:
    """Write a PNG: judged over true values of eyes, mouth and pose."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyplot would touch global state
    from matplotlib.figure import Figure

    names = [name for name in ("eyes", "mouth", "pose") if name in truth]
    figure = Figure(figsize=(3.2 * max(len(names), 1), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, name in zip(np.atleast_1d(figure.subplots(1, max(len(names), 1))), names, strict=False):
        ends = [truth[name].min(), truth[name].max()]
        axis.plot(ends, ends, color="#bbb")
        axis.scatter(truth[name], seen[name], s=9, color="#6b5bd2")
        axis.set_xlabel(f"true {name}")
        axis.set_ylabel(f"judged {name}")
    figure.savefig(path, dpi=90)


def _soften(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images at half their resolution and back: about as soft as generated ones."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    small = F.interpolate(pixels, scale_factor=0.5, mode="bilinear", antialias=True)
    soft = F.interpolate(small, images.shape[1:3], mode="bilinear").round().clamp(0, 255)
    return soft.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def _device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)
