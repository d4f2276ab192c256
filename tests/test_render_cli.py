"""`ohlora render` writes what it was asked for, the same each time, and refuses what it would ignore."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from ohlora.cli import app
from tests.gan.test_motion import decoded

ROOT = Path(__file__).parents[1]
runner = CliRunner()


@pytest.fixture(autouse=True)
def in_the_repo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def draw(face: Path, out: Path, *arguments: str) -> Result:
    result = runner.invoke(app, ["render", "--model", str(face), "--out", str(out), *arguments])
    assert result.exit_code == 0, result.output
    assert f"wrote {out}" in re.sub(r"\s+", " ", result.output)
    return result


@pytest.fixture
def face(tiny_product: Path) -> Path:
    return tiny_product / "face"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_one_picture(face: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / "new" / f"face{suffix}"
    draw(face, out, "--eyes", "0.9", "--pose", "-10", "--seed", "3")
    with Image.open(out) as picture:
        assert picture.size == (256, 256)
        assert getattr(picture, "n_frames", 1) == 1


def test_a_grid_of_poses_and_one_of_people(face: Path, tmp_path: Path) -> None:
    draw(face, tmp_path / "poses.png", "--grid", "--tile", "32")
    draw(face, tmp_path / "her.png", "--grid", "--tile", "32", "--seed", "4")
    people = ("--seed", "1", "--seed", "2", "--seed", "3")
    draw(face, tmp_path / "people.png", "--grid", "--tile", "32", *people, "--pose", "5")
    poses, other, several = (Image.open(tmp_path / f"{name}.png") for name in ("poses", "her", "people"))
    assert poses.size == other.size
    assert poses.height == several.height > 9 * 32
    assert poses.width - several.width == 2 * 32  # five poses, three people
    assert np.asarray(poses).tobytes() != np.asarray(other).tobytes()


@pytest.mark.parametrize("name", ["eyes", "pose", "hair_color", "background_std"])
def test_a_sweep_as_a_strip(face: Path, tmp_path: Path, name: str) -> None:
    for steps, wide in (("3", "a"), ("5", "b")):
        draw(face, tmp_path / f"{wide}.png", "--sweep", name, "--steps", steps, "--tile", "64")
    a, b = (Image.open(tmp_path / f"{wide}.png") for wide in "ab")
    assert b.width - a.width == 2 * 64
    assert 64 < a.height < 100


@pytest.mark.parametrize("name", ["move.mp4", "frames"])
def test_a_movement_has_its_frames(face: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    draw(face, out, "--from", "joy", "--to", "0.4,0.9,20", "--frames", "11", "--fps", "20")
    frames, seconds = decoded(out)
    assert frames.shape == (11, 256, 256, 3)
    if out.suffix:
        assert seconds == pytest.approx(11 / 20)
    draw(face, out, "--from", "joy", "--to", "sad", "--frames", "6", "--fps", "20", "--back")
    assert len(decoded(out)[0]) == 10


@pytest.mark.parametrize("name", ["move.gif", "move.webp", "sweep.gif", "sweep.webp", "sweep.mp4", "frames"])
def test_the_same_arguments_give_the_same_bytes(face: Path, tmp_path: Path, name: str) -> None:
    if name.startswith("sweep"):
        arguments = ["--sweep", "pose", "--steps", "9", "--fps", "20"]
    else:
        arguments = ["--from", "joy", "--to", "shy", "--frames", "9", "--fps", "20", "--blink-seed", "1"]
    for folder in ("a", "b"):
        draw(face, tmp_path / folder / name, *arguments)
    files = [sorted(path for path in (tmp_path / folder).rglob("*") if path.is_file()) for folder in "ab"]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
    frames, seconds = decoded(tmp_path / "a" / name)
    assert frames.shape[1:] == (256, 256, 3)
    if name != "frames":
        assert seconds == pytest.approx(9 / 20, abs=0.011)


def test_a_blink_shows_and_no_blink_does_not(face: Path, tmp_path: Path) -> None:
    still = ("--from", "neutral", "--to", "neutral", "--frames", "20", "--fps", "20")
    draw(face, tmp_path / "open", *still, "--no-blink")
    draw(face, tmp_path / "blinking", *still)
    calm, blinking = decoded(tmp_path / "open")[0], decoded(tmp_path / "blinking")[0]
    assert (calm == calm[0]).all()
    assert (blinking[0] == calm[0]).all()
    assert (blinking[-1] == calm[0]).all()
    assert (blinking != calm[0]).any()


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--grid", "--sweep", "eyes"], ["--grid and --sweep exclude each other", "choose one"]),
        (["--sweep", "nose"], ["--sweep 'nose'", "hair_color"]),
        (["--sweep", "eyes", "--eyes", "1"], ["--eyes is what --sweep eyes changes"]),
        (["--from", "joy"], ["--to is missing", "--from joy --to sad"]),
        (["--to", "joy"], ["--from is missing"]),
        (["--from", "joy", "--to", "nope"], ["unknown expression 'nope'", "sad", "eyes,mouth,pose"]),
        (["--from", "joy", "--to", "1,2"], ["'1,2' is no expression", "0.7,0.1,-5"]),
        (["--from", "joy", "--to", "0.5,0,50"], ["pose 50 is out of range", "from -35 to 35"]),
        (["--from", "joy", "--to", "nan,0,0"], ["eyes nan is out of range", "from 0 to 1"]),
        (["--from", "joy", "--to", "sad", "--steps", "5"], ["--steps does not go with", "--sweep"]),
        (["--from", "joy", "--to", "sad", "--eyes", "1"], ["--eyes does not go with --from and --to"]),
        (["--from", "joy", "--to", "sad", "--out", "a.png"], ["cannot be written as .png", ".gif", "folder"]),
        (["--from", "joy", "--to", "sad", "--out", "docs"], ["--out docs holds other things"]),
        (["--from", "joy", "--to", "sad", "--out", "Makefile"], ["--out Makefile is a file"]),
        (["--from", "joy", "--to", "sad", "--fps", "60"], ["--fps 60", "at most 50", ".mp4"]),
        (["--from", "joy", "--to", "sad", "--no-blink", "--blink-seed", "1"], ["no effect with --no-blink"]),
        (["--sweep", "eyes", "--fps", "20"], ["--fps does not fit this --out", ".gif"]),
        (["--sweep", "eyes", "--tile", "64", "--out", "a.gif"], ["--tile does not fit this --out", ".png"]),
        (["--seed", "1", "--seed", "2"], ["draws one person", "--grid"]),
        (["--grid", "--pose", "3"], ["--pose is what the columns"]),
        (["--grid", "--out", "docs"], ["--out docs is a folder", "face.png"]),
        (["--out", "face.mp4"], ["cannot be written as .mp4", ".png"]),
        (["--frames", "9"], ["--frames does not go with one picture", "--from and --to"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_conflicts_say_what_to_do(arguments: list[str], fragments: list[str]) -> None:
    result = runner.invoke(app, ["render", *arguments])
    text = re.sub(r"\s+", " ", result.output)
    assert result.exit_code == 1, text
    for fragment in fragments:
        assert fragment in text


@pytest.mark.parametrize(
    "arguments", [["--eyes", "2"], ["--mouth", "-1"], ["--pose", "36"], ["--eyes", "nan"], ["--fps", "0"]]
)
def test_out_of_range_is_refused(arguments: list[str]) -> None:
    result = runner.invoke(app, ["render", *arguments])
    assert result.exit_code == 2
    assert re.search(r"(?:less|greater) than or equal to", re.sub(r"\s+", " ", result.output))


def test_help_shows_each_mode() -> None:
    text = re.sub(r"\s+", " ", runner.invoke(app, ["render", "--help"]).output)
    for mode in ("--grid --out", "--grid --seed 1", "--sweep mouth", "--back --out", "--from joy --to sad"):
        assert mode in text
