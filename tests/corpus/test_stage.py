"""The stage: takes the sample, limits it fairly, continues an interrupted rendering, reports on it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ohlora.attributes import ATTRIBUTE_NAMES
from ohlora.config import load_config
from ohlora.corpus import CorpusError, PortraitParameters, Portraits, rendering
from ohlora.corpus.portraits import SCHEMA, TRUTH_NAMES, encode_mask, write
from ohlora.corpus.rendering import Settings, render_cached, rendered_jobs
from ohlora.corpus.stage import limited, run
from ohlora.stage import Journal, Report
from tests.corpus.synthetic_portraits import synthetic_table

ROOT = Path(__file__).parents[2]


def run_stage(tmp_path: Path, *overrides: str, people: int = 30, each: int = 4) -> tuple[Report, Path]:
    sample, output = tmp_path / "sample", tmp_path / "output"
    if not sample.exists():
        write(sample, synthetic_table(people, each, resolution=64), {})
    state = f"state={tmp_path / 'state'}"
    config = load_config(ROOT, None, [state, "corpus.resolution=64", "runtime.threads=1", *overrides])
    return run(config, {"sample": sample}, {"output": output}, Journal(tmp_path / "journal")), output


def fake_portrait(
    parameters: PortraitParameters, resolution: int, samples_per_pixel: int
) -> tuple[np.ndarray, np.ndarray]:
    value = int(parameters.eyes * 255)
    mask = np.zeros((resolution, resolution), np.uint8)
    mask[resolution // 2 :] = 10
    return np.full((resolution, resolution, 3), value, np.uint8), mask


def test_the_whole_sample_passes_through(tmp_path: Path) -> None:
    report, output = run_stage(tmp_path)
    portraits = Portraits.load(output)
    assert len(portraits) == report.metrics["portraits"] == 120
    assert report.metrics["train"] + report.metrics["test"] == 120
    assert {row["attribute"] for row in report.tables["Attributes"]} == set(ATTRIBUTE_NAMES)
    assert report.metrics["eyes_mean"] == pytest.approx(portraits.truth["eyes"].mean(), abs=1e-3)
    for picture in report.pictures.values():
        Image.open(output / picture).verify()


def test_a_limit_keeps_both_splits_and_the_persona(tmp_path: Path) -> None:
    _, output = run_stage(tmp_path, "corpus.limit=10")
    portraits = Portraits.load(output)
    assert len(portraits) == 10
    assert set(portraits.split) == {"train", "test"}
    assert 0 in portraits.identity
    assert set(portraits.identity[portraits.split == "train"]) - {0}


@pytest.mark.parametrize("limit", [3, 7, 50, 119, 120, 1000])
def test_limits_are_exact(limit: int) -> None:
    table = synthetic_table(30, 4, resolution=8)
    few = limited(table, limit)
    assert few.num_rows == min(limit, 120)
    assert set(few["split"].to_pylist()) == {"train", "test"}


def test_an_impossible_limit_is_an_error() -> None:
    with pytest.raises(CorpusError, match="at least 3"):
        limited(synthetic_table(5, 1, resolution=8), 2)


def test_the_same_settings_write_the_same_bytes(tmp_path: Path) -> None:
    _, output = run_stage(tmp_path, "corpus.limit=12")
    first = {p.name: p.read_bytes() for p in output.glob("*.parquet")}
    run_stage(tmp_path, "corpus.limit=12")
    assert first == {p.name: p.read_bytes() for p in output.glob("*.parquet")}


def test_a_sample_of_larger_pictures_is_resized_and_of_smaller_is_refused(tmp_path: Path) -> None:
    sample = tmp_path / "sample"
    write(sample, synthetic_table(8, 2, resolution=128), {})
    _, output = run_stage(tmp_path)
    assert Portraits.load(output).images.shape == (16, 64, 64, 3)
    write(sample, synthetic_table(8, 2, resolution=32), {})
    with pytest.raises(CorpusError, match=r"32x32.*corpus\.resolution"):
        run_stage(tmp_path)


def test_unknown_classes_are_refused(tmp_path: Path) -> None:
    table = synthetic_table(4, 1, resolution=64)
    masks = table["mask"].to_pylist()
    masks[2] = encode_mask(np.full((64, 64), 77, np.uint8))
    write(tmp_path / "sample", table.set_column(1, "mask", [masks]), {})
    with pytest.raises(CorpusError, match="portrait 2 has class 77"):
        run_stage(tmp_path)


def test_rendering_continues_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[PortraitParameters] = []

    def dies_at_the_sixth(parameters: PortraitParameters, *size: int) -> tuple[np.ndarray, np.ndarray]:
        if len(rendered) == 5:
            raise KeyboardInterrupt
        rendered.append(parameters)
        return fake_portrait(parameters, *size)

    jobs, settings = rendered_jobs(3, 10), Settings(16, 1, 0.2)
    monkeypatch.setattr(rendering, "render_portrait", dies_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        list(render_cached(jobs, settings, tmp_path, processes=1))
    rendered.clear()
    monkeypatch.setattr(
        rendering, "render_portrait", lambda p, r, s: (rendered.append(p), fake_portrait(p, r, s))[1]
    )
    tables = [table for table, _ in render_cached(jobs, settings, tmp_path, processes=1)]
    assert [table.num_rows for table in tables] == [4, 4, 2]
    assert len(rendered) == 6  # the first person was finished
    rendered.clear()
    again = [table for table, _ in render_cached(jobs, settings, tmp_path, processes=1)]
    assert not rendered
    assert all(a.to_pandas().equals(b.to_pandas()) for a, b in zip(tables, again, strict=True))


def test_rendered_portraits_join_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "render_portrait", fake_portrait)
    report, output = run_stage(tmp_path, "corpus.render=6", "corpus.seed=50")
    portraits = Portraits.load(output)
    assert len(portraits) == 126
    assert report.metrics["rendered"] == 6
    assert set(portraits.identity[120:]) == {100_050, 100_051}


def test_rendered_people_are_held_out_in_their_own_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "render_portrait", fake_portrait)
    for fraction, split in (("0.0", "train"), ("1.0", "test")):
        _, output = run_stage(
            tmp_path / split, "corpus.render=8", f"corpus.rendered_test_fraction={fraction}"
        )
        portraits = Portraits.load(output)
        assert set(portraits.split[120:]) == {split}
        assert set(portraits.split[:120]) == {"train", "test"}  # the sample's people stay where they were


def test_sets_defects_and_her_own_portraits_are_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "render_portrait", fake_portrait)
    report, output = run_stage(
        tmp_path,
        "corpus.render=8",
        "corpus.seed=50",
        "corpus.defects=1.0",
        "corpus.counterfactual_sets=1",
        "corpus.swept=[eyes, hair_color]",
        "corpus.sweep_steps=3",
        "corpus.render_persona=2",
        f"corpus.look={ROOT / 'data/persona/look.yaml'}",
    )
    portraits = Portraits.load(output)
    assert len(portraits) == 120 + 8 + 2 * 3 + 2 + 2 * 3
    new = portraits.select(np.arange(120, len(portraits)))
    assert report.metrics["in_sets"] == (new.sets >= 0).sum() == 12
    assert report.metrics["degraded"] == (new.truth["quality"] == 0).sum() == 8
    for number in set(new.sets[new.sets >= 0]):
        members = new.select(new.sets == number)
        assert len(members) == 3
        assert len(set(members.identity)) == len(set(members.swept)) == len(set(members.split)) == 1
        if members.swept[0] == "eyes":
            assert members.truth["eyes"].tolist() == [0, 0.5, 1]
    hers = new.select(new.identity == 0)
    assert len(hers) == 8
    assert (hers.truth["quality"] == 1).all()


def test_sets_of_people_who_are_not_rendered_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"counterfactual_sets is 3.*gives 2 people"):
        run_stage(tmp_path, "corpus.render=8", "corpus.counterfactual_sets=3")


def test_more_folders_join(tmp_path: Path) -> None:
    rows = [row | {"variant": "photo", "identity": 1 << 40} for row in synthetic_table(1, 2, 128).to_pylist()]
    write(tmp_path / "photos", pa.Table.from_pylist(rows, SCHEMA), {})
    _, output = run_stage(tmp_path, f"corpus.folders=[{tmp_path / 'photos'}]")
    portraits = Portraits.load(output)
    assert len(portraits) == 122
    assert portraits.has_mask.sum() == 120
    assert portraits.images.shape[1] == 64
    with pytest.raises(CorpusError, match="none is not a folder of portraits"):
        run_stage(tmp_path, f"corpus.folders=[{tmp_path / 'none'}]")


def test_the_summary_describes_every_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "render_portrait", fake_portrait)
    _, output = run_stage(tmp_path, "corpus.render=8")
    portraits = Portraits.load(output)
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert summary["portraits"] == 128
    assert summary["people"] == 32
    assert set(TRUTH_NAMES) <= set(summary["columns"])
    for name in TRUTH_NAMES:
        column, values = summary["columns"][name], portraits.truth[name]
        known = values[np.isfinite(values)]
        assert column["known"] + column["unknown"] == 128
        assert column["known"] == len(known)
        assert column["mean"] == pytest.approx(known.mean(), rel=1e-4)
        assert column["quantiles"]["0.5"] == pytest.approx(np.median(known), rel=1e-4)
        assert sum(column["histogram"]["counts"]) == len(known)
    assert summary["columns"]["parameters.look.skin"]["known"] == 8
    assert summary["categories"]["variant"] == {"drawn": 120, "rendered": 8}
    assert sum(summary["categories"]["parameters.look.hair.style"].values()) == 8
    pair = summary["correlations"]["gender"]["hair_color"]
    others = portraits.identity != 0
    expected = np.corrcoef(portraits.truth["gender"][others], portraits.truth["hair_color"][others])[0, 1]
    assert pair == pytest.approx(expected, abs=1e-3)
