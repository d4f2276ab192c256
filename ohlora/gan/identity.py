"""Who is it? A small network that tells the training people apart, so that a face may be held to be the same.

It looks at the face alone, sees the people whom the generator learns from and nobody else, and is no judge:
the evaluation has a network of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VIEW = 80  # pixels per side of the view
BOX = (0.2, 0.24, 0.8, 0.96)  # left, top, right, bottom: the face without most of hair and background
WIDTHS = (24, 48, 80, 112)  # channels after each halving
EMBEDDING = 64
SCALE = 16.0  # of the cosines in the logits
MARGIN = 0.1  # that the right person's cosine must win by (CosFace, Wang et al. 2018, arXiv:1801.09414)
LEARNING_RATE = 2e-3


class IdentityNetwork(nn.Module):
    """Portraits float32 [n, 3, r, r] in [-1, 1] to embeddings [n, EMBEDDING] of length 1."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((3, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(before, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(WIDTHS[-1] * (VIEW // 16) ** 2, EMBEDDING)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(view(images)).flatten(1)
        return F.normalize(self.head(features), dim=1)


def view(images: Tensor, moves: Tensor | None = None) -> Tensor:
    """The face of images [n, 3, r, r], float32 [n, 3, VIEW, VIEW]; `moves` [n, 2, 3] vary where it is."""
    left, top, right, bottom = (2 * edge - 1 for edge in BOX)
    cut = images.new_tensor(
        [[(right - left) / 2, 0, (right + left) / 2], [0, (bottom - top) / 2, (bottom + top) / 2], [0, 0, 1]]
    )
    plain = torch.eye(2, 3, device=images.device).expand(len(images), 2, 3)
    grid = F.affine_grid((plain if moves is None else moves) @ cut, [len(images), 3, VIEW, VIEW], False)
    coarse = images
    while coarse.shape[-1] >= 4 * VIEW * (right - left) / 2:  # no aliasing in what is seen
        coarse = F.avg_pool2d(coarse, 2)
    return F.grid_sample(coarse, grid, padding_mode="border", align_corners=False)


class IdentityTraining:
    """Cosine softmax over the people, on portraits in other light, place and sharpness."""

    def __init__(self, people: int, seed: int, device: str = "cpu") -> None:
        with torch.random.fork_rng(devices=[]):  # layers initialise from the global generator
            torch.manual_seed(seed)
            self.network = IdentityNetwork().to(device)
            self.people = nn.Parameter(torch.randn(people, EMBEDDING).to(device))
        self.generator = torch.Generator().manual_seed(seed)
        parameters = [*self.network.parameters(), self.people]
        self.optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.02)

    def step(self, images: Tensor, people: Tensor) -> float:
        """Train one batch of images float32 [n, 3, r, r] of people int64 [n]; returns the loss."""
        self.network.train()
        embedding = F.normalize(self.network.head(self.network.body(self._changed(images)).flatten(1)), dim=1)
        cosine = embedding @ F.normalize(self.people, dim=1).t()
        right = F.one_hot(people, len(self.people))
        loss = F.cross_entropy(SCALE * (cosine - MARGIN * right), people)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def _changed(self, images: Tensor) -> Tensor:
        n = len(images)

        def spread(size: float, *shape: int) -> Tensor:
            return size * (2 * torch.rand(n, *shape, generator=self.generator) - 1).to(images.device)

        zoom = 1 + spread(0.06)
        nothing = images.new_zeros(n)
        moves = torch.stack(
            [torch.stack([zoom, nothing, spread(0.05)], 1), torch.stack([nothing, zoom, spread(0.05)], 1)], 1
        )
        seen = view(images, moves)
        soft = F.avg_pool2d(F.pad(seen, (1, 1, 1, 1), mode="replicate"), 3, 1)
        seen = torch.lerp(seen, soft, torch.rand(n, 1, 1, 1, generator=self.generator).to(images.device))
        seen = seen * (1 + spread(0.15, 1, 1, 1)) + spread(0.12, 1, 1, 1) + spread(0.04, 3, 1, 1)
        noise = torch.randn(seen.shape, generator=self.generator)
        noise *= 0.06 * torch.rand(n, 1, 1, 1, generator=self.generator)
        return seen + noise.to(images.device)
