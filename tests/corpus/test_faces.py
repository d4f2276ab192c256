"""Detection and framing: the package's weights are the known ones, faces land where renders have them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ohlora.artifacts import ArtifactError
from ohlora.attributes import FaceClass
from ohlora.corpus import Portraits, faces, photos
from ohlora.corpus.faces import FoundFace, Framing, MtcnnDetector, similarity
from ohlora.corpus.photos import framing_of
from ohlora.corpus.portraits import read_table

SAMPLE = Path(__file__).parents[2] / "data" / "portraits"
PLACES = np.array([[0.36, 0.44], [0.64, 0.44], [0.5, 0.72]])
LIPS = [FaceClass.UPPER_LIP, FaceClass.INNER_MOUTH, FaceClass.LOWER_LIP]


@pytest.fixture(scope="module")
def detector() -> MtcnnDetector:
    return MtcnnDetector()


@pytest.fixture(scope="module")
def frontal() -> Portraits:
    """Eight committed portraits with open eyes that look ahead."""
    portraits = Portraits.load(SAMPLE)
    truth = portraits.truth
    ahead = (np.abs(truth["pose"]) < 6) & (truth["eyes"] > 0.5) & (np.abs(truth["roll"]) < 2)
    return portraits.select(np.flatnonzero(ahead)[:8])


@settings(max_examples=50)
@given(st.floats(0.05, 20), st.floats(-3.1, 3.1), st.floats(-500, 500), st.floats(-500, 500))
def test_a_similarity_is_recovered(scale: float, angle: float, x: float, y: float) -> None:
    source = PLACES * 100
    turn = scale * np.exp(1j * angle)
    moved = turn * (source[:, 0] + 1j * source[:, 1]) + complex(x, y)
    a, b = similarity(source, np.stack([moved.real, moved.imag], 1))
    assert a == pytest.approx(turn, rel=1e-6, abs=1e-9)
    assert b == pytest.approx(complex(x, y), rel=1e-6, abs=1e-6)


def test_points_without_extent_are_an_error() -> None:
    with pytest.raises(ValueError, match="coincide"):
        similarity(np.ones((3, 2)), PLACES)


def dotted(size: tuple[int, int], places: np.ndarray, radius: float) -> np.ndarray:
    """White dots at points [3, 2] x and y on black, uint8 [h, w, 3]."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]] + 0.5
    image = np.zeros((size[1], size[0], 3), np.uint8)
    for px, py in places:
        image[np.hypot(x - px, y - py) < radius] = 255
    return image


@settings(max_examples=20)
@given(st.floats(0.5, 4), st.floats(-0.6, 0.6), st.integers(0, 1000))
def test_a_crop_puts_the_points_where_the_framing_has_them(scale: float, angle: float, seed: int) -> None:
    centre = np.random.default_rng(seed).uniform(250, 350, 2)
    relative = (PLACES - PLACES.mean(0)) * 64 * scale
    turned = relative @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    places = turned + centre
    image = dotted((640, 600), places, 4 * scale)
    cut, outside = Framing(PLACES).crop(image, FoundFace(np.zeros(4), 1.0, places), 64)
    assert cut.shape == (64, 64, 3)
    assert outside < 0.2
    bright = cut[..., 0].astype(float)
    for px, py in PLACES * 64:
        y, x = np.mgrid[0:64, 0:64] + 0.5
        weight = bright * (np.hypot(x - px, y - py) < 8)
        assert weight.sum() > 0
        assert (weight * x).sum() / weight.sum() == pytest.approx(px, abs=0.6)
        assert (weight * y).sum() / weight.sum() == pytest.approx(py, abs=0.6)


def test_beyond_the_edge_the_picture_is_mirrored() -> None:
    image = np.full((40, 40, 3), 90, np.uint8)
    image[:, :3] = 200
    places = PLACES * 40 - [14, 0]
    cut, outside = Framing(PLACES).crop(image, FoundFace(np.zeros(4), 1.0, places), 40)
    assert outside == pytest.approx(14 / 40, abs=0.03)
    assert cut.min() >= 85
    assert (cut[20, :14, 0] > 150).sum() in (3, 4, 5)


def test_a_face_is_found_in_renders_and_none_in_noise(detector: MtcnnDetector, frontal: Portraits) -> None:
    for image in frontal.images:
        found = detector(image)
        assert len(found) == 1
        left, top, right, bottom = found[0].box
        assert 0.02 < found[0].area / image.shape[0] ** 2 < 0.8
        assert ((found[0].landmarks > [left, top]) & (found[0].landmarks < [right, bottom])).all()
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    assert detector(noise) == []


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (23, 500), (24, 24), (4000, 30)])
def test_odd_sizes_are_no_faces(detector: MtcnnDetector, size: tuple[int, int]) -> None:
    assert detector(np.full((*size, 3), 127, np.uint8)) == []


def test_the_framing_of_the_sample_is_that_of_its_masks(
    detector: MtcnnDetector, frontal: Portraits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "FRAMED_BY", 12)
    framing = framing_of(read_table(SAMPLE), detector)
    middles = []
    for mask in frontal.masks:
        parts = [np.nonzero(np.isin(mask, c)) for c in ([FaceClass.LEFT_EYE], [FaceClass.RIGHT_EYE], LIPS)]
        middles.append([(x.mean() / len(mask), y.mean() / len(mask)) for y, x in parts])
    assert np.abs(framing.landmarks - np.mean(middles, 0)).max() < 0.03


def test_a_photo_of_a_render_is_framed_like_the_render(detector: MtcnnDetector, frontal: Portraits) -> None:
    framing = Framing.measure(frontal.images, detector)
    small = Image.fromarray(frontal.images[0]).resize((400, 400), Image.Resampling.BICUBIC)
    photo = Image.new("RGB", (1600, 900), (90, 110, 80))
    photo.paste(small, (800, 250))
    photo = photo.rotate(18, Image.Resampling.BICUBIC)
    image = np.asarray(photo)
    cut, _ = framing.crop(image, detector(image)[0], 256)
    found = detector(cut)[0].landmarks / 256
    assert np.abs(found - framing.landmarks).max() < 0.035


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(faces.WEIGHTS, "onet.pt", "0" * 64)
    with pytest.raises(ArtifactError, match=r"onet\.pt"):
        MtcnnDetector()
