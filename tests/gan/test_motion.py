"""Motion obeys its ends, its limits and its seed, and files hold the frames that were written."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from ohlora.attributes import CONDITION_NAMES, Expression
from ohlora.gan.motion import (
    CLOSING,
    OPENING,
    SHUT,
    SWEEP_RANGES,
    blink,
    ease,
    encode,
    lid,
    sweep,
    transition,
)

shares = st.floats(0, 1)
expressions = st.builds(Expression, eyes=shares, mouth=shares, pose=st.floats(-35, 35))
rates = st.floats(1, 60)
counts = st.integers(2, 300)
seeds = st.integers(0, 2**31)


@given(shares, shares)
@example(0.0, 0.9999999999999999)
def test_easing_never_turns_back(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert 0 <= ease(low) <= ease(high) + 1e-12
    assert ease(high) <= 1


def test_easing_starts_and_ends_at_rest() -> None:
    assert (ease(0), ease(0.5), ease(1)) == (0, 0.5, 1)
    h = 1e-4
    for inside, outside in ((h, 0.0), (1 - h, 1.0)):
        assert abs(ease(inside) - ease(outside)) / h < 1e-6
    assert abs(ease(0.5 + h) - ease(0.5 - h)) / (2 * h) == pytest.approx(1.875, abs=1e-3)


def test_a_lid_closes_stays_shut_and_opens() -> None:
    assert lid(-CLOSING) == 1
    assert lid(0) == lid(SHUT) == 0
    assert lid(SHUT + OPENING) == 1
    assert lid(-CLOSING / 2) == pytest.approx(0.5)
    assert 0 < lid(SHUT + OPENING / 4) < lid(SHUT + OPENING / 2) < 1


@given(counts, rates, seeds)
@settings(max_examples=200)
def test_blinks_reach_closed_and_return(frames: int, fps: float, seed: int) -> None:
    factors = blink(frames, fps, seed)
    assert len(factors) == frames
    assert factors == blink(frames, fps, seed)
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[0] == factors[-1] == 1
    if min(factors) < 1:
        assert min(factors) == 0
    if (frames - 1) / fps > CLOSING + SHUT + OPENING + 3 / fps:
        assert min(factors) == 0


def test_blinks_of_a_minute_are_natural_and_differ_by_seed() -> None:
    closings = []
    for seed in range(20):
        factors = blink(1500, 25, seed)
        shut = [a > 0 and b == 0 for a, b in pairwise(factors)]
        closings.append(tuple(np.flatnonzero(shut)))
    assert len(set(closings)) == 20
    assert 13 <= np.mean([len(times) for times in closings]) <= 20
    assert min(np.diff(times).min() for times in closings) >= 25


@given(expressions, expressions, counts, rates, seeds, st.booleans())
@settings(max_examples=100)
def test_a_transition_keeps_ends_limits_and_count(
    start: Expression, end: Expression, frames: int, fps: float, seed: int, blinking: bool
) -> None:
    path = transition(start, end, frames, fps, seed, blinking)
    assert len(path) == frames
    assert path[0] == start
    assert path[-1] == end
    assert path == transition(start, end, frames, fps, seed, blinking)
    for name in ("mouth", "pose") if blinking else ("eyes", "mouth", "pose"):
        a, b = getattr(start, name), getattr(end, name)
        values = np.array([getattr(moment, name) for moment in path])
        assert values.min() >= min(a, b)
        assert values.max() <= max(a, b)
        assert (np.diff(values) * np.sign(b - a) >= -1e-12).all()


def test_a_blink_multiplies_eye_openness() -> None:
    start, end = Expression(eyes=0.8), Expression(eyes=0.4, pose=10)
    still = transition(start, end, 60, 25, blinking=False)
    moving = transition(start, end, 60, 25, seed=3)
    for a, b, factor in zip(still, moving, blink(60, 25, 3), strict=True):
        assert b.eyes == a.eyes * factor
        assert (b.mouth, b.pose) == (a.mouth, a.pose)
    assert min(moment.eyes for moment in moving) == 0
    with pytest.raises(ValueError, match="at least 2 frames"):
        transition(start, end, 1, 25)


@pytest.mark.parametrize("name", CONDITION_NAMES)
def test_a_sweep_changes_one_column_through_its_range(name: str) -> None:
    people = torch.rand(5, len(CONDITION_NAMES), generator=torch.Generator().manual_seed(0))
    rows = sweep(name, 9, people[0], people)
    column = CONDITION_NAMES.index(name)
    low, high = SWEEP_RANGES.get(name, (people[:, column].min().item(), people[:, column].max().item()))
    assert rows.shape == (9, len(CONDITION_NAMES))
    assert rows[0, column].item() == pytest.approx(low)
    assert rows[-1, column].item() == pytest.approx(high)
    assert (rows[:, column].diff() > 0).all()
    rest = [i for i in range(len(CONDITION_NAMES)) if i != column]
    assert (rows[:, rest] == people[0, rest]).all()


def test_a_sweep_refuses_nonsense() -> None:
    people = torch.zeros(1, len(CONDITION_NAMES))
    with pytest.raises(ValueError, match=r"unknown attribute 'nose'.*hair_color"):
        sweep("nose", 3, people[0], people)
    with pytest.raises(ValueError, match="at least 2 steps"):
        sweep("eyes", 1, people[0], people)


def clip(frames: int = 12, side: int = 48) -> NDArray[np.uint8]:
    """A bright disc that crosses a gradient: every frame differs from the one before."""
    y, x = np.mgrid[:side, :side]
    base = np.stack([x * 2, y * 2, np.full_like(x, 90)], -1)
    images = np.repeat(base[None], frames, 0)
    for i in range(frames):
        images[i][(x - 6 - 3 * i) ** 2 + (y - 24) ** 2 < 36] = (240, 200, 180)
    return images.astype(np.uint8)


def decoded(path: Path) -> tuple[NDArray[np.uint8], float]:
    """Frames [n, h, w, 3] and seconds of a file, or frames of a folder."""
    if path.is_dir():
        files = sorted(path.iterdir())
        return np.stack([np.asarray(Image.open(file)) for file in files]), 0.0
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            assert container.duration is not None
            return np.stack(frames), container.duration / 1e6
    with Image.open(path) as picture:
        frames, milliseconds = [], 0
        for number in range(picture.n_frames):
            picture.seek(number)
            frames.append(np.asarray(picture.convert("RGB")))
            milliseconds += picture.info["duration"]
        assert picture.info["loop"] == 0
        return np.stack(frames), milliseconds / 1000


@pytest.mark.parametrize(("name", "error"), [("a.gif", 8), ("a.webp", 4), ("a.mp4", 4), ("frames", 0)])
def test_files_hold_the_frames(tmp_path: Path, name: str, error: float) -> None:
    images = clip()
    encode(images, tmp_path / "one" / name, 24)
    frames, seconds = decoded(tmp_path / "one" / name)
    assert frames.shape == images.shape
    assert np.abs(frames.astype(int) - images).mean() <= error
    if name != "frames":
        assert seconds == pytest.approx(12 / 24, abs=0.011)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.mp4"])
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, name: str) -> None:
    images = clip()
    written, garbage = set(), []
    for seed in range(12):
        # What an encoder reads past its own memory differs from one time to the next.
        garbage.append(np.random.default_rng(seed).bytes(20_000 * seed))
        encode(images, tmp_path / name, 24)
        written.add((tmp_path / name).read_bytes())
    assert len(written) == 1


def test_what_stands_still_stands_still_in_a_gif(tmp_path: Path) -> None:
    images = clip()
    encode(images, tmp_path / "a.gif", 25)
    frames, _ = decoded(tmp_path / "a.gif")
    still = (images == images[0]).all((0, 3))
    assert still.any()
    assert (frames[:, still] == frames[0, still]).all()


def test_equal_frames_last_as_long(tmp_path: Path) -> None:
    images = clip(6).repeat(3, axis=0)
    for name in ("a.gif", "a.webp"):
        encode(images, tmp_path / name, 30)
        assert decoded(tmp_path / name)[1] == pytest.approx(18 / 30, abs=0.011)


def test_a_folder_forgets_older_frames_only(tmp_path: Path) -> None:
    encode(clip(5), tmp_path, 25)
    (tmp_path / "notes.txt").write_text("mine")
    encode(clip(3), tmp_path, 25)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["frame-0000.png", "frame-0001.png", "frame-0002.png", "notes.txt"]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown format '\.avi'"):
        encode(clip(2), tmp_path / "a.avi", 25)
    with pytest.raises(ValueError, match="at most 50"):
        encode(clip(2), tmp_path / "a.gif", 60)
    with pytest.raises(ValueError, match="even sides"):
        encode(clip(2, 47), tmp_path / "a.mp4", 25)
    with pytest.raises(ValueError, match="no frames"):
        encode(clip(2)[:0], tmp_path / "a.gif", 25)
