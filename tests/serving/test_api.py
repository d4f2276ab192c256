"""The API in process: what it refuses and how, who may call it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from ohlora.artifacts import ArtifactError
from ohlora.chat import Companion
from ohlora.llm import Speech
from serving import ROOT
from serving.api import MAX_BODY, ApiError, ChatRequest, _events, create_app, is_loopback, parse_chat
from serving.engine import Engine
from serving.journal import describe

HERE = "http://localhost"


@pytest.fixture(scope="module")
def engine(tiny_product: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    database = f"sqlite:///{tmp_path_factory.mktemp('chat') / 'chat.db'}"
    engine = Engine(lambda: Companion.load(tiny_product, database, "cpu"))
    engine._loading.result(timeout=60)
    yield engine
    engine.close()


def client(engine: Engine, token: str = "", address: str = "127.0.0.1", url: str = HERE) -> TestClient:
    return TestClient(create_app(lambda: engine, token), base_url=url, client=(address, 5000))


def code(response: Any) -> tuple[int, str]:
    error = response.json()["error"]
    assert error["message"]
    return response.status_code, error["code"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "bad_json"),
        (b"{", "bad_json"),
        (b"[]", "bad_json"),
        (b"[" * 20_000, "bad_json"),
        (b'{"session": "a", "message": ' + b"9" * 5_000 + b"}", "bad_json"),
        (b'{"session": "a", "message": "\xff\xfe"}', "bad_encoding"),
        (b'{"session": "a", "message": "\\ud800"}', "bad_encoding"),
        (b'{"session": "a"}', "missing_field"),
        (b'{"message": "a"}', "missing_field"),
        (b'{"session": "a", "message": 3}', "bad_field"),
        (b'{"session": "a", "message": null}', "bad_field"),
        (b'{"session": "a", "message": "a", "seed": -1}', "bad_field"),
        (b'{"session": "a", "message": "a", "seed": 1.5}', "bad_field"),
        (b'{"session": "a", "message": "a", "admin": true}', "unknown_field"),
        (b'{"session": "", "message": "a"}', "bad_session"),
        (b'{"session": "a\\n", "message": "a"}', "bad_session"),
        (b'{"session": "../x", "message": "a"}', "bad_session"),
        (b'{"session": "' + b"a" * 65 + b'", "message": "a"}', "bad_session"),
    ],
)
def test_a_bad_body_is_refused_with_its_reason(engine: Engine, body: bytes, expected: str) -> None:
    response = client(engine).post("/api/chat", content=body, headers={"Content-Type": "application/json"})
    assert code(response) == (400, expected)


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(body: bytes) -> None:
    with contextlib.suppress(ApiError):
        assert isinstance(parse_chat(body), ChatRequest)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", "empty"), ("  \n\t ", "empty"), ("가" * 10_000, "too_long"), ("a\0b", "bad_text")],
)
def test_a_message_that_the_chat_refuses_is_a_400_in_korean(engine: Engine, text: str, expected: str) -> None:
    response = client(engine).post("/api/chat", json={"session": "a", "message": text})
    assert code(response) == (400, expected)
    assert any("가" <= letter <= "힣" for letter in response.json()["error"]["message"])


def test_a_large_body_is_refused_whatever_it_says_its_length_is(engine: Engine) -> None:
    app = client(engine)
    body = b'{"session": "a", "message": "' + b"a" * MAX_BODY + b'"}'
    headers = {"Content-Type": "application/json"}
    assert code(app.post("/api/chat", content=body, headers=headers)) == (413, "body_too_large")
    pieces = (body[start : start + 1024] for start in range(0, len(body), 1024))  # no Content-Length
    assert code(app.post("/api/chat", content=pieces, headers=headers)) == (413, "body_too_large")


def test_another_sites_form_cannot_post(engine: Engine) -> None:
    body = '{"session": "a", "message": "안녕"}'
    response = client(engine).post("/api/chat", content=body, headers={"Content-Type": "text/plain"})
    assert code(response) == (415, "bad_content_type")


@pytest.mark.parametrize("query", ["eyes=2", "mouth=-1", "pose=90", "eyes=nan", "pose=inf", "eyes=wide"])
def test_an_impossible_face_is_refused(engine: Engine, query: str) -> None:
    assert code(client(engine).get(f"/api/face?{query}")) == (400, "bad_field")


def test_the_wrong_method_is_said_so(engine: Engine) -> None:
    assert code(client(engine).get("/api/chat")) == (405, "bad_method")


def test_a_seed_makes_a_turn_repeatable(engine: Engine) -> None:
    app = client(engine)
    first, second = (
        app.post("/api/chat", json={"session": session, "message": "안녕", "seed": 7}).json()
        for session in ("seed-1", "seed-2")
    )
    assert first["text"] == second["text"]
    assert first["image"] == second["image"]


def told(response: Any) -> list[tuple[str, dict[str, Any]]]:
    """Server-sent events as (name, data)."""
    blocks = response.text.removesuffix("\n\n").split("\n\n")
    return [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in (block.split("\n") for block in blocks)
    ]


def test_a_stream_tells_what_chat_answers(engine: Engine) -> None:
    app = client(engine)
    body = {"message": "안녕", "seed": 7}
    whole = app.post("/api/chat", json={"session": "whole", **body}).json()
    response = app.post("/api/chat/stream", json={"session": "streamed", **body})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    events = told(response)
    names = [name for name, _ in events]
    assert names[0] == "speech"
    assert names[-2:] == ["expression", "turn"]
    assert set(names[:-2]) <= {"speech", "memory"}
    assert "".join(data["text"] for name, data in events if name == "speech") == whole["text"]
    assert [data["text"] for name, data in events if name == "memory"] == whole["memories_written"]
    assert dict(events)["expression"] == whole["expression"]
    turn = dict(events)["turn"]
    assert {**turn, "seconds": 0} == {**whole, "seconds": 0}


def test_a_stream_is_refused_like_chat(engine: Engine) -> None:
    app = client(engine)
    path = "/api/chat/stream"
    assert code(app.post(path, json={"session": "a", "message": " "})) == (400, "empty")
    assert code(app.post(path, content=b"{", headers={"Content-Type": "application/json"})) == (
        400,
        "bad_json",
    )
    assert code(app.post(path, content=b"{}", headers={"Content-Type": "text/plain"}))[0] == 415
    locked = client(engine, token="s3cret-token")
    assert code(locked.post(path, json={"session": "a", "message": "안녕"})) == (401, "unauthorized")


class Talker:
    """A companion that says a word at a time, waits in between, and knows whether it was stopped."""

    def __init__(self, failing: bool = False) -> None:
        self.failing = failing
        self.go = threading.Semaphore(0)
        self.said = 0
        self.stopped = threading.Event()

    def stream_turn(self, *_: object) -> Iterator[Speech]:
        try:
            for _ in range(50):
                yield Speech("말")
                self.said += 1
                assert self.go.acquire(timeout=30)
                if self.failing:
                    raise RuntimeError("what somebody wrote")
        finally:
            self.stopped.set()


def test_a_failure_after_the_first_word_is_an_event() -> None:
    talker = Talker(failing=True)
    talker.go.release(50)
    engine = Engine(lambda: talker)  # type: ignore[arg-type, return-value]
    engine._loading.result(timeout=10)
    events = told(client(engine).post("/api/chat/stream", json={"session": "a", "message": "안녕"}))
    assert events[0] == ("speech", {"text": "말"})
    name, data = events[-1]
    assert name == "error"
    assert data["error"]["code"] == "internal"
    assert "somebody" not in data["error"]["message"]
    engine.close()


def test_who_goes_away_stops_her_talking() -> None:
    talker = Talker()
    engine = Engine(lambda: talker)  # type: ignore[arg-type, return-value]
    engine._loading.result(timeout=10)

    async def listen_briefly() -> str:
        events = _events(engine, ChatRequest(session="a", message="안녕"))
        first = await anext(events)
        await events.aclose()
        return first

    assert asyncio.run(listen_briefly()).startswith("event: speech\n")
    talker.go.release(50)
    assert talker.stopped.wait(10)
    assert talker.said <= 1
    engine.close()


def test_memories_are_those_of_the_session(engine: Engine) -> None:
    app = client(engine)
    assert app.get("/api/memories?session=nobody").json() == {"memories": []}
    assert code(app.get("/api/memories")) == (400, "missing_field")
    assert code(app.get("/api/memories?session=a/b")) == (400, "bad_session")


def test_with_a_token_every_call_needs_it(engine: Engine) -> None:
    app = client(engine, token="s3cret-token", address="192.0.2.7", url="http://chat.example")
    for path in ("/api/greeting", "/api/face", "/api/memories?session=a"):
        assert code(app.get(path)) == (401, "unauthorized")
        assert code(app.get(path, headers={"Authorization": "Bearer wrong"})) == (401, "unauthorized")
        assert code(app.get(path, headers={"Authorization": "Basic s3cret-token"})) == (401, "unauthorized")
        assert app.get(path, headers={"Authorization": "Bearer s3cret-token"}).status_code == 200
    assert code(app.post("/api/chat", json={"session": "a", "message": "안녕"})) == (401, "unauthorized")
    assert app.get("/").status_code == 200  # the page asks for the token


def test_without_a_token_only_this_machine_is_answered(engine: Engine) -> None:
    assert client(engine).get("/api/greeting").status_code == 200
    assert client(engine, url="http://[::1]:3000").get("/api/greeting").status_code == 200
    elsewhere = client(engine, address="192.0.2.7")
    assert code(elsewhere.get("/api/greeting")) == (403, "token_not_configured")
    rebound = client(engine, url="http://attacker.example")
    assert code(rebound.get("/api/greeting")) == (403, "token_not_configured")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("localhost", True), ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True)),
        *(("::ffff:127.0.0.1", True), ("0.0.0.0", False), ("192.168.0.2", False), ("", False)),
        *(("localhost.example", False), ("127.0.0.1.example", False), ("::ffff:8.8.8.8", False)),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_the_page_may_run_its_own_scripts_only(engine: Engine) -> None:
    response = client(engine).get("/")
    assert "script-src 'self';" in response.headers["content-security-policy"]
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert client(engine).get("/page/app.js").headers["content-type"].startswith("text/javascript")
    assert client(engine).get("/page/../service.py").status_code == 404


def test_who_waits_too_long_in_line_is_sent_away() -> None:
    gate = threading.Event()
    entered = threading.Event()

    class Slow:
        def turn(self, *_: object) -> None:
            entered.set()
            gate.wait(30)
            raise RuntimeError("what somebody wrote")

    engine = Engine(Slow, waiting=1)  # type: ignore[arg-type]
    engine._loading.result(timeout=10)
    app = client(engine)
    message = {"session": "a", "message": "안녕"}
    answers: list[Any] = []
    callers = [
        threading.Thread(target=lambda: answers.append(app.post("/api/chat", json=message))) for _ in range(2)
    ]
    try:
        callers[0].start()
        assert entered.wait(10)
        callers[1].start()
        while engine._jobs < 2:
            threading.Event().wait(0.01)
        refused = app.post("/api/chat", json=message)
        assert code(refused) == (429, "busy")
        assert int(refused.headers["retry-after"]) >= 1
    finally:
        gate.set()
        for caller in callers:
            caller.join(30)
    assert [code(answer) for answer in answers] == [(500, "internal")] * 2
    assert "what somebody wrote" not in answers[0].text
    assert engine._jobs == 0
    engine.close()


def test_until_the_models_are_there_it_says_so() -> None:
    gate = threading.Event()

    def load() -> Companion:
        gate.wait(30)
        raise ArtifactError(f"{ROOT}/product/voice/model.safetensors is corrupt")

    engine = Engine(load)
    app = client(engine)
    assert not engine.ready
    assert engine.failure is None
    assert code(app.get("/api/greeting")) == (503, "not_ready")
    gate.set()
    assert engine._loading.exception(timeout=10) is not None
    assert not engine.ready
    assert engine.failure == "ArtifactError: product/voice/model.safetensors is corrupt"
    assert code(app.get("/api/greeting")) == (503, "not_ready")
    engine.close()


def test_an_error_is_told_without_what_it_quotes() -> None:
    try:
        raise ValueError("나 사실 비밀이 있어")
    except ValueError as error:
        told = describe(error)
    assert told.startswith("ValueError at test_api.py:")
    assert "비밀" not in told
