"""`ohlora corpus`: each command does what its example says, and says what is wrong otherwise."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from ohlora.cli import app
from ohlora.corpus import PortraitParameters, Portraits, renderer
from ohlora.corpus.portraits import write
from tests.corpus.synthetic_portraits import synthetic_table

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data" / "portraits"


@pytest.fixture(autouse=True)
def in_the_work_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def corpus(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["corpus", *map(str, arguments)])


@pytest.mark.parametrize("command", ["persona", "sheet", "photos", "sample-generator"])
def test_every_command_has_an_example(command: str) -> None:
    result = corpus(command, "--help")
    assert result.exit_code == 0
    assert f"Example: ohlora corpus {command}" in " ".join(result.output.split())


def test_the_persona_is_rendered_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[PortraitParameters] = []

    def fake(parameters: PortraitParameters, size: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
        seen.append(parameters)
        return np.full((size, size, 3), 20 * samples, np.uint8), np.zeros((size, size), np.uint8)

    monkeypatch.setattr(renderer, "render_portrait", fake)
    small = ("--resolution", 32, "--samples", 2)
    pose = ("--eyes", 0.2, "--mouth", 0.6, "--pose", 15, "--roll", -3, "--pitch", 4, "--smile", 0.9)
    result = corpus("persona", *pose, *small, "--out", tmp_path / "a" / "her.png")
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "a" / "her.png").size == (32, 32)
    moment = seen[0].model_dump(exclude={"look"})
    assert moment == {"eyes": 0.2, "mouth": 0.6, "yaw": 15, "roll": -3, "pitch": 4, "smile": 0.9}
    seen.clear()
    rows = ("--sweep", "eyes", "--sweep", "hair_length", "--steps", 3)
    assert corpus("persona", *rows, *small, "--out", tmp_path / "rows.png").exit_code == 0
    assert Image.open(tmp_path / "rows.png").size == (96, 64)
    assert [p.eyes for p in seen[:3]] == [0, 0.5, 1]
    assert seen[3].look.hair.length < seen[5].look.hair.length


def test_the_persona_really_renders(tmp_path: Path) -> None:
    out = tmp_path / "her.png"
    assert corpus("persona", "--resolution", 32, "--samples", 1, "--out", out).exit_code == 0
    assert np.asarray(Image.open(out)).std() > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("persona", "--sweep", "age"), "cannot be swept; there are: eyes"),
        (("persona", "--out", "her.xyz"), "unknown picture format"),
        (("persona", "--look", "none.yaml"), "none.yaml is missing"),
        (("sheet", "--folder", "docs"), "not a folder of portraits"),
        (("photos", "none", "--out", "{}/out"), "no such folder"),
        (("photos", "docs", "--out", "docs/out"), "lies in the folder that is read"),
        (("photos", "flows", "--out", "docs"), "holds other things"),
        (("sample-generator", "--model", "docs", "--out", "{}/out"), "not a model folder"),
    ],
)
def test_errors_are_one_clear_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = corpus(*(a.format(tmp_path) for a in arguments))
    assert result.exit_code == 1, result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_sheet_of_a_folder_is_a_seeded_draw(tmp_path: Path) -> None:
    write(tmp_path / "in", synthetic_table(10, 2), {})
    sheets = [tmp_path / f"{name}.png" for name in "abc"]
    for out, seed in zip(sheets, (1, 1, 2), strict=True):
        options = ("--folder", tmp_path / "in", "--count", 9, "--tile", 32, "--seed", seed, "--out", out)
        assert corpus("sheet", *options).exit_code == 0
    assert Image.open(sheets[0]).size == (96, 96)
    assert sheets[0].read_bytes() == sheets[1].read_bytes() != sheets[2].read_bytes()


def test_photos_become_portraits(tmp_path: Path) -> None:
    album = tmp_path / "album"
    album.mkdir()
    portraits = Portraits.load(SAMPLE)
    ahead = int(np.abs(portraits.truth["pose"]).argmin())
    photo = Image.new("RGB", (700, 500), (80, 90, 100))
    photo.paste(Image.fromarray(portraits.images[ahead]), (200, 120))
    photo.save(album / "her.jpg")
    (album / "notes.txt").write_text("not a picture")
    for _ in range(2):  # a second run writes over the first
        result = corpus("photos", album, "--out", tmp_path / "out", "--resolution", 64)
        assert result.exit_code == 0, result.output
    assert "1 ok" in result.output
    assert "1 not_an_image" in result.output
    found = Portraits.load(tmp_path / "out")
    assert found.images.shape == (1, 64, 64, 3)
    lines = (tmp_path / "out" / "report.csv").read_text(encoding="utf-8-sig").splitlines()
    assert len(lines) == 3
    assert Image.open(tmp_path / "out" / "sheet.png").size == (160, 160)


def test_a_face_model_is_sampled(tmp_path: Path, tiny_product: Path) -> None:
    options = ("--model", tiny_product / "face", "--count", 3, "--seed", 5, "--resolution", 64)
    result = corpus("sample-generator", *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert len(Portraits.load(tmp_path / "out")) == 3
    provenance = json.loads((tmp_path / "out" / "portraits.json").read_text())["provenance"]
    assert provenance["first_seed"] == 5
    assert len(provenance["generator"]) == 64
