"""Counterfactual sets: one attribute moves, in its own parameters, and nothing else does."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ohlora.attributes import CONDITION_NAMES, FaceClass
from ohlora.corpus.counterfactuals import SWEEPS, differences, set_number, sweepable, swept
from ohlora.corpus.parameters import PortraitParameters, sample_parameters
from ohlora.corpus.renderer import paint_background, render_portrait
from ohlora.corpus.rendering import ground_truth, person_set_jobs

ATTRIBUTES = st.sampled_from(CONDITION_NAMES)
SEEDS = st.integers(0, 1 << 20)


@settings(max_examples=60)
@given(ATTRIBUTES, SEEDS, st.integers(2, 9))
def test_everything_else_is_equal_within_a_set(attribute: str, seed: int, steps: int) -> None:
    members = swept(sample_parameters(seed), attribute, steps)
    assert len(members) == steps
    for first, second in itertools.pairwise(members):
        moved = differences(first, second)
        assert moved
        assert moved <= SWEEPS[attribute].fields - {"look.hair.style"}  # the same style in a whole set
    for member in members:  # values stay within what a portrait may have
        PortraitParameters.model_validate(member.model_dump())
        outside = differences(member, sample_parameters(seed)) - SWEEPS[attribute].fields
        assert not outside


@settings(max_examples=40)
@given(SEEDS)
def test_sweeps_are_monotone_in_what_they_are_called(seed: int) -> None:
    parameters = sample_parameters(seed)

    def rises(attribute: str, measure: object) -> bool:
        values = [measure(p) for p in swept(parameters, attribute, 5)]  # type: ignore[operator]
        return bool((np.diff(values) > 0).all())

    assert rises("eyes", lambda p: p.eyes)
    assert rises("mouth", lambda p: p.mouth)
    assert rises("pose", lambda p: p.yaw)
    assert rises("hair_color", lambda p: float(np.mean(p.look.hair.color)))
    assert rises("hair_color", lambda p: float(np.mean(p.look.hair.tint)))
    assert rises("hair_length", lambda p: p.look.hair.length)
    assert rises("background_mean", lambda p: float(paint_background(p.look, 32)[:16].mean()))
    assert rises("background_std", lambda p: float(paint_background(p.look, 32)[:16].mean(-1).std()))


@settings(max_examples=25)
@given(SEEDS)
def test_clouds_grow_while_the_mean_of_the_wall_stays_near(seed: int) -> None:
    members = swept(sample_parameters(seed), "background_std", 4)
    walls = [paint_background(member.look, 64)[:32].mean() for member in members]
    assert np.ptp(walls) < 0.02


def test_the_jobs_of_a_person_share_identity_and_have_a_set_each() -> None:
    jobs = person_set_jobs(3, 100_003, "rendered", ["pose", "eyes"], 4)
    assert [job.swept for job in jobs] == ["eyes"] * 4 + ["pose"] * 4
    assert {job.set for job in jobs} == {set_number(100_003, "eyes"), set_number(100_003, "pose")}
    assert {job.identity for job in jobs} == {100_003}
    assert len({job.moment for job in jobs}) == 8
    assert all(job.defect is None for job in jobs)
    assert jobs == person_set_jobs(3, 100_003, "rendered", ["eyes", "pose"], 4)
    others = person_set_jobs(4, 100_004, "rendered", CONDITION_NAMES, 2)
    assert not {job.set for job in jobs} & {job.set for job in others}
    assert len({job.set for job in others}) == len(CONDITION_NAMES)


def test_what_cannot_be_swept_is_an_error() -> None:
    with pytest.raises(ValueError, match="gender cannot be swept; there are: eyes, mouth"):
        sweepable(["eyes", "gender"])
    with pytest.raises(ValueError, match="'age' cannot be swept"):
        swept(sample_parameters(1), "age", 3)
    with pytest.raises(ValueError, match="at least 2"):
        swept(sample_parameters(1), "eyes", 1)


def test_rendered_members_differ_where_they_should_only() -> None:
    first, last = swept(sample_parameters(11), "mouth", 2)
    (image, mask), (other, other_mask) = (render_portrait(p, 48, 1) for p in (first, last))
    upper = slice(0, 20)
    wall = (mask == FaceClass.BACKGROUND) & (other_mask == FaceClass.BACKGROUND)
    wall[20:] = False
    apart = np.abs(image[wall].astype(int) - other[wall])
    assert np.percentile(apart, 99) <= 2  # the denoiser looks across the edge of the hair
    assert (mask[upper] == other_mask[upper]).mean() > 0.97
    truths = [ground_truth(p, i, m) for p, i, m in ((first, image, mask), (last, other, other_mask))]
    assert [truth["mouth"] for truth in truths] == [0, 1]
    assert truths[0]["hair_color"] == pytest.approx(truths[1]["hair_color"], abs=12)


@pytest.mark.parametrize("seed", [3, 8, 21])
@pytest.mark.parametrize("attribute", ["hair_color", "hair_length"])
def test_hair_that_is_swept_is_seen_to_change(attribute: str, seed: int) -> None:
    """Not only the parameters: the measured truth of rendered pictures follows, of nobody in particular."""
    seen = []
    for member in swept(sample_parameters(seed), attribute, 4):
        image, mask = render_portrait(member, 96, 1)
        seen.append(ground_truth(member, image, mask)[attribute])
    steps = np.diff(seen)
    assert (steps > -0.03 * np.ptp(seen)).all(), seen  # at this size a strand is a pixel
    if attribute == "hair_length":
        assert (steps > 0).all(), seen  # no step is beyond the edge of the picture
    assert seen[-1] - seen[0] > (60 if attribute == "hair_color" else 0.1), seen
