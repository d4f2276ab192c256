import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ohlora.attributes import ATTRIBUTE_NAMES, FaceClass
from ohlora.cli import app
from ohlora.corpus.faces import FoundFace, Framing
from ohlora.labeling.calibration import Calibration, Scale
from ohlora.labeling.files import SIZE, as_it_is, cropped, label_files, listed, write_table
from ohlora.labeling.scoring import Labeler

ROOT = Path(__file__).parents[2]
FRAMING = Framing(np.array([[0.42, 0.45], [0.58, 0.45], [0.5, 0.65]]))


@pytest.fixture(scope="module")
def labeler(models: dict[str, Path]) -> Labeler:
    return Labeler.load(models, "cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One good portrait and what strangers have on their disks."""
    rng = np.random.default_rng(0)
    square = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
    place = tmp_path / "pictures"
    (place / "deeper").mkdir(parents=True)
    Image.fromarray(square).save(place / "good.png")
    Image.fromarray(square).convert("L").save(place / "deeper" / "grey.jpg")
    Image.fromarray(square).convert("CMYK").save(place / "cmyk.jpg")
    Image.fromarray(np.dstack([square, square[..., 0]])).save(place / "alpha.png")
    Image.fromarray(square[:1, :1]).save(place / "dot.png")
    Image.fromarray(square[:, :60]).save(place / "tall.png")
    (place / "empty.png").touch()
    (place / "notes.txt").write_text("not a picture")
    (place / "cut.png").write_bytes((place / "good.png").read_bytes()[:500])
    (place / "=formula.png").write_bytes((place / "good.png").read_bytes())
    Image.new("RGB", (8192, 8192), (200, 180, 160)).save(place / "huge.jpg")
    return place


def test_every_file_gets_scores_or_a_reason(labeler: Labeler, folder: Path, tmp_path: Path) -> None:
    files = [*listed([folder]), ("gone.png", folder / "gone.png")]
    scales = {name: Scale(mean=0.1, std=2.0) for name in ATTRIBUTE_NAMES}
    calibration = Calibration(curves={}, scales=scales, portraits=3)
    rows = list(label_files(files, labeler, calibration, as_it_is, batch=3, masks=tmp_path / "masks"))
    assert [row.file for row in rows] == [name for name, _ in files]
    assert {row.file: row.status for row in rows} == {
        "=formula.png": "ok",
        "alpha.png": "ok",
        "cmyk.jpg": "ok",
        "cut.png": "corrupt",
        "deeper/grey.jpg": "ok",
        "dot.png": "too_small",
        "empty.png": "empty",
        "gone.png": "missing",
        "good.png": "ok",
        "huge.jpg": "ok",
        "notes.txt": "not_an_image",
        "tall.png": "not_square",
    }
    for row in rows:
        assert bool(row.raw) == (row.status == "ok")
        assert row.reason or row.status == "ok"
        if row.raw:
            assert set(row.raw) == set(row.scores) == set(ATTRIBUTE_NAMES)
            assert row.scores["gender"] == pytest.approx((row.raw["gender"] - 0.1) / 2, abs=1e-5)
    write_table(tmp_path / "scores.csv", rows)
    with (tmp_path / "scores.csv").open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    assert table[0]["file"] == "./=formula.png"
    by_name = {row["file"]: row for row in table}
    assert 0 <= float(by_name["good.png"]["gender"]) <= 1
    assert by_name["dot.png"]["gender"] == by_name["dot.png"]["eyes_z"] == ""
    assert "1x1" in by_name["dot.png"]["reason"]
    mask = Image.open(tmp_path / "masks" / "deeper" / "grey.jpg.mask.png")
    assert mask.mode == "P"
    assert mask.size == (SIZE, SIZE)
    assert np.asarray(mask).max() < 14
    assert len(list((tmp_path / "masks").rglob("*.mask.png"))) == 6


def test_batches_change_nothing(labeler: Labeler, folder: Path) -> None:
    files = list(listed([folder]))
    one, many = (list(label_files(files, labeler, None, as_it_is, batch=n)) for n in (1, 16))
    for a, b in zip(one, many, strict=True):
        assert (a.file, a.status) == (b.file, b.status)
        for name, value in a.raw.items():
            assert value == pytest.approx(b.raw[name], rel=1e-3, abs=1e-3, nan_ok=True)
        assert a.scores == {}


def test_names_are_told_apart(folder: Path) -> None:
    names = [
        name for name, _ in listed([folder / "good.png", folder / "deeper" / "grey.jpg", folder / "good.png"])
    ]
    assert names == ["good.png", "grey.jpg", "good.png (2)"]
    both = [name for name, _ in listed([folder / "deeper", folder])]
    assert both[0] == "deeper/grey.jpg"
    assert "pictures/good.png" in both
    assert len(set(both)) == len(both)


def face_at(*points: tuple[float, float]) -> FoundFace:
    return FoundFace(np.array([40.0, 30.0, 160.0, 180.0]), 0.99, np.array(points))


def test_a_portrait_in_our_framing_is_not_cropped_again() -> None:
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    here = face_at(*(tuple(point) for point in FRAMING.landmarks * 256))
    elsewhere = face_at((60, 100), (110, 100), (85, 150))
    kept, status, _ = cropped(lambda _: [here], FRAMING)(image)
    assert status == "ok"
    assert kept is not None
    np.testing.assert_array_equal(kept, image)
    moved, status, _ = cropped(lambda _: [elsewhere], FRAMING)(image)
    assert status == "ok"
    assert moved is not None
    assert (moved != image).any()
    assert cropped(lambda _: [], FRAMING)(image)[1] == "no_face"
    assert cropped(lambda _: [here, here], FRAMING)(image)[1] == "several_faces"
    assert cropped(lambda _: [here], FRAMING)(image[:1, :1])[1] == "too_small"


def test_a_detector_that_fails_costs_one_file(labeler: Labeler, folder: Path) -> None:
    def detector(image: np.ndarray) -> list[FoundFace]:
        raise RuntimeError("stumbled")

    (row,) = label_files([("a", folder / "good.png")], labeler, None, cropped(detector, FRAMING))
    assert (row.status, row.reason) == ("failed", "RuntimeError: stumbled")


def test_the_command_writes_a_table(
    models: dict[str, Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("ohlora.label_cli.model_folders", lambda *_: models)
    out = tmp_path / "deep" / "scores.csv"
    arguments = ["label", str(folder), str(tmp_path / "no.png"), "--crop", "never", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "6 of 12 files scored" in result.output
    assert len(out.read_text(encoding="utf-8-sig").splitlines()) == 13


def test_a_photograph_is_framed_and_its_face_is_found(tmp_path: Path) -> None:
    """Grace Hopper's portrait (public domain) out of matplotlib's sample data: no renderer made it."""
    import matplotlib

    photograph = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    result = CliRunner().invoke(
        app, ["label", str(photograph), "--out", str(tmp_path / "s.csv"), "--masks", str(tmp_path / "masks")]
    )
    assert result.exit_code == 0, result.output
    (row,) = csv.DictReader((tmp_path / "s.csv").read_text(encoding="utf-8-sig").splitlines())
    assert row["status"] == "ok"
    assert float(row["eyes"]) > 0.4
    assert float(row["mouth"]) < 0.2  # her lips are closed
    assert abs(float(row["pose"])) < 15  # she looks into the camera
    mask = np.array(Image.open(tmp_path / "masks" / "grace_hopper.jpg.mask.png"))
    centre = {part: np.argwhere(mask == part).mean(0) for part in FaceClass if (mask == part).any()}
    for part in (FaceClass.LEFT_BROW, FaceClass.RIGHT_BROW, FaceClass.EARS, FaceClass.HAIR, FaceClass.NECK):
        assert part in centre
    assert centre[FaceClass.LEFT_EYE][1] < centre[FaceClass.NOSE][1] < centre[FaceClass.RIGHT_EYE][1]
    assert centre[FaceClass.LEFT_EYE][0] < centre[FaceClass.NOSE][0] < centre[FaceClass.UPPER_LIP][0]
    assert centre[FaceClass.UPPER_LIP][0] < centre[FaceClass.LOWER_LIP][0] < centre[FaceClass.NECK][0]
