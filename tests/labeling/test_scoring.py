import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ohlora.corpus.portraits import SCHEMA, read_table, write
from ohlora.labeling import Labeler, scoring
from ohlora.labeling.scoring import gather, jobs, score_shard, score_shards
from tests.labeling.tiny_parser import tiny_config


@pytest.fixture
def inputs(
    corpus: Path, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Path]:
    """The drawn corpus in three shards; the last is of photos."""
    monkeypatch.setattr("ohlora.corpus.portraits.ROWS_PER_SHARD", 9)
    table = read_table(corpus)
    variants = ["sample"] * 18 + ["photo"] * 6
    index = SCHEMA.get_field_index("variant")
    write(tmp_path / "corpus", table.set_column(index, "variant", [variants]), {})
    return {"corpus": tmp_path / "corpus", **models}


def work(inputs: dict[str, Path], root: Path, *overrides: str) -> list[scoring.ShardJob]:
    return jobs(tiny_config("state=state", "runtime.threads=1", *overrides), inputs, root)


def test_there_is_one_job_per_shard_and_it_is_done_once(inputs: dict[str, Path], tmp_path: Path) -> None:
    some = work(inputs, tmp_path)
    assert len(some) == 3
    for job in some:
        assert not job.is_done
        score_shard(job)
        assert job.is_done
    before = [Path(job.out).stat().st_mtime_ns for job in some]
    for job in work(inputs, tmp_path):
        score_shard(job)
    assert [Path(job.out).stat().st_mtime_ns for job in some] == before


def test_the_number_of_threads_changes_no_bit(inputs: dict[str, Path], tmp_path: Path) -> None:
    alone = work(inputs, tmp_path)
    together = [dataclasses.replace(job, out=job.out.replace(".parquet", "-2.parquet")) for job in alone]
    assert len(list(score_shards(alone, threads=1))) == 3
    scoring._labeler.cache_clear()
    before = torch.get_num_threads()
    list(score_shards(together, threads=2))
    assert torch.get_num_threads() == before
    for one, other in zip(alone, together, strict=True):
        assert Path(one.out).read_bytes() == Path(other.out).read_bytes()


def test_another_model_or_shard_is_another_file(
    inputs: dict[str, Path], models: dict[str, Path], tmp_path: Path
) -> None:
    first = [job.out for job in work(inputs, tmp_path)]
    assert len(set(first)) == 3
    shutil.copytree(models["parser"], tmp_path / "parser")
    manifest = tmp_path / "parser" / "model.json"
    manifest.write_text(manifest.read_text().replace('"resolution": 64', '"resolution": 128'))
    changed = [job.out for job in work({**inputs, "parser": tmp_path / "parser"}, tmp_path)]
    assert not set(first) & set(changed)


def test_what_nobody_drew_a_mask_for_has_no_iou(inputs: dict[str, Path], tmp_path: Path) -> None:
    some = work(inputs, tmp_path)
    stale = Path(some[0].out).with_name("stale.parquet")
    for job in some:
        score_shard(job)
    shutil.copyfile(some[0].out, stale)
    columns = gather(some)
    assert not stale.exists()
    assert len(columns["identity"]) == 24
    photo = columns["variant"] == "photo"
    assert photo.sum() == 6
    for name in ("hit_hair", "union_hair", "true_ours_mouth"):
        assert np.isnan(columns[name][photo]).all()
        assert np.isfinite(columns[name][~photo]).all()
    assert np.isfinite(columns["ours_hair_color"]).all()


def test_a_killed_worker_leaves_no_half_file(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = work(inputs, tmp_path)[0]

    def killed(table: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        score_shard(job)
    assert not job.is_done


def test_reading_needs_pictures(models: dict[str, Path]) -> None:
    labeler = Labeler.load(models, "cpu")
    with pytest.raises(ValueError, match="uint8"):
        labeler.read(np.zeros((1, 8, 8), np.uint8))
