"""A folder of photos: a row of the report for every file, portraits of the good ones, no stop."""

import csv
import shutil
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ohlora.corpus import CorpusError, Portraits, photos
from ohlora.corpus.faces import FoundFace, Framing
from ohlora.corpus.image_files import image_paths
from ohlora.corpus.photos import Outcome, collect, framing_of, portrait_of, write_photos, write_report
from tests.corpus.synthetic_portraits import synthetic_table

PLACES = np.array([[0.36, 0.44], [0.64, 0.44], [0.5, 0.72]])
FRAMING = Framing(PLACES)


def face_at(x: float, y: float, size: float) -> FoundFace:
    box = np.array([x, y, x + size, y + size])
    return FoundFace(box, 0.99, PLACES * size + [x, y])


def detector_of(*faces: FoundFace) -> object:
    return lambda image: sorted(faces, key=lambda face: -face.area)


def by_colour(image: np.ndarray) -> list[FoundFace]:
    """As many faces as the first pixel's red says in tens."""
    height, width = image.shape[:2]
    size = min(height, width) / 2
    return [face_at(10 + 0.1 * k, 10, size) for k in range(int(image[0, 0, 0]) // 10)]


@pytest.mark.parametrize(
    ("faces", "status"),
    [
        ([], "no_face"),
        ([face_at(50, 50, 100)], "ok"),
        ([face_at(50, 50, 100), face_at(150, 50, 90)], "several_faces"),
        ([face_at(50, 50, 100), face_at(150, 50, 30)], "ok"),
        ([face_at(50, 50, 8)], "face_too_small"),
        ([face_at(-70, -70, 120)], "cut_off"),
    ],
)
def test_what_becomes_of_a_picture(faces: list[FoundFace], status: str) -> None:
    image = np.full((200, 300, 3), 99, np.uint8)
    portrait, found, reason = portrait_of(image, detector_of(*faces), FRAMING, 64)  # type: ignore[arg-type]
    assert found == status
    assert (portrait is not None) == (status == "ok")
    assert reason or status == "ok"


def test_the_largest_of_several_faces_on_request() -> None:
    image = np.full((200, 300, 3), 99, np.uint8)
    detector = detector_of(face_at(50, 50, 100), face_at(150, 50, 90))
    portrait, status, reason = portrait_of(image, detector, FRAMING, 64, largest=True)  # type: ignore[arg-type]
    assert portrait is not None
    assert (status, reason) == ("ok", "the largest of 2 faces")


def album(folder: Path) -> Path:
    folder.mkdir()
    Image.new("RGB", (120, 100), (10, 0, 0)).save(folder / "good.png")
    Image.new("RGB", (120, 100), (10, 9, 9)).save(folder / "also.png")
    shutil.copy(folder / "good.png", folder / "copy.png")
    Image.new("RGB", (120, 100), (0, 0, 0)).save(folder / "nobody.png")
    Image.new("RGB", (120, 100), (30, 0, 0)).save(folder / "three.png")
    Image.new("RGB", (1, 1)).save(folder / "tiny.png")
    Image.new("RGB", (7680, 4320), (0, 0, 0)).save(folder / "wide.png", compress_level=1)
    (folder / "empty.jpg").touch()
    (folder / "notes.jpg").write_text("not a picture")
    (folder / "cut.png").write_bytes((folder / "nobody.png").read_bytes()[:-60])
    (folder / "sub").mkdir()
    Image.new("CMYK", (120, 100), (0, 255, 255, 240)).save(folder / "sub" / "=sum.tif")
    return folder


EXPECTED = {
    "also.png": "ok",
    "good.png": "duplicate",
    "copy.png": "ok",
    "nobody.png": "no_face",
    "three.png": "several_faces",
    "tiny.png": "too_small",
    "wide.png": "no_face",
    "empty.jpg": "empty",
    "notes.jpg": "not_an_image",
    "cut.png": "corrupt",
    "./sub/=sum.tif": "ok",
}


def test_a_folder_becomes_portraits_and_a_report(tmp_path: Path) -> None:
    folder, output = album(tmp_path / "album"), tmp_path / "out"
    table, outcomes = collect(folder, image_paths(folder), by_colour, FRAMING, 64, 0.5)
    write_photos(output, table, outcomes, {"resolution": 64})
    with (output / "report.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    statuses = {row["file"]: row["status"] for row in rows}
    assert statuses == {name.removeprefix("./"): status for name, status in EXPECTED.items()}
    assert all(row["reason"] for row in rows if row["status"] != "ok")
    portraits = Portraits.load(output)
    assert len(portraits) == 3
    assert set(portraits.variant) == {"photo"}
    assert not portraits.has_mask.any()
    assert not portraits.masks.any()
    assert all(np.isnan(values).all() for values in portraits.truth.values())
    named = {int(row["identity"]) for row in rows if row["identity"]}
    assert named == set(portraits.identity.tolist())


def test_the_same_photo_is_the_same_person_elsewhere(tmp_path: Path) -> None:
    folder = album(tmp_path / "album")
    (tmp_path / "other").mkdir()
    shutil.copy(folder / "also.png", tmp_path / "other" / "renamed.png")
    both = [
        collect(place, [place / name], by_colour, FRAMING, 64, 0.5)[0]
        for place, name in ((folder, "also.png"), (tmp_path / "other", "renamed.png"))
    ]
    assert both[0].equals(both[1]) or both[0].to_pandas().equals(both[1].to_pandas())


def test_an_unforeseen_error_costs_one_file(tmp_path: Path) -> None:
    def stumbles(image: np.ndarray) -> list[FoundFace]:
        if image[0, 0, 1] == 9:
            raise RuntimeError("out of luck")
        return by_colour(image)

    folder = album(tmp_path / "album")
    _, outcomes = collect(folder, image_paths(folder), stumbles, FRAMING, 64, 0.5)
    found = {outcome.file: outcome for outcome in outcomes}
    assert found["also.png"].status == "failed"
    assert "out of luck" in found["also.png"].reason
    assert found["copy.png"].status == "ok"


def test_no_portrait_at_all_is_an_error_with_a_report(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    table, outcomes = collect(tmp_path / "in", [tmp_path / "in" / "a.txt"], by_colour, FRAMING, 64, 0.5)
    with pytest.raises(CorpusError, match=r"none of 1 files.*report\.csv"):
        write_photos(tmp_path / "out", table, outcomes, {})
    assert "not_an_image" in (tmp_path / "out" / "report.csv").read_text(encoding="utf-8-sig")


def test_a_spreadsheet_cannot_be_made_to_calculate(tmp_path: Path) -> None:
    write_report(tmp_path / "a.csv", [Outcome("=1+1.png", "ok", ""), Outcome("b\udcff.png", "ok", "")])
    text = (tmp_path / "a.csv").read_text(encoding="utf-8-sig")
    assert "\n./=1+1.png,ok" in text


def test_memory_does_not_grow_with_the_number_of_photos(tmp_path: Path) -> None:
    for k in range(12):
        Image.new("RGB", (1500, 1000), (10, k, 0)).save(tmp_path / f"{k}.png", compress_level=1)

    def peak(paths: Iterable[Path]) -> int:
        tracemalloc.start()
        collect(tmp_path, paths, by_colour, FRAMING, 64, 0.5)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    paths = list(image_paths(tmp_path))
    peak(paths[:1])  # what is imported and cached once
    assert peak(paths) < 1.3 * peak(paths[:2])


def test_a_sample_without_faces_says_so() -> None:
    with pytest.raises(CorpusError, match="cannot say how to frame photos"):
        framing_of(synthetic_table(4, 2, resolution=64), lambda image: [])


def test_every_status_is_documented() -> None:
    text = (Path(photos.__file__).parents[2] / "docs" / "corpus.md").read_text(encoding="utf-8")
    for status in {*EXPECTED.values(), "missing", "unreadable", "too_large", "face_too_small", "cut_off"}:
        assert f"`{status}`" in text, status
