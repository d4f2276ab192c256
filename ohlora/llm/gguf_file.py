"""Reads a GGUF file: metadata and memory-mapped tensors.

The `gguf` package's own reader makes several numpy views per array element, 13 CPU-seconds for a vocabulary
of 262,144 tokens; this one takes a second and leaves the dequantisation to that package.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little-endian.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
DEFAULT_ALIGNMENT = 32


class GGUFError(ValueError):
    """The file is not a GGUF file of version 3."""


class GGUFFile:
    """`metadata`: key → value; `tensors`: name → (raw rows, quantisation type number).

    Raw rows are `uint8 [rows, bytes per row]`, as `gguf.quants.dequantize` takes them, mapped to the file.

    Raises:
        GGUFError: wrong magic, another version, or the header ends early.
    """

    def __init__(self, path: Path) -> None:
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, tuple[npt.NDArray[np.uint8], int]] = {}
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")
        self._view = memoryview(self._bytes)  # type: ignore[arg-type]  # numpy's stubs lack it
        self._offset = 0
        try:
            self._parse()
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise GGUFError(f"{path.name} is not a readable GGUF file: {error}") from error

    def _parse(self) -> None:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        magic, version, tensor_count, key_count = self._take("<4sIQQ")
        if magic != b"GGUF" or version != 3:
            raise GGUFError(f"magic {magic!r} version {version}, expected b'GGUF' version 3")
        for _ in range(key_count):
            key = self._string()
            (kind,) = self._take("<I")
            self.metadata[key] = self._value(kind)
        entries = []
        for _ in range(tensor_count):
            name = self._string()
            (dimensions,) = self._take("<I")
            shape = self._take(f"<{dimensions}Q")
            entries.append((name, shape, *self._take("<IQ")))
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        start = -(-self._offset // alignment) * alignment
        for name, shape, kind, offset in entries:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            row_bytes = shape[0] // block * block_bytes  # the first dimension is the contiguous one
            rows = int(np.prod(shape[1:], dtype=np.int64))
            first = start + offset
            self.tensors[name] = (
                self._bytes[first : first + rows * row_bytes].reshape(rows, row_bytes),
                kind,
            )

    def _take(self, pattern: str) -> tuple[Any, ...]:
        values = struct.unpack_from(pattern, self._view, self._offset)
        self._offset += struct.calcsize(pattern)
        return values

    def _string(self) -> str:
        (length,) = self._take("<Q")
        raw = bytes(self._view[self._offset : self._offset + length])
        self._offset += length
        return raw.decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._take("<" + SCALARS[kind])[0]
        element, count = self._take("<IQ")
        if element in SCALARS:
            return list(self._take(f"<{count}{SCALARS[element]}"))
        return [self._value(element) for _ in range(count)]
