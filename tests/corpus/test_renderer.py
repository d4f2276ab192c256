"""Rendering: masks are valid, the same parameters give the same pixels. Tiny pictures, one sample."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from ohlora.attributes import FaceClass
from ohlora.corpus import persona_parameters, render_portrait
from ohlora.corpus.rendering import ground_truth

PERSONA = persona_parameters(Path(__file__).parents[2] / "data" / "persona" / "look.yaml")


@lru_cache
def portrait(eyes: float, yaw: float = 0.0, mouth: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    moment = PERSONA.model_copy(update={"eyes": eyes, "yaw": yaw, "mouth": mouth})
    return render_portrait(moment, resolution=96, samples_per_pixel=1)


def eye_pixels(mask: np.ndarray) -> int:
    return int(np.isin(mask, [FaceClass.LEFT_EYE, FaceClass.RIGHT_EYE]).sum())


def test_eyes_open_monotonically() -> None:
    closed, half, wide = (eye_pixels(portrait(eyes)[1]) for eyes in (0.0, 0.5, 1.0))
    assert closed <= 2
    assert closed < half < wide


def test_the_same_parameters_give_the_same_bytes() -> None:
    image, mask = portrait(1.0)
    again, mask_again = render_portrait(PERSONA.model_copy(update={"eyes": 1.0}), 96, 1)
    assert image.tobytes() == again.tobytes()
    assert mask.tobytes() == mask_again.tobytes()


def test_a_mask_names_what_is_there_on_the_sides_of_the_image() -> None:
    image, mask = portrait(1.0)
    assert image.shape == (96, 96, 3)
    assert mask.shape == (96, 96)
    present = {FaceClass(int(c)) for c in np.unique(mask)}
    assert present >= set(FaceClass) - {FaceClass.EARS, FaceClass.INNER_MOUTH}
    centre = {c: np.argwhere(mask == c).mean(0) for c in present}
    assert centre[FaceClass.LEFT_EYE][1] < centre[FaceClass.NOSE][1] < centre[FaceClass.RIGHT_EYE][1]
    assert centre[FaceClass.LEFT_BROW][0] < centre[FaceClass.LEFT_EYE][0] < centre[FaceClass.UPPER_LIP][0]
    assert centre[FaceClass.UPPER_LIP][0] < centre[FaceClass.LOWER_LIP][0] < centre[FaceClass.NECK][0]


def test_yaw_and_mouth_move_what_they_should() -> None:
    _, straight = portrait(1.0)
    _, turned = portrait(0.8, yaw=25.0, mouth=1.0)

    def nose_offset(mask: np.ndarray) -> float:
        eyes = np.argwhere(np.isin(mask, [FaceClass.LEFT_EYE, FaceClass.RIGHT_EYE]))[:, 1]
        return float(np.argwhere(mask == FaceClass.NOSE)[:, 1].mean() - (eyes.min() + eyes.max()) / 2)

    assert nose_offset(turned) > nose_offset(straight) + 2
    assert (turned == FaceClass.INNER_MOUTH).sum() > (straight == FaceClass.INNER_MOUTH).sum() + 20


def test_ground_truth_is_measured_on_the_mask() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    image[:4] = 40
    image[0] = 80
    mask[4:6] = FaceClass.HAIR
    image[4:6] = (10, 20, 60)
    truth = ground_truth(PERSONA, image, mask)
    assert truth["hair_color"] == 30
    assert truth["hair_length"] == 6 / 8
    assert truth["background_mean"] == 50
    assert np.isclose(truth["background_std"], np.std([80, 40, 40, 40]))
    bald = ground_truth(PERSONA, image, np.ones_like(mask))
    assert np.isnan([bald["hair_color"], bald["hair_length"], bald["background_mean"]]).all()
