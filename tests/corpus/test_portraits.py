"""Storage: what is written is read back, and a damaged folder says what to do."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohlora.artifacts import sha256_file
from ohlora.corpus import CorpusError, Portraits
from ohlora.corpus.brightness import background_brightness
from ohlora.corpus.lengths import hair_length
from ohlora.corpus.portraits import (
    DEFECT_NAMES,
    MANIFEST,
    SCHEMA,
    TRAIT_NAMES,
    TRUTH_NAMES,
    decode_image,
    decode_mask,
    encode_image,
    encode_mask,
    read_table,
    split_of,
    with_splits,
    write,
)
from tests.corpus.synthetic_portraits import synthetic_table


def test_round_trip(tmp_path: Path) -> None:
    table = synthetic_table(people=40, each=4)
    write(tmp_path, table, {"licence": "CC0-1.0"})
    assert len(list(tmp_path.glob("*.parquet"))) == 2
    portraits = Portraits.load(tmp_path)
    assert len(portraits) == 160
    assert portraits.images.shape == (160, 32, 32, 3)
    assert portraits.images.dtype == portraits.masks.dtype == np.uint8
    assert np.array_equal(portraits.masks[7], decode_mask(table["mask"][7].as_py()))
    assert set(portraits.truth) == set(TRUTH_NAMES)
    assert np.array_equal(portraits.truth["eyes"], table["eyes"].to_numpy())
    assert portraits.identity.tolist() == table["identity"].to_pylist()


def test_what_masks_say_is_measured_again_and_what_has_no_mask_is_believed(tmp_path: Path) -> None:
    table = synthetic_table(people=3, each=2)
    variants = pa.array(["drawn"] * 4 + ["photo"] * 2)
    table = table.set_column(table.column_names.index("variant"), "variant", variants)
    write(tmp_path, table, {})
    portraits = Portraits.load(tmp_path)
    brightness = background_brightness(portraits.images, portraits.masks)
    for name, expected in (
        ("hair_length", hair_length(portraits.masks)),
        ("background_mean", brightness[0]),
        ("background_std", brightness[1]),
    ):
        stored = table[name].to_numpy()
        assert not np.isclose(stored[:4], portraits.truth[name][:4]).any()
        np.testing.assert_allclose(portraits.truth[name][:4], expected[:4], rtol=1e-6)
        np.testing.assert_array_equal(portraits.truth[name][4:], stored[4:])


def test_select_and_resize(tmp_path: Path) -> None:
    write(tmp_path, synthetic_table(people=20, each=2), {})
    portraits = Portraits.load(tmp_path)
    test, train = portraits.select("test"), portraits.select("train")
    assert len(test) + len(train) == len(portraits)
    assert not set(test.identity) & set(train.identity)
    assert 0 in train.identity
    hers = portraits.select(portraits.identity == 0)
    assert len(hers) == 2
    small = hers.resized(16)
    assert small.images.shape == (2, 16, 16, 3)
    assert set(np.unique(small.masks)) <= set(np.unique(hers.masks))
    with pytest.raises(CorpusError, match="no portrait"):
        portraits.select(portraits.identity == 999)


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_a_split_belongs_to_an_identity_and_grows_with_its_fraction(identity: int, fraction: float) -> None:
    assert split_of(identity, 0.0) == "train"
    assert split_of(0, fraction) == "train"
    if split_of(identity, fraction) == "test":
        assert split_of(identity, 1.0) == "test"
    else:
        assert split_of(identity, fraction / 2) == "train"


def test_splits_hold_out_about_the_fraction() -> None:
    splits = with_splits(synthetic_table(people=300, each=1), 0.2)["split"].to_pylist()
    assert 0.13 < splits.count("test") / 300 < 0.27


def test_images_keep_their_look_and_masks_every_pixel() -> None:
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 32)
    image = np.stack(
        [np.broadcast_to(ramp, (32, 32)), np.broadcast_to(ramp[:, None], (32, 32)), np.full((32, 32), 90)], -1
    )
    image = image.astype(np.uint8)
    assert np.abs(decode_image(encode_image(image)).astype(int) - image).mean() < 5
    mask = rng.integers(0, 14, (32, 32)).astype(np.uint8)
    assert np.array_equal(decode_mask(encode_mask(mask)), mask)


def test_a_damaged_shard_is_named_with_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, synthetic_table(people=3, each=2), {})
    shard = tmp_path / "portraits-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(CorpusError, match=r"portraits-00000\.parquet is corrupt.*git checkout"):
        Portraits.load(tmp_path)
    shard.unlink()
    with pytest.raises(CorpusError, match=r"portraits-00000\.parquet is missing"):
        Portraits.load(tmp_path)


@pytest.mark.parametrize("manifest", ["{", "[]", '{"format": 99, "files": {}}', '{"files": {}}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, manifest: str) -> None:
    with pytest.raises(CorpusError, match="is missing"):
        Portraits.load(tmp_path)
    (tmp_path / MANIFEST).write_text(manifest, encoding="utf-8")
    with pytest.raises(CorpusError, match="does not parse"):
        Portraits.load(tmp_path)


def test_a_manifest_cannot_reach_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"format": 1, "files": {"../other.parquet": "00"}}', encoding="utf-8")
    with pytest.raises(CorpusError, match="outside"):
        Portraits.load(tmp_path)


def test_an_empty_folder_of_portraits_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, synthetic_table(people=1, each=1).slice(0, 0), {})
    with pytest.raises(CorpusError, match="no portraits"):
        Portraits.load(tmp_path)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    table = synthetic_table(people=1, each=1).drop_columns(["smile"])
    with pytest.raises((ValueError, pa.ArrowInvalid)):
        write(tmp_path, table, {})


def test_sets_and_variants_come_along(tmp_path: Path) -> None:
    table = synthetic_table(people=4, each=2)
    rows = table.to_pylist()
    for row in rows[4:6]:
        row |= {"set": 77, "swept": "eyes", "variant": "rendered"}
    rows[6]["variant"] = "photo"
    write(tmp_path, pa.Table.from_pylist(rows, SCHEMA), {})
    portraits = Portraits.load(tmp_path)
    assert portraits.sets.tolist() == [-1, -1, -1, -1, 77, 77, -1, -1]
    assert portraits.swept.tolist() == ["", "", "", "", "eyes", "eyes", "", ""]
    assert portraits.has_mask.tolist() == [True] * 6 + [False, True]
    part = portraits.select(portraits.sets == 77).resized(16)
    assert part.swept.tolist() == ["eyes", "eyes"]
    assert part.variant.tolist() == ["rendered", "rendered"]


def test_portraits_made_by_hand_belong_to_no_set() -> None:
    pixels = np.zeros((3, 8, 8, 3), np.uint8)
    portraits = Portraits(pixels, pixels[..., 0], {}, np.arange(3), np.full(3, "train"))
    assert portraits.sets.tolist() == [-1] * 3
    assert portraits.swept.tolist() == [""] * 3
    assert portraits.has_mask.all()


def test_rows_without_the_newer_columns_are_filled_on_writing(tmp_path: Path) -> None:
    newer = {"set", "swept", "parameters", "age", "blur"}
    rows = [{k: v for k, v in row.items() if k not in newer} for row in synthetic_table(2, 1).to_pylist()]
    write(tmp_path, pa.Table.from_pylist(rows, SCHEMA), {})
    table = read_table(tmp_path)
    assert table["set"].to_pylist() == [-1, -1]
    assert table["parameters"].to_pylist() == ["", ""]
    assert np.isnan(table["age"].to_numpy()).all()


def test_format_1_is_read_and_what_it_lacks_is_unknown(tmp_path: Path) -> None:
    table = synthetic_table(people=3, each=2)
    old = table.drop_columns(["set", "swept", "parameters", *TRAIT_NAMES, *DEFECT_NAMES])
    pq.write_table(old, tmp_path / "portraits-00000.parquet")
    files = {"portraits-00000.parquet": sha256_file(tmp_path / "portraits-00000.parquet")}
    manifest = {"format": 1, "count": 6, "files": files, "provenance": {}}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    portraits = Portraits.load(tmp_path)
    assert np.array_equal(portraits.truth["smile"], table["smile"].to_numpy())
    assert np.isnan(portraits.truth["melt"]).all()
    assert portraits.sets.tolist() == [-1] * 6
    manifest["format"] = 2  # the same columns in a folder that says it is newer
    (tmp_path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(CorpusError, match="has columns"):
        Portraits.load(tmp_path)


def test_an_unknown_format_says_which_are_read(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"format": 99, "files": {}}', encoding="utf-8")
    with pytest.raises(CorpusError, match="format 99, this version reads 1 or 2"):
        Portraits.load(tmp_path)
