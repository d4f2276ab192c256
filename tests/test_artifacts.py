"""Nothing loads before its hashes were checked."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohlora.artifacts import ArtifactError, read_manifest, verify, write_manifest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "weights.safetensors").write_bytes(b"0123456789")
    write_manifest(tmp_path, "face", files=["weights.safetensors"], settings={"width": 4})
    return tmp_path


def test_verify_accepts_what_was_written(model: Path) -> None:
    manifest = verify(model, "face")
    assert manifest.settings == {"width": 4}
    assert manifest == read_manifest(model)


@given(position=st.integers(0, 9), value=st.integers(0, 255))
def test_any_changed_byte_is_found(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    folder = tmp_path_factory.mktemp("model")
    content = bytearray(b"0123456789")
    (folder / "w").write_bytes(content)
    write_manifest(folder, "face", files=["w"])
    changed = content[position] != value
    content[position] = value
    (folder / "w").write_bytes(content)
    if changed:
        with pytest.raises(ArtifactError, match="corrupt"):
            verify(folder)
    else:
        verify(folder)


def test_missing_file(model: Path) -> None:
    (model / "weights.safetensors").unlink()
    with pytest.raises(ArtifactError, match="missing"):
        verify(model)


def test_wrong_kind(model: Path) -> None:
    with pytest.raises(ArtifactError, match="'face' model, expected 'voice'"):
        verify(model, "voice")


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"model\.json is missing"):
        verify(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"kind": "face", "files": {}, "extra": 1}'])
def test_broken_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ArtifactError, match="does not parse"):
        verify(tmp_path)


def test_manifest_cannot_point_outside(model: Path) -> None:
    outside = model.parent / "outside"
    outside.write_bytes(b"x")
    text = (model / "model.json").read_text().replace("weights.safetensors", "../outside")
    (model / "model.json").write_text(text)
    with pytest.raises(ArtifactError, match="outside its folder"):
        verify(model)


def test_digest_depends_on_weights_and_settings_only(model: Path) -> None:
    first = read_manifest(model).digest
    write_manifest(model, "face", files=["weights.safetensors"], settings={"width": 4}, provenance={"a": 1})
    assert read_manifest(model).digest == first
    write_manifest(model, "face", files=["weights.safetensors"], settings={"width": 5})
    assert read_manifest(model).digest != first
