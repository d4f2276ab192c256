"""A random GPT-NeoX of 50,000 parameters, a few rows, and what is built from them once per session."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ohlora.artifacts import read_manifest, write_manifest
from ohlora.config import Config, load_config
from ohlora.llm.bases import build
from ohlora.stage import Journal

ROOT = Path(__file__).parents[2]
TINY = [
    "voice.base=scratch-neox",
    "voice.scratch={hidden_size: 32, layers: 2, heads: 2, context: 384, seed: 3}",
    "voice.start=''",
]


class Deadly(Journal):
    """Kills its process, without a chance to tidy up, when the loss of step 5 is logged."""

    def log(self, step: int, **metrics: float) -> None:
        super().log(step, **metrics)
        if step == 5 and "loss" in metrics:
            os.kill(os.getpid(), signal.SIGKILL)


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
        ("안녕", " 안녕! (기쁨 653)"),
        ("잘 자", " 너도 잘 자. (평온 704)"),
        ("밥 먹었어?", " 응, 떡볶이! (기쁨 554)"),
    ]
    rows = [row(i, f"{user} {i}", said) for i in range(8) for user, said in pairs]
    for split, part in (("train", rows[:16]), ("valid", rows[16:20]), ("test", rows[20:])):
        pq.write_table(pa.Table.from_pylist(part), folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="session")
def real_dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of her own rows, through the stage."""
    from ohlora.persona.dialogues import run
    from ohlora.stage import Journal

    folder = tmp_path_factory.mktemp("real-dialogues")
    inputs = {"persona": ROOT / "data" / "persona"}
    config = tiny_config(
        "persona.limit=64",
        "persona.years_ahead=0.0",
        f"persona.card={ROOT / 'data/persona/ohlora.yaml'}",
        f"persona.dialogues={ROOT / 'data/persona/dialogues.jsonl'}",
    )
    run(config, inputs, {"output": folder}, Journal(folder))
    return folder


@pytest.fixture(scope="session")
def lora_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base, declared as one that gets a low-rank adapter."""
    folder = tmp_path_factory.mktemp("lora-base")
    shutil.copytree(base, folder, dirs_exist_ok=True)
    manifest = read_manifest(base)
    write_manifest(
        folder, "base-llm", files=list(manifest.files), settings=manifest.settings | {"trains": "lora"}
    )
    return folder
