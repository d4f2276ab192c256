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
    done = repaint_background(image, behind, raw, RANGES, np.random.default_rng(seed))
    assert done is not None
    mean, std = grey(done[0], upper(behind))
    assert raw[BACKGROUND_MEAN] == pytest.approx(mean, abs=0.1)
    assert raw[BACKGROUND_STD] == pytest.approx(std, rel=0.01)
    assert raw[BACKGROUND_MEAN] != before[BACKGROUND_MEAN]
    assert torch.equal(done[0][:, hair > 0], image[:, hair > 0])
    kept = [i for i in range(7) if i not in (BACKGROUND_MEAN, BACKGROUND_STD)]
    assert (raw[kept] == before[kept]).all()
    assert done[1].any(0).nonzero().flatten().tolist() == [19, 20, 43, 44]


@pytest.mark.parametrize("seed", range(5))
def test_new_hair_has_the_colour_it_says(seed: int) -> None:
    image, behind, hair, raw = portrait(seed)
    before = raw.copy()
    done = repaint_hair(image, hair, raw, RANGES, np.random.default_rng(seed))
    assert done is not None
    assert raw[HAIR_COLOR] == pytest.approx(grey(done[0], hair > 0)[0], rel=0.01)
    assert raw[HAIR_COLOR] != before[HAIR_COLOR]
    assert torch.equal(done[0][:, behind > 0], image[:, behind > 0])


def test_without_background_or_hair_nothing_is_painted() -> None:
    image, behind, _, raw = portrait()
    before, rng = raw.copy(), np.random.default_rng(0)
    assert repaint_background(image, torch.zeros_like(behind), raw, RANGES, rng) is None
    assert repaint_hair(image, torch.zeros_like(behind), raw, RANGES, rng) is None
    assert (raw == before).all()


def test_ranges_leave_out_the_rarest() -> None:
    conditions = np.tile(np.arange(101.0)[:, None], (1, 7))
    assert Ranges.of(conditions) == Ranges((2.0, 98.0), (2.0, 98.0), (2.0, 98.0))
