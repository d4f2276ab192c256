"""Reading files of strangers: every mode comes out as RGB, every damage as one reason."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ohlora.corpus.image_files import ImageFileError, image_paths, read_image

GREY = 128


def reason_of(path: Path) -> str:
    with pytest.raises(ImageFileError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert caught.value.reason in str(caught.value)
    return caught.value.status


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return head + struct.pack(">I", 8) + b"IDAT"


@pytest.mark.parametrize(
    ("mode", "value", "name"),
    [
        ("L", GREY, "a.png"),
        ("L", GREY, "a.jpg"),
        ("RGB", (GREY,) * 3, "a.webp"),
        ("CMYK", (0, 0, 0, 255 - GREY), "a.jpg"),
        ("CMYK", (0, 0, 0, 255 - GREY), "a.tif"),
        ("RGBA", (GREY, GREY, GREY, 255), "a.png"),
        ("RGBA", (0, 0, 0, 255 - GREY), "a.png"),
        ("LA", (0, 255 - GREY), "a.png"),
        ("P", None, "a.gif"),
        ("1", None, "a.png"),
        ("I;16", GREY * 257, "a.png"),
        ("I;16", GREY * 257, "a.tif"),
        ("I", GREY * 257, "a.tif"),
        ("F", GREY / 255, "a.tif"),
        ("YCbCr", (GREY, 128, 128), "a.jpg"),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, value: object, name: str) -> None:
    path = tmp_path / name
    if mode == "P":
        Image.new("RGB", (20, 10), (GREY,) * 3).quantize(4).save(path)
    elif mode == "1":
        Image.fromarray(np.indices((10, 20)).sum(0) % 2 == 0).save(path)
    else:
        Image.new(mode, (20, 10), value).save(path)  # type: ignore[arg-type]
    image = read_image(path)
    assert image.shape == (10, 20, 3)
    assert image.dtype == np.uint8
    assert abs(float(image.mean()) - GREY) < 2
    assert np.ptp(image, axis=-1).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == ((20, 30, 3) if orientation < 5 else (30, 20, 3))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1, 1), (1, 1)), ((7680, 4320), (1152, 2048)), ((5000, 1), (1, 2048)), ((300, 2049), (2048, 300))],
)
def test_sizes_are_bounded(tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]) -> None:
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "a.png", compress_level=1)
    assert read_image(tmp_path / "a.png").shape[:2] == expected


def test_a_large_jpeg_keeps_its_proportions(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 3000)[None].repeat(2000, 0).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "a.jpg")
    image = read_image(tmp_path / "a.jpg", longest_side=600)
    assert image.shape == (400, 600, 3)
    assert np.abs(np.diff(image[200, :, 0].astype(int))).max() <= 3


def test_damaged_files_have_a_status_each(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    for suffix in ("jpg", "png", "webp", "gif", "tif"):
        whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
        Image.fromarray(noise).save(whole)
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        assert reason_of(cut) in ("corrupt", "not_an_image"), suffix
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("This is not a picture.")
    (tmp_path / "bomb.png").write_bytes(png_header(100_000, 100_000))
    (tmp_path / "large.png").write_bytes(png_header(10_000, 9_000))
    (tmp_path / "headless.png").write_bytes(png_header(10, 10))
    (tmp_path / "folder.png").mkdir()
    assert reason_of(tmp_path / "empty.png") == "empty"
    assert reason_of(tmp_path / "text.png") == "not_an_image"
    assert reason_of(tmp_path / "bomb.png") == "too_large"
    assert reason_of(tmp_path / "large.png") == "too_large"
    assert reason_of(tmp_path / "headless.png") == "corrupt"
    assert reason_of(tmp_path / "folder.png") == "unreadable"
    assert reason_of(tmp_path / "none.png") == "missing"


def test_postscript_is_not_executed(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    assert reason_of(tmp_path / "a.eps") == "not_an_image"


def test_damaged_metadata_does_not_cost_the_picture(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\xff\xff")
    assert read_image(tmp_path / "a.jpg").shape == (6, 8, 3)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["jpg", "png", "webp", "gif", "tif", "bmp"]),
    damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
    keep=st.floats(0.02, 1),
)
def test_no_bytes_raise_anything_else(
    tmp_path: Path, kind: str, damage: list[tuple[float, int]], keep: float
) -> None:
    path = tmp_path / f"a.{kind}"
    Image.fromarray(np.arange(48 * 3, dtype=np.uint8).reshape(6, 8, 3)).save(path)
    content = bytearray(path.read_bytes())
    for where, value in damage:
        content[int(where * (len(content) - 1))] = value
    path.write_bytes(content[: max(1, int(keep * len(content)))])
    try:
        image = read_image(path)
    except ImageFileError:
        return  # any other exception fails the test
    assert image.dtype == np.uint8
    assert image.ndim == 3


def test_a_folder_lists_all_but_hidden_files(tmp_path: Path) -> None:
    for name in ("b.png", "a.txt", ".hidden", "sub/c.jpg", ".git/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in image_paths(tmp_path)]
    assert names == ["a.txt", "b.png", "sub/c.jpg"]
    with pytest.raises(ImageFileError, match="no such folder"):
        list(image_paths(tmp_path / "none"))
