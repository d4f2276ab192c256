"""Parameters of portraits: drawn from a seed alone, always within bounds; the persona's look is data."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ohlora.corpus.geometry import load_head
from ohlora.corpus.parameters import (
    FACE_SHAPE,
    FALLING_STYLES,
    Fringe,
    HairStyle,
    PortraitParameters,
    expression_weights,
    persona_parameters,
    sample_parameters,
    shape_weights,
)
from ohlora.corpus.rendering import person_jobs, persona_jobs, rendered_jobs

LOOK = Path(__file__).parents[2] / "data" / "persona" / "look.yaml"
FEW = settings(max_examples=30)
SEEDS = st.integers(min_value=0, max_value=2**31)


@FEW
@given(SEEDS)
def test_a_seed_says_everything(seed: int) -> None:
    assert sample_parameters(seed) == sample_parameters(seed)
    assert sample_parameters(seed) != sample_parameters(seed + 1)


@FEW
@given(SEEDS)
def test_drawn_parameters_are_valid_and_name_existing_targets(seed: int) -> None:
    parameters = sample_parameters(seed)
    assert PortraitParameters.model_validate_json(parameters.model_dump_json()) == parameters
    assert abs(parameters.yaw) <= 30
    assert set(parameters.look.shape) == set(FACE_SHAPE)
    names = set(shape_weights(parameters.look)) | set(expression_weights(parameters))
    assert names <= set(load_head().targets)


@FEW
@given(st.floats(0, 1), st.floats(0, 1))
def test_lids_close_and_jaw_opens_monotonically(a: float, b: float) -> None:
    low, high = sorted((a, b))
    look = sample_parameters(0).look
    weights = [expression_weights(PortraitParameters(look=look, eyes=v, mouth=v)) for v in (low, high)]
    lid = [w.get("unit/eyeBlinkLeft", 0.0) - w.get("unit/eyeWideLeft", 0.0) for w in weights]
    assert lid[0] >= lid[1]
    assert weights[0].get("unit/jawOpen", 0.0) <= weights[1].get("unit/jawOpen", 0.0)


def test_persons_keep_their_look_and_change_their_moment() -> None:
    jobs = person_jobs(5, identity=9, variant="sample")
    assert len({job.parameters.look.model_dump_json() for job in jobs}) == 1
    assert len({(job.parameters.eyes, job.parameters.yaw) for job in jobs}) == len(jobs)
    assert rendered_jobs(7, 6)[4:] == rendered_jobs(8, 4)[:2]


def test_men_are_skipped_where_only_women_are_wanted() -> None:
    jobs = rendered_jobs(7, 24, sets=2, attributes=["eyes"], steps=2, women_only=True)
    assert all(job.parameters.look.female == 1 for job in jobs)
    assert len({job.identity for job in jobs}) == 6
    everybody = rendered_jobs(7, 80)
    women = [job for job in everybody if job.parameters.look.female == 1]
    assert len(women) < len(everybody)
    assert jobs[:24] == women[:24]  # the same people as without the setting


def test_hair_does_not_follow_gender() -> None:
    looks = [sample_parameters(seed).look for seed in range(600)]
    female = np.array([look.female for look in looks])
    assert 0.53 < female.mean() < 0.67
    falls = [look.hair.style in FALLING_STYLES for look in looks]
    short = [look.hair.style in (HairStyle.CREW, HairStyle.CROP) for look in looks]
    fringe = [look.hair.fringe is not Fringe.NONE for look in looks]
    for value in (falls, short, fringe, [look.hair.length for look in looks]):
        assert abs(np.corrcoef(female, np.array(value, float))[0, 1]) < 0.12


def test_every_style_fringe_and_age_occurs() -> None:
    looks = [sample_parameters(seed).look for seed in range(600)]
    assert {look.hair.style for look in looks} == set(HairStyle)
    assert {look.hair.fringe for look in looks} == set(Fringe)
    ages = np.array([look.age for look in looks])
    assert ages.min() < 20
    assert ages.max() > 52
    for worn in ([look.glasses for look in looks], [look.earrings for look in looks]):
        assert 0.1 < np.mean([w is not None for w in worn]) < 0.4


def test_the_persona_covers_every_eye_and_mouth_opening_and_pose() -> None:
    parameters = [job.parameters for job in persona_jobs(persona_parameters(LOOK), 84)]
    eyes = np.array([p.eyes for p in parameters])
    mouth = np.array([p.mouth for p in parameters])
    yaw = np.array([p.yaw for p in parameters])
    assert eyes.min() == 0
    assert eyes.max() > 0.9
    assert 0.25 < (mouth == 0).mean() < 0.55
    assert yaw.min() < -20
    assert yaw.max() > 20
    assert np.abs(np.corrcoef([eyes, mouth, yaw]) - np.eye(3)).max() < 0.3


def test_a_look_that_does_not_parse_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing.*git checkout"):
        persona_parameters(tmp_path / "look.yaml")
    look = yaml.safe_load(LOOK.read_text(encoding="utf-8"))
    look["look"]["hair"]["length"] = 7
    (tmp_path / "look.yaml").write_text(yaml.safe_dump(look), encoding="utf-8")
    with pytest.raises(ValueError, match=r"look\.hair\.length"):
        persona_parameters(tmp_path / "look.yaml")
    look["look"]["hair"]["length"] = 0.7
    look["look"]["shape"] = {"nose/long": 0.5}
    (tmp_path / "look.yaml").write_text(yaml.safe_dump(look), encoding="utf-8")
    with pytest.raises(ValueError, match="nose/long"):
        persona_parameters(tmp_path / "look.yaml")
