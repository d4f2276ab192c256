"""The bento as it is delivered: built by the command, served away from the repository."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from serving import ROOT
from tests.serving.bento_server import Bento, Server, build, serve, wait_for


def picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_the_bento_tells_nothing_of_the_machine_it_was_built_on(bento: Bento, tiny_product: Path) -> None:
    files = [path for path in bento.path.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    assert len(files) > 20
    for path in files:
        body = path.read_bytes()
        for place in (ROOT, tiny_product, bento.home):
            assert str(place).encode() not in body, path


def test_the_bento_holds_what_it_needs_and_no_more(bento: Bento) -> None:
    source = bento.path / "src"
    for name in ("ohlora/chat", "ohlora/gan", "serving/page/index.html", "product/voice/model.json"):
        assert (source / name).exists(), name
    for name in ("serving/build.py", "ohlora/cli.py", "ohlora/registry.py", "tests", "flows"):
        assert not (source / name).exists(), name
    pins = (bento.path / "env/python/requirements.txt").read_text().split()
    lock = (ROOT / "requirements.lock").read_text()
    assert all(f"\n{pin}\n" in lock for pin in pins if pin)
    assert {pin.split("==")[0] for pin in pins} >= {"torch", "transformers", "bentoml", "fastapi"}
    assert not {"mlflow", "prefect", "dvc", "trl", "mitsuba"} & {pin.split("==")[0] for pin in pins}


def test_it_runs_its_own_source(server: Server, bento: Bento) -> None:
    assert "ohlora is the bento's" in server.log
    assert "ohlora is the one in" not in server.log


def test_a_turn(server: Server) -> None:
    answer = httpx.post(
        f"{server.url}/api/chat", json={"session": "turn", "message": "안녕! 나는 민수야."}, timeout=300
    )
    assert answer.status_code == 200, answer.text
    turn = answer.json()
    assert turn["text"].strip()
    assert set(turn["expression"]) == {"name", "label", "eyes", "mouth", "pose"}
    assert all(seconds >= 0 for seconds in turn["seconds"].values())
    assert isinstance(turn["memories_used"], list)
    assert isinstance(turn["memories_written"], list)
    kind, _, data = turn["image"].partition(",")
    assert kind == "data:image/webp;base64"
    assert picture(base64.b64decode(data)).shape == (256, 256, 3)


def test_the_greeting_shows_who_she_is(server: Server) -> None:
    hello = httpx.get(f"{server.url}/api/greeting", timeout=300).json()
    assert hello["name"] == "오로라"
    assert hello["text"]
    assert hello["max_message_chars"] > 0
    assert hello["image"].startswith("data:image/webp;base64,")


def test_a_face_follows_its_query(server: Server) -> None:
    asleep, awake = (
        httpx.get(f"{server.url}/api/face", params={"eyes": eyes, "mouth": 0, "pose": 0}, timeout=300)
        for eyes in (0, 1)
    )
    assert asleep.headers["content-type"] == "image/webp"
    assert not np.array_equal(picture(asleep.content), picture(awake.content))


def test_broken_utf8_over_a_raw_socket(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = b'{"session": "a", "message": "\xea\xb0"}'  # a syllable cut in half
    head = f"POST /api/chat HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=120) as s:
        s.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: s.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_encoding"


def test_healthz_answers_while_she_thinks(server: Server) -> None:
    done = threading.Event()
    codes: list[int] = []

    def talk(number: int) -> None:
        message = {"session": f"busy-{number}", "message": "이야기 하나 들려줘"}
        codes.append(httpx.post(f"{server.url}/api/chat", json=message, timeout=600).status_code)

    talkers = [threading.Thread(target=talk, args=(n,)) for n in range(3)]
    for talker in talkers:
        talker.start()
    threading.Thread(target=lambda: ([t.join() for t in talkers], done.set())).start()
    alive = 0
    while not done.is_set():
        assert httpx.get(f"{server.url}/healthz", timeout=120).status_code == 200
        alive += not done.is_set()
        done.wait(0.05)
    assert alive > 0
    assert codes == [200] * 3


def test_the_log_is_silent_about_what_was_said(server: Server) -> None:
    message = {"session": "quiet-session", "message": "비밀번호는 오이냉국이야"}
    assert httpx.post(f"{server.url}/api/chat", json=message, timeout=300).status_code == 200
    wait_for(server, "/healthz")
    assert "/api/chat" in server.log
    assert "오이냉국" not in server.log
    assert "quiet-session" not in server.log


def test_what_it_remembers_lies_beside_the_server_not_in_the_bento(server: Server, bento: Bento) -> None:
    httpx.post(f"{server.url}/api/chat", json={"session": "a", "message": "안녕"}, timeout=300)
    assert (server.folder / "ohlora-data" / "chat.db").stat().st_size > 0
    assert not list(bento.path.rglob("*.db"))


def test_damaged_weights_keep_it_unready_and_a_token_keeps_it_closed(bento: Bento, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(bento.path, damaged)
    weights = next((damaged / "src/product/voice").rglob("*.safetensors"))
    body = bytearray(weights.read_bytes())
    body[-1] ^= 1
    weights.write_bytes(body)
    token = "t0ken-for-a-test"
    with serve(str(damaged), bento.home, tmp_path / "run", OHLORA_TOKEN=token) as server:
        answer = wait_for(server, "/readyz", until="ArtifactError")
        assert answer.status_code == 503
        assert f"product/voice/{weights.name} is corrupt" in answer.text
        assert str(tmp_path) not in answer.text
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        greeting = f"{server.url}/api/greeting"
        assert httpx.get(greeting).status_code == 401
        admitted = httpx.get(greeting, headers={"Authorization": f"Bearer {token}"})
        assert admitted.status_code == 503
        assert admitted.json()["error"]["code"] == "not_ready"
        assert "the product does not load" in server.log
        assert token not in server.log


@pytest.mark.parametrize("missing", ["persona.yaml", "face/model.json"])
def test_an_incomplete_product_is_not_packed(tiny_product: Path, tmp_path: Path, missing: str) -> None:
    product = tmp_path / "product"
    shutil.copytree(tiny_product, product)
    (product / missing).unlink()
    result = build(product, tmp_path / "home")
    assert result.returncode == 1
    assert Path(missing).name in result.stderr
    assert not result.stdout
