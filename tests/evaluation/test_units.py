import numpy as np
import pytest

from ohlora.attributes import CONDITION_NAMES
from ohlora.evaluation.units import EXPRESSION_RANGE, LIMITS, Units, training_people
from tests.evaluation.fakes import portraits


def test_z_and_raw_are_inverse_and_follow_the_training_people() -> None:
    corpus = portraits()
    units = Units.of(corpus)
    rows = corpus.split == "train"
    for i, name in enumerate(CONDITION_NAMES):
        values = corpus.truth[name][rows].astype(np.float64)
        assert units.mean[i] == pytest.approx(values.mean())
        assert units.std[i] == pytest.approx(values.std())
    z = np.array([[0.5, -0.5, 0.1, 0.2, -0.3, 0.4, -0.1]])
    wishes = units.requests(z)
    assert not wishes.clamped.any()
    np.testing.assert_allclose(wishes.z, z)
    np.testing.assert_allclose(units.z(wishes.raw), z)


def test_a_wish_beyond_what_a_face_can_show_is_clamped_and_compared_as_such() -> None:
    units = Units.of(portraits())
    z = np.zeros((2, 7))
    z[0, CONDITION_NAMES.index("pose")] = 9.0
    z[1, CONDITION_NAMES.index("mouth")] = -9.0
    wishes = units.requests(z)
    assert wishes.clamped.sum() == 2
    assert wishes.raw[0, 2] == LIMITS["pose"][1]
    assert wishes.raw[1, 1] == 0
    np.testing.assert_allclose(wishes.z[0, 2], (35 - units.mean[2]) / units.std[2])


def test_neither_oh_lora_nor_men_nor_defects_count() -> None:
    corpus = portraits()
    corpus.identity[corpus.identity == 1] = 0
    corpus.truth["gender"][corpus.identity == 2] = 0
    corpus.truth["quality"][corpus.identity == 4] = 0
    assert set(np.unique(corpus.identity[training_people(corpus)])) == {
        5,
        7,
        8,
        10,
        11,
        13,
        14,
        16,
        17,
        19,
        20,
        22,
        23,
    }


def test_an_unknown_or_constant_label_has_the_units_of_its_limits() -> None:
    corpus = portraits()
    corpus.truth["eyes"][:] = 0.5
    corpus.truth["hair_color"][:] = np.nan
    units = Units.of(corpus)
    assert units.mean[0] == 0.5
    assert units.std[0] == pytest.approx(1 / np.sqrt(12))
    assert (units.mean[3], units.low[3], units.high[3]) == (127.5, 0, 255)
    for i, name in enumerate(EXPRESSION_RANGE):
        assert (units.low[i], units.high[i]) == EXPRESSION_RANGE[name]
