"""A random GPT-NeoX of 50,000 parameters, a few rows, and what is built from them once per session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ohlora.config import Config, load_config
from ohlora.llm.bases import build

ROOT = Path(__file__).parents[2]
TINY = [
    "voice.base=scratch-neox",
    "voice.scratch={hidden_size: 32, layers: 2, heads: 2, context: 128, seed: 3}",
]


def tiny_config(*overrides: str) -> Config:
    return load_config(ROOT, None, [*TINY, "gate.starters=''", *overrides])


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # networks this small are slower on more


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build(tiny_config(), folder)
    return folder


def row(number: int, user: str, completion: str) -> dict[str, Any]:
    return {
        "id": f"d{number}",
        "user": user,
        "memories_read": [],
        "prompt": f"사용자: {user}\n오로라:",
        "completion": completion,
    }


@pytest.fixture(scope="session")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dialogues")
    pairs = [
        ("안녕", " (기쁨) 안녕!"),
        ("잘 자", " (평온) 너도 잘 자."),
        ("밥 먹었어?", " (기쁨) 응, 떡볶이!"),
    ]
    rows = [row(i, f"{user} {i}", said) for i in range(8) for user, said in pairs]
    for split, part in (("train", rows[:16]), ("valid", rows[16:20]), ("test", rows[20:])):
        pq.write_table(pa.Table.from_pylist(part), folder / f"{split}.parquet")
    return folder
