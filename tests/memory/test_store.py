from __future__ import annotations

import threading
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ohlora.memory.encoder import Kind
from ohlora.memory.store import (
    MAX_KEY,
    MAX_VALUE,
    MemoryFormatError,
    MemoryStore,
    canonical,
    clean,
    parse_memory,
)


class Compass:
    """Embeds `… N`, `… NE`, `… E`, `… S` as directions, so that cosines are known by hand."""

    vectors: ClassVar = {"N": (0.0, 1.0), "NE": (0.6, 0.8), "E": (1.0, 0.0), "S": (0.0, -1.0)}

    def __init__(self, digest: str = "compass") -> None:
        self.digest = digest
        self.embedded: list[str] = []

    def embed(self, texts: Sequence[str], kind: Kind = "query") -> np.ndarray:
        self.embedded += texts
        return np.array([self.vectors[text.split()[-1]] for text in texts], dtype=np.float32)


NORTH = np.array([0.0, 1.0], dtype=np.float32)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("sqlite://", Compass(), multi_valued=["취미"])


def texts(store: MemoryStore, session: str, superseded: bool = False) -> list[str]:
    return [memory.text for memory in store.all(session, superseded)]


def test_recall_is_ordered_by_cosine_and_cut_by_threshold_and_count(store: MemoryStore) -> None:
    for text in ("가: E", "나: NE", "다: N", "라: S"):
        store.write("s", text)
    recalled = store.recall("s", NORTH, top_k=3, threshold=0.5)
    assert [r.text for r in recalled] == ["다: N", "나: NE"]
    assert [r.score for r in recalled] == pytest.approx([1.0, 0.8])
    assert [r.text for r in store.recall("s", NORTH, top_k=1, threshold=-1)] == ["다: N"]
    assert store.recall("s", NORTH, top_k=3, threshold=1.01) == []


def test_threshold_itself_is_recalled_and_the_newer_of_equals_leads(store: MemoryStore) -> None:
    store.write("s", "가: E")
    store.write("s", "나: E")
    east = np.array([1.0, 0.0], dtype=np.float32)
    assert [r.text for r in store.recall("s", east, top_k=2, threshold=1.0)] == ["나: E", "가: E"]


def test_same_key_updates_and_the_old_value_is_kept(store: MemoryStore) -> None:
    store.write("s", "사는 곳: N")
    new = store.write("s", "사는  곳 : E")
    assert texts(store, "s") == ["사는 곳: E"]
    assert texts(store, "s", superseded=True) == ["사는 곳: N", "사는 곳: E"]
    assert [m.active for m in store.all("s", superseded=True)] == [False, True]
    assert new.text == "사는 곳: E"
    assert [r.text for r in store.recall("s", NORTH, top_k=5, threshold=-1)] == ["사는 곳: E"]


def test_multi_valued_keys_gain_values_without_doubles(store: MemoryStore) -> None:
    first = store.write("s", "취미: N")
    store.write("s", "취미: E")
    again = store.write("s", "취미: n ")
    assert texts(store, "s") == ["취미: N", "취미: E"]
    assert again.id == first.id
    assert again.updated_at >= first.updated_at


def test_writing_an_old_value_again_makes_it_current(store: MemoryStore) -> None:
    for value in ("N", "E", "N"):
        store.write("s", f"이름: {value}")
    assert texts(store, "s") == ["이름: N"]
    assert len(store.all("s", superseded=True)) == 3


def test_forget_removes_a_memory_and_what_it_superseded(store: MemoryStore) -> None:
    for value in ("N", "E", "S"):
        last = store.write("s", f"이름: {value}")
    store.write("s", "취미: N")
    assert store.forget("s", last.id)
    assert texts(store, "s", superseded=True) == ["취미: N"]
    assert not store.forget("s", last.id)


def test_sessions_never_see_each_other(store: MemoryStore) -> None:
    mine = store.write("mine", "이름: N")
    store.write("yours", "이름: E")
    store.add_turn("mine", "안녕", "안녕!")
    assert texts(store, "yours") == ["이름: E"]
    assert [r.text for r in store.recall("yours", NORTH, top_k=9, threshold=-1)] == ["이름: E"]
    assert store.history("yours", 9) == []
    assert not store.forget("yours", mine.id)
    store.forget_session("yours")
    assert texts(store, "mine", superseded=True) == ["이름: N"]
    assert store.history("mine", 9) == [("안녕", "안녕!")]


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from(["이름", "나이", "취미"]), st.sampled_from("NES")),
        max_size=12,
    )
)
@settings(max_examples=40)
def test_a_store_is_the_last_value_of_each_key_of_each_session(writes: list[tuple[str, str, str]]) -> None:
    store = MemoryStore("sqlite://", Compass(), multi_valued=["취미"])
    expected: dict[str, dict[str, list[str]]] = {"a": {}, "b": {}}
    for session, key, value in writes:
        store.write(session, f"{key}: {value}")
        values = expected[session].setdefault(key, [])
        if key != "취미":
            values.clear()
        if value not in values:
            values.append(value)
    for session, keys in expected.items():
        wanted = sorted(f"{key}: {value}" for key, values in keys.items() for value in values)
        assert sorted(texts(store, session)) == wanted
        recalled = store.recall(session, NORTH, top_k=99, threshold=-1)
        assert sorted(r.text for r in recalled) == wanted
        assert [r.score for r in recalled] == sorted((r.score for r in recalled), reverse=True)
    store.close()


def test_history_is_the_last_turns_oldest_first(store: MemoryStore) -> None:
    for i in range(5):
        store.add_turn("s", f"질문 {i}", f"답 {i}")
    assert store.history("s", 2) == [("질문 3", "답 3"), ("질문 4", "답 4")]
    assert store.history("s", 0) == []


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    store = MemoryStore(url, Compass())
    written = store.write("s", "이름: N")
    store.recall("s", NORTH, 1, -1)
    store.add_turn("s", "안녕", "안녕!")
    store.close()
    encoder = Compass()
    store = MemoryStore(url, encoder)
    assert store.all("s") == [written]
    assert store.history("s", 1) == [("안녕", "안녕!")]
    assert [r.text for r in store.recall("s", NORTH, 1, -1)] == ["이름: N"]
    assert encoder.embedded == []  # the stored embedding was used
    store.close()


def test_another_encoder_embeds_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    store = MemoryStore(url, Compass("old"))
    store.write("s", "이름: N")
    store.recall("s", NORTH, 1, -1)
    store.close()
    encoder = Compass("new")
    store = MemoryStore(url, encoder)
    for _ in range(2):
        assert store.recall("s", NORTH, 1, 0.9)[0].score == pytest.approx(1.0)
    assert encoder.embedded == ["이름: N"]
    store.close()


def test_threads_write_side_by_side(tmp_path: Path) -> None:
    store = MemoryStore(f"sqlite:///{tmp_path / 'chat.db'}", Compass())
    errors: list[Exception] = []

    def write(session: str) -> None:
        try:
            for i in range(15):
                store.write(session, f"키{i}: N")
                store.write("shared", "이름: " + "NES"[i % 3])
                store.recall(session, NORTH, 3, -1)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(f"s{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [len(store.all(f"s{n}")) for n in range(4)] == [15] * 4
    assert len(store.all("shared")) == 1
    store.close()


def test_without_an_encoder_it_keeps_but_does_not_recall() -> None:
    store = MemoryStore("sqlite://")
    store.write("s", "이름: N")
    assert texts(store, "s") == ["이름: N"]
    with pytest.raises(RuntimeError, match="without an encoder"):
        store.recall("s", NORTH, 1, 0)


@pytest.mark.parametrize("memory", ["", "이름", "이름:", ": 민수", "  :  ", "\u0000:\u0007", "\n\n"])
def test_what_is_no_key_and_value_is_refused(store: MemoryStore, memory: str) -> None:
    with pytest.raises(MemoryFormatError):
        store.write("s", memory)


@pytest.mark.parametrize("session", ["", "a\nb", "x" * 129, "a\u0000"])
def test_unusable_session_names_are_refused(store: MemoryStore, session: str) -> None:
    with pytest.raises(MemoryFormatError, match="session name"):
        store.write(session, "이름: 민수")


@given(st.text(max_size=300), st.text(max_size=400))
@settings(max_examples=150)
def test_parsed_memories_are_short_visible_lines(key: str, value: str) -> None:
    try:
        parsed_key, parsed_value = parse_memory(f"{key}:{value}")
    except MemoryFormatError:
        return
    assert 0 < len(parsed_key) <= MAX_KEY
    assert 0 < len(parsed_value) <= MAX_VALUE
    assert ":" not in parsed_key
    for c in parsed_key + parsed_value:
        assert not unicodedata.category(c).startswith("C")
        assert c == " " or not c.isspace()


@given(st.text(max_size=80))
def test_clean_and_canonical_are_idempotent(text: str) -> None:
    assert clean(clean(text)) == clean(text)
    assert " " not in canonical(text)


def test_long_values_are_cut_and_sql_is_data(store: MemoryStore) -> None:
    memory = store.write("s", "메모: " + "가" * 1000)
    assert len(memory.value) == MAX_VALUE
    store.write("s'; DROP TABLE memories; --", "이름: ' OR 1=1 --")
    assert texts(store, "s'; DROP TABLE memories; --") == ["이름: ' OR 1=1 --"]
    assert len(texts(store, "s")) == 1
