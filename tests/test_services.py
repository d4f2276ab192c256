"""Servers start once, stop whole, and say what is wrong."""

import socket
import sys
from pathlib import Path

import httpx
import pytest

from ohlora.config import load_config
from ohlora.doctor import examine
from ohlora.services import (
    Service,
    ServiceError,
    describe,
    launch,
    newest_bento,
    port_is_free,
    records,
    stop,
    wait_ready,
)
from tests.ports import free_port

ROOT = Path(__file__).parents[1]


def file_server(port: int, tag: str = "") -> Service:
    return Service(
        name="files",
        command=[sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)],
        port=port,
        ready_path="/",
        tag=tag,
        port_key="ports.files",
    )


def test_start_once_and_stop(tmp_path: Path) -> None:
    service = file_server(free_port())
    record = launch(service, tmp_path)
    wait_ready(service, tmp_path, record)
    assert httpx.get(service.url).status_code == 200
    assert launch(service, tmp_path).pid == record.pid
    assert describe(tmp_path)[0]["state"] == "running"
    assert stop(record, tmp_path)
    assert not record.alive()
    assert records(tmp_path) == {}
    assert port_is_free(service.port)


def test_another_tag_restarts(tmp_path: Path) -> None:
    port = free_port()
    first = launch(file_server(port, "a"), tmp_path)
    wait_ready(file_server(port, "a"), tmp_path, first)
    second = launch(file_server(port, "b"), tmp_path)
    try:
        assert second.pid != first.pid
        assert not first.alive()
    finally:
        stop(second, tmp_path)


def test_taken_port_names_the_setting(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        with pytest.raises(ServiceError, match=r"taken by another program.*ports\.files"):
            launch(file_server(s.getsockname()[1]), tmp_path)


def test_server_that_dies_shows_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no models here')"]
    service = Service(name="dead", command=command, port=free_port(), ready_path="/")
    with pytest.raises(ServiceError, match="no models here"):
        wait_ready(service, tmp_path, launch(service, tmp_path))


def test_recycled_pid_is_not_taken_for_the_server(tmp_path: Path) -> None:
    service = file_server(free_port())
    record = launch(service, tmp_path)
    try:
        assert not record.model_copy(update={"created": record.created - 100}).alive()
    finally:
        stop(record, tmp_path)


def test_newest_bento_needs_the_folder_too(tmp_path: Path) -> None:
    assert newest_bento(tmp_path) is None
    store = tmp_path / "bentoml" / "bentos" / "ohlora"
    store.mkdir(parents=True)
    (store / "latest").write_text("abc\n")
    assert newest_bento(tmp_path) is None
    (store / "abc").mkdir()
    assert newest_bento(tmp_path) == "ohlora:abc"


def test_doctor_names_a_taken_port_and_missing_data(tmp_path: Path) -> None:
    for name in ("params.yaml", "requirements.lock"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        config = load_config(tmp_path, overrides=[f"serving.port={s.getsockname()[1]}"])
        findings = {finding.check: finding for finding in examine(config, tmp_path)}
    assert findings["serving.port"].level == "error"
    assert "serving.port" in findings["serving.port"].advice
    assert findings["data/portraits"].level == "error"
    assert "git checkout" in findings["data/portraits"].advice
    assert findings["Python"].level == "ok"
