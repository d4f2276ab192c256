from collections.abc import Callable

import numpy as np
import pytest
import torch

from ohlora.gan.repaint import (
    BACKGROUND_MEAN,
    BACKGROUND_STD,
    HAIR_COLOR,
    Ranges,
    repaint_background,
    repaint_hair,
)

SIZE = 64
RANGES = Ranges((20.0, 200.0), (30.0, 220.0), (2.0, 30.0))


def portrait(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, np.ndarray]:
    """A textured background, hair in the middle, their shares and the measured conditions."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.1 * torch.randn(3, SIZE, SIZE, generator=generator)
    hair = torch.zeros(SIZE, SIZE)
    hair[:, 20:44] = 1
    image[:, :, 20:44] -= 0.5
    raw = np.full(7, 5.0, np.float32)
    raw[HAIR_COLOR] = grey(image, hair > 0)[0]
    raw[BACKGROUND_MEAN], raw[BACKGROUND_STD] = grey(image, upper(1 - hair))
    return image, 1 - hair, hair, raw


Paint = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def repainted(
    paint: Paint, image: torch.Tensor, share: torch.Tensor, raw: np.ndarray, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One portrait painted as a batch of one; `raw` is changed with it."""
    images, outlines = paint(image[None], share[None], raw[None], RANGES, np.random.default_rng(seed))
    return images[0], outlines[0]


def upper(share: torch.Tensor) -> torch.Tensor:
    """Where only background is around, in the upper half."""
    inside = share.clone()
    inside[:, 19], inside[:, 44] = 0, 0
    inside[SIZE // 2 :] = 0
    return inside > 0


def grey(image: torch.Tensor, where: torch.Tensor) -> tuple[float, float]:
    values = (image.mean(0)[where] + 1) * 127.5
    return float(values.mean()), float(values.std(correction=0))


@pytest.mark.parametrize("seed", range(5))
def test_a_new_background_has_the_conditions_it_says(seed: int) -> None:
    image, behind, hair, raw = portrait(seed)
    before = raw.copy()
    painted, outline = repainted(repaint_background, image, behind, raw, seed)
    mean, std = grey(painted, upper(behind))
    assert raw[BACKGROUND_MEAN] == pytest.approx(mean, abs=0.1)
    assert raw[BACKGROUND_STD] == pytest.approx(std, rel=0.01)
    assert raw[BACKGROUND_MEAN] != before[BACKGROUND_MEAN]
    assert torch.equal(painted[:, hair > 0], image[:, hair > 0])
    kept = [i for i in range(7) if i not in (BACKGROUND_MEAN, BACKGROUND_STD)]
    assert (raw[kept] == before[kept]).all()
    assert outline.any(0).nonzero().flatten().tolist() == [19, 20, 43, 44]


@pytest.mark.parametrize("seed", range(5))
def test_new_hair_has_the_colour_it_says(seed: int) -> None:
    image, behind, hair, raw = portrait(seed)
    before = raw.copy()
    painted, _ = repainted(repaint_hair, image, hair, raw, seed)
    assert raw[HAIR_COLOR] == pytest.approx(grey(painted, hair > 0)[0], rel=0.01)
    assert raw[HAIR_COLOR] != before[HAIR_COLOR]
    assert torch.equal(painted[:, behind > 0], image[:, behind > 0])


@pytest.mark.parametrize("paint", [repaint_background, repaint_hair])
def test_without_background_or_hair_nothing_is_painted(paint: Paint) -> None:
    image, behind, _, raw = portrait()
    before = raw.copy()
    painted, outline = repainted(paint, image, torch.zeros_like(behind), raw, 0)
    assert torch.equal(painted, image)
    assert not outline.any()
    assert (raw == before).all()


@pytest.mark.parametrize("paint", [repaint_background, repaint_hair])
def test_portraits_of_a_batch_are_painted_each_for_itself(paint: Paint) -> None:
    parts = [portrait(seed) for seed in range(3)]
    shares = [
        torch.zeros_like(behind) if k == 1 else (behind, hair)[paint is repaint_hair]
        for k, (_, behind, hair, _) in enumerate(parts)
    ]
    raw = np.stack([part[3] for part in parts])
    before = raw.copy()
    images = torch.stack([part[0] for part in parts])
    painted, outline = paint(images, torch.stack(shares), raw, RANGES, np.random.default_rng(0))
    assert [not torch.equal(a, b) for a, b in zip(painted, images, strict=True)] == [True, False, True]
    assert outline.flatten(1).any(1).tolist() == [True, False, True]
    assert (raw != before).any(1).tolist() == [True, False, True]


def test_ranges_leave_out_the_rarest() -> None:
    conditions = np.tile(np.arange(101.0)[:, None], (1, 7))
    assert Ranges.of(conditions) == Ranges((2.0, 98.0), (2.0, 98.0), (2.0, 98.0))
