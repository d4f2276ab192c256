import pytest
import torch

from ohlora.attributes import FaceClass
from ohlora.labeling import augmentation
from ohlora.labeling.augmentation import MIRRORED, augment
from ohlora.labeling.segmentation import class_shares
from tests.labeling.drawn_faces import face


def batch(n: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    masks = torch.from_numpy(face(64))[None].expand(n, -1, -1)
    return torch.rand(n, 3, 64, 64) * 2 - 1, class_shares(masks, 64)


def test_ranges_and_shares_hold() -> None:
    images, shares = augment(*batch(), torch.Generator().manual_seed(0))
    assert images.abs().max() <= 1
    torch.testing.assert_close(shares.sum(1), torch.ones(8, 64, 64))


def test_the_generator_alone_decides() -> None:
    images, shares = batch()
    first = augment(images, shares, torch.Generator().manual_seed(5))
    again = augment(images, shares, torch.Generator().manual_seed(5))
    other = augment(images, shares, torch.Generator().manual_seed(6))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_the_left_eye_stays_on_the_left_even_when_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_TURN", "MAX_SHIFT", "MAX_ZOOM"):
        monkeypatch.setattr(augmentation, name, 0.0)
    images, before = batch(32)
    _, shares = augment(images, before, torch.Generator().manual_seed(0))
    columns = torch.arange(64.0)
    for label, sign in ((FaceClass.LEFT_EYE, -1), (FaceClass.RIGHT_EYE, 1)):
        weights = shares[:, label].sum(1)
        centre = (weights * columns).sum(1) / weights.sum(1)
        assert ((centre - 31.5) * sign > 0).all()


def test_mirroring_twice_is_nothing() -> None:
    assert [MIRRORED[MIRRORED[c]] for c in FaceClass] == list(FaceClass)


def test_plain_portraits_are_mirrored_at_most() -> None:
    images, _ = batch()
    masks = torch.randint(
        0, len(FaceClass), (len(images), *images.shape[2:]), generator=torch.Generator().manual_seed(1)
    )
    masks = masks.to(torch.uint8)
    swap = torch.tensor(MIRRORED, dtype=torch.uint8)
    mirrored = set()
    for seed in range(8):
        changed, moved = augment(images, masks, torch.Generator().manual_seed(seed), plain=1.0)
        for before, after, mask, mask_after in zip(images, changed, masks, moved, strict=True):
            flipped = bool((mask_after != mask).any())
            mirrored.add(flipped)
            torch.testing.assert_close(after, before.flip(2) if flipped else before, atol=1e-5, rtol=0)
            assert torch.equal(mask_after, swap[mask.flip(1).long()] if flipped else mask)
    assert mirrored == {True, False}
    assert not torch.equal(augment(images, masks, torch.Generator().manual_seed(0), plain=0.0)[0], images)
