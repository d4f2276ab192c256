"""Random checkpoints laid out like GenForce's StyleGAN ones, from names and shapes alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

State = dict[str, Tensor]


def channels(resolution: int, base: int, most: int) -> int:
    return min(base // resolution, most)


def generator_state(
    seed: int,
    resolution: int = 32,
    z: int = 16,
    w: int = 24,
    mapping: int = 3,
    hidden: int = 20,
    base: int = 256,
    most: int = 16,
    labels: int = 0,
) -> State:
    """Weights of a generator; noise strengths and the average style are not zero."""
    source = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=source) * scale

    state: State = {}
    sizes = [2 * z if labels else z, *[hidden] * (mapping - 1), w]
    for i in range(mapping):
        state[f"mapping.dense{i}.weight"] = random(sizes[i + 1], sizes[i], scale=100)
        state[f"mapping.dense{i}.bias"] = random(sizes[i + 1], scale=10)
    if labels:
        state["mapping.label_weight"] = random(labels, z)
    state["truncation.w_avg"] = random(w)
    state["synthesis.lod"] = torch.zeros(())
    for block in range(int(math.log2(resolution)) - 1):
        here, before = channels(4 << block, base, most), channels(2 << block, base, most)
        for layer in (2 * block, 2 * block + 1):
            name = f"synthesis.layer{layer}"
            if layer == 0:
                state[f"{name}.const"] = random(1, here, 4, 4)
            else:
                state[f"{name}.weight"] = random(here, here if layer % 2 else before, 3, 3)
                if layer % 2 == 0:
                    state[f"{name}.blur.kernel"] = blur(here)
            state[f"{name}.bias"] = random(here, scale=0.1)
            state[f"{name}.apply_noise.noise"] = random(1, 1, 4 << block, 4 << block)
            state[f"{name}.apply_noise.weight"] = random(here, scale=0.1)
            state[f"{name}.style.weight"] = random(2 * here, w)
            state[f"{name}.style.bias"] = random(2 * here, scale=0.1)
        state[f"synthesis.output{block}.weight"] = random(3, here, 1, 1)
        state[f"synthesis.output{block}.bias"] = random(3, scale=0.1)
    return state


def discriminator_state(
    seed: int, resolution: int = 32, base: int = 256, most: int = 16, labels: int = 0
) -> State:
    """Weights of a discriminator."""
    source = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source)

    state: State = {"lod": torch.zeros(())}
    blocks = int(math.log2(resolution)) - 1
    for block in range(blocks):
        size = resolution >> block
        here, after = channels(size, base, most), channels(size // 2, base, most)
        state[f"input{block}.weight"], state[f"input{block}.bias"] = random(here, 3, 1, 1), random(here)
        first, second = f"layer{2 * block}", f"layer{2 * block + 1}"
        last = size == 4
        state[f"{first}.weight"], state[f"{first}.bias"] = random(here, here + last, 3, 3), random(here)
        state[f"{second}.weight"] = random(after, here * 16) if last else random(after, here, 3, 3)
        state[f"{second}.bias"] = random(after)
        if not last:
            state[f"{second}.blur.kernel"] = blur(here)
    scores = max(labels, 1)
    state[f"layer{2 * blocks}.weight"] = random(scores, channels(2, base, most))
    state[f"layer{2 * blocks}.bias"] = random(scores)
    return state


def blur(n: int) -> Tensor:
    line = torch.tensor([1.0, 2.0, 1.0])
    return (torch.outer(line, line) / 16).repeat(n, 1, 1, 1)


def checkpoint(seed: int = 0, labels: int = 0, **shape: int) -> dict[str, State]:
    """The three networks of a `.pth` file."""
    critic = {key: shape[key] for key in ("resolution", "base", "most") if key in shape}
    return {
        "generator": generator_state(seed, labels=labels, **shape),
        "discriminator": discriminator_state(seed + 1, labels=labels, **critic),
        "generator_smooth": generator_state(seed + 2, labels=labels, **shape),
    }
