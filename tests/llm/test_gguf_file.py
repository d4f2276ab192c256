from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from ohlora.llm.gguf_file import ARRAY, STRING, GGUFError, GGUFFile


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def write(path: Path) -> Path:
    weights = np.arange(6, dtype="<f4").reshape(2, 3)
    header = struct.pack("<4sIQQ", b"GGUF", 3, 1, 3)
    header += text("name") + struct.pack("<I", STRING) + text("오로라")
    header += text("pieces") + struct.pack("<IIQ", ARRAY, STRING, 2) + text("가") + text("나")
    header += text("scores") + struct.pack("<IIQ2f", ARRAY, 6, 2, -1.0, 0.5)
    header += text("w") + struct.pack("<IQQIQ", 2, 3, 2, 0, 0)  # shape innermost first, type F32, offset
    path.write_bytes(header.ljust(-(-len(header) // 32) * 32, b"\0") + weights.tobytes())
    return path


def test_metadata_and_tensors(tmp_path: Path) -> None:
    file = GGUFFile(write(tmp_path / "a.gguf"))
    assert file.metadata == {"name": "오로라", "pieces": ["가", "나"], "scores": [-1.0, 0.5]}
    rows, kind = file.tensors["w"]
    assert kind == 0
    assert rows.view("<f4").tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("start", [b"GGML", b"GGUF\x02"])
def test_another_format_is_refused(tmp_path: Path, start: bytes) -> None:
    path = write(tmp_path / "a.gguf")
    path.write_bytes(start + path.read_bytes()[len(start) :])
    with pytest.raises(GGUFError):
        GGUFFile(path)


def test_a_header_that_ends_early_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(GGUFError):
        GGUFFile(path)
