"""Rendering: masks are valid, the same parameters give the same pixels. Tiny pictures, one sample."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ohlora.attributes import FaceClass
from ohlora.corpus import persona_parameters, render_portrait
from ohlora.corpus.meshes import build_scene
from ohlora.corpus.parameters import Earrings, Fringe, Glasses, HairStyle
from ohlora.corpus.renderer import _developed, _undeveloped, paint_background
from ohlora.corpus.rendering import ground_truth
from ohlora.corpus.template import load_template

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
    assert present >= set(FaceClass) - {FaceClass.EARS, FaceClass.INNER_MOUTH, FaceClass.CLOTHES}
    centre = {c: np.argwhere(mask == c).mean(0) for c in present}
    assert centre[FaceClass.LEFT_EYE][1] < centre[FaceClass.NOSE][1] < centre[FaceClass.RIGHT_EYE][1]
    assert centre[FaceClass.LEFT_BROW][0] < centre[FaceClass.LEFT_EYE][0] < centre[FaceClass.UPPER_LIP][0]
    assert centre[FaceClass.UPPER_LIP][0] < centre[FaceClass.LOWER_LIP][0] < centre[FaceClass.NECK][0]


def test_the_background_is_exact_where_nobody_stands() -> None:
    image, mask = portrait(1.0)
    corner = paint_background(PERSONA.look, 96)[:6, :6]
    assert (mask[:6, :6] == FaceClass.BACKGROUND).all()
    np.testing.assert_array_equal(image[:6, :6], (np.clip(corner, 0, 1) * 255 + 0.5).astype(np.uint8))


@given(st.floats(0.01, 0.97))
def test_light_behind_the_head_is_what_the_tone_curve_shows(shade: float) -> None:
    picture = np.full((1, 1, 3), shade, np.float32) * np.array([1.0, 0.9, 0.8], np.float32)
    np.testing.assert_allclose(_developed(_undeveloped(picture)), picture, atol=2e-3)


def test_every_style_grows_hair_on_the_head() -> None:
    """Strands start on the scalp, stay near the head and do not hang before the eyes, fringes aside."""
    template = load_template()
    for style in HairStyle:
        look = PERSONA.look.model_copy(
            update={"hair": PERSONA.look.hair.model_copy(update={"style": style, "fringe": Fringe.NONE})}
        )
        scene = build_scene(PERSONA.model_copy(update={"look": look}))
        hair = next(mesh for mesh in scene.meshes if mesh.name == "hair")
        assert np.isfinite(hair.vertices).all()
        assert len(hair.triangles) > 20_000
        eyes = next(mesh for mesh in scene.meshes if mesh.name == "eye_left").vertices.mean(0)
        before = (np.abs(hair.vertices[:, 1] - eyes[1]) < 0.1) & (np.abs(hair.vertices[:, 0]) < 0.4)
        assert (before & (hair.vertices[:, 2] > eyes[2] + 0.1)).mean() < 0.01, style
    assert template.scalp.any()


def test_glasses_and_earrings_leave_the_mask_as_it_is_almost_everywhere() -> None:
    worn = PERSONA.look.model_copy(update={"glasses": Glasses(), "earrings": Earrings(hoop=True, size=0.1)})
    image, mask = render_portrait(PERSONA.model_copy(update={"look": worn, "eyes": 1.0}), 96, 1)
    bare_image, bare_mask = portrait(1.0)
    assert (image != bare_image).any(-1).sum() > 100
    assert (mask != bare_mask).mean() < 0.03


def test_yaw_and_mouth_move_what_they_should() -> None:
    _, straight = portrait(1.0)
    _, turned = portrait(0.8, yaw=25.0, mouth=1.0)

    def nose_offset(mask: np.ndarray) -> float:
        eyes = np.argwhere(np.isin(mask, [FaceClass.LEFT_EYE, FaceClass.RIGHT_EYE]))[:, 1]
        return float(np.argwhere(mask == FaceClass.NOSE)[:, 1].mean() - (eyes.min() + eyes.max()) / 2)

    assert nose_offset(turned) > nose_offset(straight) + 2
    assert (turned == FaceClass.INNER_MOUTH).sum() > (straight == FaceClass.INNER_MOUTH).sum() + 20


def test_ground_truth_is_measured_on_the_mask() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    image[:32] = 40
    image[:8] = 80
    mask[32:48] = FaceClass.HAIR
    image[32:48] = (10, 20, 60)
    truth = ground_truth(PERSONA, image, mask)
    assert truth["hair_color"] == 30
    assert truth["hair_length"] == 48 / 64
    # The last row of the background lies beside hair and does not count, nor do 2 % at either end.
    seen = np.sort(image[:31].mean(2).ravel())
    drop = int(0.02 * len(seen))
    assert np.isclose(truth["background_mean"], seen[drop:-drop].mean())
    assert np.isclose(truth["background_std"], seen[drop:-drop].std())
    bald = ground_truth(PERSONA, image, np.ones_like(mask))
    assert np.isnan([bald["hair_color"], bald["hair_length"], bald["background_mean"]]).all()


def test_glasses_beside_the_face_are_no_background() -> None:
    image = np.full((256, 256, 3), 150, np.uint8)
    mask = np.full((256, 256), FaceClass.SKIN, np.uint8)
    mask[:, :90] = FaceClass.BACKGROUND
    image[100:102, 60:90] = 10  # the mask has no class for them
    truth = ground_truth(PERSONA, image, mask)
    assert truth["background_mean"] == 150
    assert truth["background_std"] < 1e-6
    mask[:, 4:] = FaceClass.SKIN  # next to nothing of the background is left
    assert np.isnan(ground_truth(PERSONA, image, mask)["background_std"])
