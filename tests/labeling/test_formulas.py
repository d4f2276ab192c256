import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import rotate

from ohlora.attributes import CONDITION_NAMES, FaceClass
from ohlora.labeling.formulas import ALGORITHMS, _tilted_height, measure
from tests.labeling import reference_formulas
from tests.labeling.drawn_faces import face, painted


def ours(mask: np.ndarray, **paint: int) -> dict[str, float]:
    measured = measure(mask[None], painted(mask, **paint)[None])
    return {name: float(values[0]) for name, values in measured.items()}


@settings(max_examples=25)
@given(openness=st.floats(0.15, 0.9), tilt=st.floats(-0.5, 0.5))
def test_openness_is_the_height_of_the_eye_whatever_its_tilt(openness: float, tilt: float) -> None:
    width = 86  # of the drawn face around its nose, within a few pixels
    seen = ours(face(eyes=openness, tilt=tilt))["eyes"]
    row = 1 / width  # a narrow eye has four
    assert seen == pytest.approx(2 * 13 * openness / width, rel=0.12, abs=row)


def test_the_more_open_eye_counts() -> None:
    mask, both = face(eyes=0.2), face(eyes=0.6)
    mask[:, 112:] = both[:, 112:]
    assert ours(mask)["eyes"] == pytest.approx(ours(both)["eyes"], abs=0.005)


def test_openness_does_not_shrink_with_the_turned_head() -> None:
    assert ours(face(nose=0.4))["eyes"] == pytest.approx(ours(face())["eyes"], rel=0.03)


def test_stray_pixels_do_not_change_openness() -> None:
    clean = face(eyes=0.4)
    stray = clean.copy()
    stray[60, 60] = stray[170, 120] = FaceClass.LEFT_EYE
    stray[165:167, 150] = FaceClass.RIGHT_EYE
    assert ours(stray)["eyes"] == pytest.approx(ours(clean)["eyes"], abs=0.005)


def test_eyes_without_a_pixel_are_closed_when_their_lids_are_seen() -> None:
    assert ours(face(eyes=0))["eyes"] == 0.0


def test_eyes_behind_hair_are_unknown() -> None:
    mask = face(eyes=0)
    mask[60:108, 60:164] = FaceClass.HAIR
    assert np.isnan(ours(mask)["eyes"])


@settings(max_examples=20)
@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
def test_pose_follows_the_nose(a: float, b: float) -> None:
    pose_a, pose_b = ours(face(nose=a))["pose"], ours(face(nose=b))["pose"]
    if abs(a - b) > 0.05:
        assert (pose_a < pose_b) == (a < b)


def test_pose_is_zero_in_front_and_the_nose_over_the_width_aside() -> None:
    assert ours(face())["pose"] == pytest.approx(0, abs=0.01)
    assert ours(face(nose=0.3))["pose"] == pytest.approx(0.3 * 40 / 86, rel=0.1)


def test_pose_does_not_need_open_eyes() -> None:
    assert ours(face(eyes=0, nose=0.3))["pose"] == pytest.approx(ours(face(nose=0.3))["pose"], abs=0.01)


@settings(max_examples=20)
@given(st.floats(0.1, 0.8))
def test_a_wider_mouth_measures_wider(mouth: float) -> None:
    assert ours(face(mouth=mouth))["mouth"] < ours(face(mouth=mouth + 0.15))["mouth"]


def test_a_closed_mouth_is_zero_and_a_missing_one_unknown() -> None:
    mask = face(mouth=0)
    assert ours(mask)["mouth"] == 0.0
    mask[np.isin(mask, (FaceClass.UPPER_LIP, FaceClass.LOWER_LIP))] = FaceClass.HAIR
    assert np.isnan(ours(mask)["mouth"])


@pytest.mark.parametrize("hair_to", [0.4, 0.75, 1.0])
def test_hair_length_is_the_lowest_row(hair_to: float) -> None:
    assert ours(face(hair_to=hair_to))["hair_length"] == pytest.approx(hair_to, abs=0.01)


@settings(max_examples=15)
@given(hair=st.integers(0, 255), background=st.integers(0, 255))
def test_colours_are_those_painted(hair: int, background: int) -> None:
    seen = ours(face(), hair=hair, background=background)
    assert seen["hair_color"] == pytest.approx(hair, abs=0.01)
    assert seen["background_mean"] == pytest.approx(background, abs=0.01)
    assert seen["background_std"] == pytest.approx(0, abs=0.01)


def test_background_statistics_are_numpys_without_the_extremes() -> None:
    rng = np.random.default_rng(3)
    mask = np.zeros((1, 64, 64), dtype=np.uint8)
    image = rng.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    grey = np.sort(image[0, :32].reshape(-1, 3).mean(1))
    for algorithm, share in (("ours", 0.02), ("original_1", 0.05)):
        if algorithm == "original_1":
            rows = ((np.arange(224) + 0.5) * 64 / 224).astype(int)
            grey = np.sort(image[0][rows][:, rows][:112].reshape(-1, 3).mean(1))
        kept = grey[int(len(grey) * share) : len(grey) - int(len(grey) * share)]
        measured = measure(mask, image, algorithm)
        assert measured["background_mean"][0] == pytest.approx(kept.mean(), rel=1e-5)
        assert measured["background_std"][0] == pytest.approx(kept.std(), rel=1e-5)


def test_strands_that_the_mask_misses_do_not_count_as_background() -> None:
    mask = np.zeros((1, 256, 256), dtype=np.uint8)
    mask[:, :, 100:156] = FaceClass.HAIR
    image = np.full((1, 256, 256, 3), 200, np.uint8)
    image[:, :, 98:158] = 20  # the hair is wider than its mask
    assert measure(mask, image)["background_std"][0] == pytest.approx(0, abs=1e-4)
    mask[:, :, :254] = FaceClass.HAIR  # a sliver is left
    assert np.isnan(measure(mask, image)["background_std"][0])


def test_an_empty_mask_is_unknown_never_zero() -> None:
    mask = np.full((224, 224), FaceClass.SKIN, dtype=np.uint8)
    assert all(np.isnan(value) for value in ours(mask).values())


def test_ours_does_not_depend_on_the_resolution() -> None:
    small, large = ours(face(224, nose=0.2)), ours(face(448, nose=0.2))
    for name in CONDITION_NAMES:
        assert small[name] == pytest.approx(large[name], abs=0.03), name


def test_batches_answer_like_single_portraits() -> None:
    masks = np.stack([face(eyes=0.02 * i, nose=0.01 * i) for i in range(40)])
    images = np.stack([painted(mask) for mask in masks])
    for algorithm in ALGORITHMS:
        together = measure(masks, images, algorithm)
        for i in (0, 13, 39):
            alone = measure(masks[i : i + 1], images[i : i + 1], algorithm)
            for name in CONDITION_NAMES:
                np.testing.assert_array_equal(alone[name][0], together[name][i])


def test_no_portraits_no_labels() -> None:
    measured = measure(np.empty((0, 8, 8), np.uint8), np.empty((0, 8, 8, 3), np.uint8))
    assert {name: len(values) for name, values in measured.items()} == dict.fromkeys(CONDITION_NAMES, 0)


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 8, 9, 3), (1, 8, 8, 4)])
def test_shapes_that_do_not_belong_together_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="masks"):
        measure(np.zeros((1, 8, 8), np.uint8), np.zeros(shape, np.uint8))


def boxes(**edges: tuple[FaceClass, int, int, int, int]) -> np.ndarray:
    """A mask [224, 224] with rectangles: class, first row, last row, first column, last column."""
    mask = np.zeros((224, 224), dtype=np.uint8)
    for label, top, bottom, left, right in edges.values():
        mask[top : bottom + 1, left : right + 1] = label
    return mask


BOXES = boxes(
    left_eye=(FaceClass.LEFT_EYE, 90, 96, 70, 90),
    right_eye=(FaceClass.RIGHT_EYE, 94, 104, 130, 150),
    upper_lip=(FaceClass.UPPER_LIP, 150, 153, 100, 120),
    inner=(FaceClass.INNER_MOUTH, 154, 157, 100, 120),
    lower_lip=(FaceClass.LOWER_LIP, 158, 161, 100, 120),
    hair=(FaceClass.HAIR, 200, 223, 0, 29),
)


def original(mask: np.ndarray, algorithm: str) -> dict[str, float]:
    measured = measure(mask[None], painted(mask)[None], algorithm)  # type: ignore[arg-type]
    return {name: float(values[0]) for name, values in measured.items()}


def test_original_1_by_hand() -> None:
    seen = original(BOXES, "original_1")
    assert seen["eyes"] == (6 + 10) / 2
    assert seen["mouth"] == 11 + 3
    assert seen["hair_color"] == 60
    assert seen["hair_length"] == 223 + 30 / 2
    assert np.isnan(seen["pose"])


def test_original_1_pose_is_minus_the_correlation_of_the_nose() -> None:
    mask = np.zeros((224, 224), dtype=np.uint8)
    for i in range(20):
        mask[100 + i, 100 + i : 104 + i] = FaceClass.NOSE
    y, x = np.nonzero(mask)
    assert original(mask, "original_1")["pose"] == pytest.approx(-np.corrcoef(x, y)[0, 1], abs=1e-5)


def test_original_2_by_hand() -> None:
    seen = original(BOXES, "original_2")
    assert seen["eyes"] == pytest.approx(10 * 20 / np.hypot(20, 10))
    assert seen["mouth"] == pytest.approx(4 / 12)
    assert seen["pose"] == pytest.approx((99 - 93) / 60)
    assert seen["hair_length"] == 223 + (30 - 10) / 2


def test_the_originals_fall_back_where_they_see_nothing() -> None:
    nothing = np.full((224, 224), FaceClass.SKIN, dtype=np.uint8)
    first, second = original(nothing, "original_1"), original(nothing, "original_2")
    assert (first["eyes"], first["mouth"], first["background_mean"], first["background_std"]) == (
        0,
        0,
        192,
        0,
    )
    assert (second["pose"], second["mouth"], second["hair_color"]) == (0, 0, 127.5)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(10, 29), st.integers(0, 39)), min_size=1, max_size=30))
def test_the_farthest_pair_lies_on_row_ends(points: list[tuple[int, int]]) -> None:
    eye = np.zeros((1, 40, 40), dtype=bool)
    for y, x in points:
        eye[0, y, x] = True
    at = np.argwhere(eye[0]).astype(float)
    squared = ((at[:, None] - at[None]) ** 2).sum(-1)
    heights = [np.ptp(at[at[:, 1] == x, 0]) for x in np.unique(at[:, 1])]
    cosines = [
        abs(at[i, 1] - at[j, 1]) / max(np.sqrt(squared.max()), 1e-9) if squared.max() else 1.0
        for i, j in np.argwhere(squared == squared.max())
    ]
    assert any(_tilted_height(eye)[0] == pytest.approx(max(heights) * cosine) for cosine in cosines)


@st.composite
def scattered(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A mask 224 x 224 of random boxes and pixels of all classes, some on its edges; an image."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mask = np.full((224, 224), rng.choice([0, 1]), np.uint8)
    for label in rng.permutation(14)[: rng.integers(0, 15)]:
        top, left = rng.integers(0, 224, 2)
        height, width = rng.integers(1, 16, 2)
        if label == FaceClass.HAIR and rng.random() < 0.5:
            top, width = 216, 60
        mask[top : top + height, left : left + width] = label
        mask[tuple(rng.integers(0, 224, (2, 3)))] = label
    return mask, rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)


@settings(max_examples=25)
@given(scattered())
def test_the_originals_are_exactly_what_was_specified(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    mask, image = drawn
    for algorithm, wanted in (
        ("original_1", reference_formulas.first(mask, image)),
        ("original_2", reference_formulas.second(mask, image)),
    ):
        seen = measure(mask[None], image[None], algorithm)  # type: ignore[arg-type]
        for name, value in wanted.items():
            assert float(seen[name][0]) == pytest.approx(value, rel=1e-4, abs=1e-4, nan_ok=True), (
                algorithm,
                name,
            )
    eyes = [
        max(left, right)
        for left in reference_formulas.tilted_heights(mask, 4)
        for right in reference_formulas.tilted_heights(mask, 5)
    ]
    found = float(measure(mask[None], image[None], "original_2")["eyes"][0])
    assert any(found == pytest.approx(value, rel=1e-5, abs=1e-5) for value in eyes)


@settings(max_examples=15)
@given(nose=st.floats(-0.4, 0.4), roll=st.floats(-15, 15))
def test_pose_is_yaw_and_hardly_moves_with_roll(nose: float, roll: float) -> None:
    upright = face(nose=nose)
    rolled = rotate(upright, roll, reshape=False, order=0)
    assert ours(rolled)["pose"] == pytest.approx(ours(upright)["pose"], abs=0.02)
    assert ours(rolled)["eyes"] == pytest.approx(ours(upright)["eyes"], rel=0.08)


def test_a_hidden_nose_mouth_or_hair_is_unknown() -> None:
    mask = face()
    mask[np.isin(mask, (FaceClass.NOSE, FaceClass.UPPER_LIP, FaceClass.LOWER_LIP, FaceClass.INNER_MOUTH))] = 1
    mask[mask == FaceClass.HAIR] = FaceClass.SKIN
    seen = ours(mask)
    for name in ("pose", "mouth", "hair_color", "hair_length"):
        assert np.isnan(seen[name]), name
