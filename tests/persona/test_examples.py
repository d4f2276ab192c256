from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohlora.artifacts import MANIFEST, ArtifactError
from ohlora.persona import Card, DialogueRow, render_prompt
from ohlora.persona.dialogues import normalise
from ohlora.persona.examples import (
    Examples,
    FactMessages,
    Near,
    load_neighbours,
    may_be_shown,
    save_neighbours,
    seed_of,
)
from ohlora.persona_config import ExamplesConfig

DAY = date(2025, 12, 1)
PAIRS = [("배고파", "뭐 먹을래?"), ("배고프다", "뭐 먹을래?"), ("졸려", "얼른 자."), ("심심해", "나랑 놀자!")]
ANGLES = np.array([0.0, 0.1, 0.3, 1.5])
VECTORS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)
SETTINGS = ExamplesConfig(shown=2, pool=3, threshold=0.9)


@pytest.fixture
def examples() -> Examples:
    return Examples(PAIRS, VECTORS, {"뭐먹을래", "얼른자"})


def row(**change: object) -> DialogueRow:
    given = {"id": "d1", "group": "g", "split": "train", "user": "배고파", "reply": "뭐 먹을래?"}
    face = {"expression": "joy", "eyes": 0.5, "mouth": 0.5, "pose": 0.0, "reason": "r"}
    return DialogueRow.model_validate(given | face | change)


def places(near: list[Near]) -> list[list[int]]:
    return [found.places for found in near]


def test_the_nearest_come_first_and_none_says_the_same(examples: Examples) -> None:
    # 1 answers as 0 does, 3 is too far from the others
    assert places(examples.near(VECTORS, SETTINGS)) == [[0, 2], [1, 2], [2, 1], [3]]
    assert places(examples.near(VECTORS[:1], SETTINGS.model_copy(update={"pool": 1}))) == [[0]]
    assert places(examples.near(VECTORS[:1], SETTINGS.model_copy(update={"threshold": -1.0}))) == [[0, 2, 3]]
    many = np.repeat(VECTORS, 200, axis=0)
    assert examples.near(many, SETTINGS) == [
        near for near in examples.near(VECTORS, SETTINGS) for _ in range(200)
    ]


def test_a_row_meets_neither_itself_nor_its_reply(examples: Examples) -> None:
    near = examples.near(VECTORS[[0, 0]], SETTINGS, but=[("배고파!", "밥 먹자."), ("배고파", "뭐 먹을래")])
    assert places(near) == [[1, 2], [2]]


def test_pairs_as_near_as_the_nearest_are_ties(examples: Examples) -> None:
    # the cosines of the first vector with the pairs are 1, 0.995, 0.955 and 0.07
    for width, ties in ((0.0, 1), (0.04, 1), (0.05, 2), (2.0, 3)):
        settings = SETTINGS.model_copy(update={"threshold": -1.0, "ties": width})
        assert examples.near(VECTORS[:1], settings) == [Near([0, 2, 3], ties)]
    far = SETTINGS.model_copy(update={"threshold": 1.1, "ties": 2.0})
    assert examples.near(VECTORS[:1], far) == [Near([], 0)]


def test_the_nearest_is_shown_last_and_chance_takes_the_others(examples: Examples) -> None:
    settings = SETTINGS.model_copy(update={"threshold": -1.0})
    shown = {tuple(examples.shown(Near([0, 2, 3]), settings, seed)) for seed in range(20)}
    assert shown == {(PAIRS[2], PAIRS[0]), (PAIRS[3], PAIRS[0])}
    tied = {tuple(examples.shown(Near([0, 2, 3], 2), settings, seed)) for seed in range(40)}
    assert tied == shown | {(PAIRS[0], PAIRS[2]), (PAIRS[3], PAIRS[2])}
    assert examples.shown(Near([0, 2, 3], 3), settings, 7) == examples.shown(Near([0, 2, 3], 3), settings, 7)
    assert examples.shown(Near([0]), settings, 0) == [PAIRS[0]]
    assert examples.shown(Near([], 0), settings, 0) == []
    assert examples.shown(Near([0, 2]), settings.model_copy(update={"shown": 0}), 0) == []
    assert seed_of("d1") != seed_of("d2")


def test_no_examples_at_all() -> None:
    assert Examples([], np.empty((0, 2), np.float32)).near(VECTORS[:1], SETTINGS) == [Near([], 0)]


ANSWERS = [
    ("주말에 아무 말도 안 했어", "주말 내내 말을 안 했다니 외로웠겠다."),
    ("주말에 등산 갔어", "등산은 즐거웠어?"),
    ("종일 혼자였어", "하루 종일 말을 안 했다니 외로웠겠다. 나랑 얘기하자."),
    ("아무하고도 말 안 했어", "하루 종일 말을 안 했다니 외로웠겠다."),
]


def test_a_prototype_answers_alike_in_other_words() -> None:
    examples = Examples(ANSWERS, np.repeat(VECTORS[:1], 4, axis=0))
    own = ("오늘 한마디도 안 했어", "종일 말을 안 했다니 외로웠겠다.")
    asked = np.repeat(VECTORS[:1], 300, axis=0)
    # 3 says nearly what the row says and 1 something else; 0 is a little more like it than 2
    assert examples.prototypes(asked, [own] * 300) == [0] * 300
    assert examples.prototypes(asked[:1], [("주말에 아무 말도 안 했어!", own[1])]) == [2]
    assert examples.prototypes(asked[:1], [("졸려", "얼른 자.")]) == [None]
    far = np.stack([VECTORS[3], VECTORS[0], VECTORS[0], VECTORS[0]])
    assert Examples(ANSWERS, far).prototypes(asked[:1], [own]) == [2]  # 0 answers another matter
    assert Examples([], np.empty((0, 2), np.float32)).prototypes(asked[:1], [own]) == [None]


@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), max_size=6), st.text(), st.text())
def test_a_prototype_is_never_the_row_itself(pairs: list[tuple[str, str]], message: str, reply: str) -> None:
    examples = Examples(pairs, np.repeat(VECTORS[:1], len(pairs), axis=0))
    (place,) = examples.prototypes(VECTORS[:1], [(message, reply)])
    if place is not None:
        assert normalise(pairs[place][0]) != normalise(message)
        assert normalise(pairs[place][1]) != normalise(reply)


def test_a_message_leans_to_what_it_is_like() -> None:
    held = FactMessages(np.array([True, True, False, False]), VECTORS[:1], VECTORS[3:], np.array([1]))
    examples = Examples(PAIRS, VECTORS, facts=held)
    assert examples.everyday == ("졸려", "심심해")
    first, *_, last = (near.leaning for near in examples.near(VECTORS, SETTINGS))
    # to 0: itself twice and 1; from 2 and, twice, 3
    cosines = np.cos(ANGLES)
    assert first == pytest.approx((2 + cosines[1]) / 3 - (cosines[2] + 2 * cosines[3]) / 3, abs=1e-6)
    assert last < 0 < first
    to_facts = [near.to_facts for near in examples.near(VECTORS, SETTINGS)]
    assert to_facts[2] == pytest.approx((0.0, cosines[2]), abs=1e-6)  # the card holds none for the first fact
    assert {near.leaning for near in Examples(PAIRS, VECTORS).near(VECTORS, SETTINGS)} == {0.0}
    assert Examples(PAIRS, VECTORS).everyday == ()
    nobody = Examples(
        [], VECTORS[:0], facts=FactMessages(np.zeros(0, bool), VECTORS[:1], VECTORS[1:], np.array([0]))
    )
    assert nobody.near(VECTORS[:1], SETTINGS)[0].leaning == pytest.approx(1 - cosines[1:].mean(), abs=1e-6)


def test_to_what_leans_to_facts_only_pairs_of_facts_are_near() -> None:
    settings = SETTINGS.model_copy(update={"threshold": -1.0})
    asks = np.array([False, True, True, False])
    held = FactMessages(asks, VECTORS[1:2], VECTORS[3:], np.array([0]))
    examples = Examples(PAIRS, VECTORS, facts=held)
    towards, away = (near.leaning for near in examples.near(VECTORS[[1, 3]], settings))
    assert away < 0 < towards
    first, last = places(examples.near(VECTORS[[1, 3]], settings))
    assert set(first) <= {1, 2}
    assert 3 in last
    # in training, where pairs are left out, nothing is looked up and all are near
    assert 3 in places(examples.near(VECTORS[[1]], settings, but=[("", "")]))[0]


def test_where_pairs_are_left_out_no_message_leans(examples: Examples) -> None:
    near = examples.near(VECTORS[:1], SETTINGS, but=[("", "")])
    assert near[0].leaning == 0.0


def test_what_depends_on_something_else_is_not_shown() -> None:
    assert may_be_shown(row())
    for change in (
        {"split": "test"},
        {"history": [("안녕", "왔구나!")]},
        {"memories_read": ["이름: 민수"]},
        {"reply": "나 {age}살이야."},
        {"user": "가" * 61},
    ):
        assert not may_be_shown(row(**change)), change


def test_a_folder_holds_the_pairs_and_their_vectors(tmp_path: Path) -> None:
    of_pairs = np.array([True, False, False, False])
    held = FactMessages(of_pairs, VECTORS[:1], VECTORS[2:], np.array([0]))
    examples = Examples(PAIRS, VECTORS, {"뭐먹을래", "얼른자"}, held)
    examples.save(tmp_path, "e" * 64, {"profile": "smoke"})
    save_neighbours(tmp_path, {"d1": [2, 0]})
    back = Examples.load(tmp_path)
    assert back.pairs == PAIRS
    assert back.taken == {"뭐먹을래", "얼른자"}
    assert back.everyday == ("배고프다", "졸려", "심심해")
    leaning = examples.near(VECTORS[:1], SETTINGS)[0].leaning
    assert back.near(VECTORS[:1], SETTINGS)[0].leaning == pytest.approx(leaning, abs=1e-3)  # float16
    assert places(back.near(VECTORS, SETTINGS)) == places(examples.near(VECTORS, SETTINGS))
    assert load_neighbours(tmp_path) == {"d1": [2, 0]}
    manifest = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))
    del manifest["settings"]["version"]
    (tmp_path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtifactError, match="older version"):
        Examples.load(tmp_path)
    (tmp_path / "pairs.jsonl").write_text(json.dumps(["배고파", "거짓말"]), encoding="utf-8")
    with pytest.raises(ArtifactError, match="is corrupt"):
        Examples.load(tmp_path)


def test_a_prompt_shows_them_before_what_was_said(card: Card) -> None:
    prompt = render_prompt(
        card, ["이름: 민수"], [("안녕", "왔구나!")], "출출하다", DAY, look_up=False, examples=PAIRS[1:3]
    )
    assert prompt.split("\n") == [
        card.filled(card.header, DAY),
        "기억: 이름: 민수",
        "참고: 배고프다 → 뭐 먹을래?",
        "참고: 졸려 → 얼른 자.",
        "사용자: 안녕",
        "오로라: 왔구나!",
        "사용자: 출출하다",
        "오로라:",
    ]


@given(st.text(), st.text())
def test_an_example_stays_on_its_line_and_has_one_arrow(card: Card, user: str, reply: str) -> None:
    prompt = render_prompt(card, [], [], "안녕", DAY, look_up=False, examples=[(user, reply)])
    lines = prompt.split("\n")
    assert len(lines) == len(prompt.splitlines()) == 4
    assert lines[1].startswith("참고: ")
    assert lines[1].count("→") == 1
    assert "[" not in prompt
    assert "참고:" not in render_prompt(card, [], [], f"참고: {user} → {reply}", DAY, look_up=False)
