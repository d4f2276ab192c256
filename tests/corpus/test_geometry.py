"""Head geometry: subdivision, clipping and the packed file."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ohlora.corpus.geometry import (
    clip_triangles,
    load_head,
    normalized,
    subdivide,
    turn_head,
    vertex_normals,
)

CUBE = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
CUBE_QUADS = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])


def test_subdividing_a_cube_gives_the_known_points() -> None:
    operator, quads = subdivide(8, CUBE_QUADS)
    points = operator @ CUBE
    assert points.shape == (8 + 12 + 6, 3)
    assert quads.shape == (24, 4)
    # Rule of Catmull and Clark for a vertex with three faces: (F + 2E + 0·V) / 3, that is 5/9 of the corner.
    assert np.allclose(np.abs(points[:8]), 5 / 9)
    assert np.allclose(np.asarray(operator.sum(1)).ravel(), 1)


def test_the_packed_head_is_complete() -> None:
    head = load_head()
    assert {"head", "eye_subject_left", "teeth_upper", "lash_upper_right"} <= set(head.part)
    assert head.quads.max() < len(head.vertices)
    blink = head.shaped({"unit/eyeBlinkLeft": 1.0}) - head.vertices
    assert np.abs(blink[:, 1]).max() > 0.05  # dm
    with pytest.raises(KeyError):
        head.shaped({"unit/nothing": 1.0})


@settings(max_examples=30)
@given(st.floats(-0.9, 0.9))
def test_clipping_keeps_exactly_the_negative_side(level: float) -> None:
    square = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    triangles = np.array([[0, 1, 2], [0, 2, 3]])
    normals = vertex_normals(square, triangles)
    v, _, t, field = clip_triangles(square, normals, triangles, square[:, 1] - level)
    a, b, c = (v[t[:, k]] for k in range(3))
    area = 0.5 * np.abs(np.cross(b - a, c - a)[:, 2]).sum()
    assert area == pytest.approx(2 * (1 + level), abs=1e-9)
    assert (field[t] <= 1e-12).all()


def test_a_positive_yaw_turns_the_nose_to_the_right_of_the_image() -> None:
    nose = np.array([[0.0, 7.0, 1.5]])
    height = np.array([7.0])
    centre = np.array([0.0, 6.2, 0.3])
    assert turn_head(nose, height, centre, yaw=20, pitch=0, roll=0)[0, 0] > 0.3
    assert turn_head(nose, height, centre, yaw=0, pitch=10, roll=0)[0, 1] > 7.0
    assert np.allclose(turn_head(nose, height, centre, yaw=0, pitch=0, roll=0), nose)


def test_unit_vectors_are_as_numpy_has_them_to_the_last_bit() -> None:
    """Portraits of the same parameters stay the same bytes."""
    vectors = np.random.default_rng(0).normal(0, 1, (500, 4, 3))
    expected = vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-12)
    assert normalized(vectors).tobytes() == expected.tobytes()
    assert not normalized(np.zeros((2, 3))).any()
