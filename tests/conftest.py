"""Fixtures that several rooms share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
LONGEST = "test_end_to_end.py"

settings.register_profile("untimed", deadline=None)  # a slow or busy machine is no fault of the code
settings.load_profile("untimed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where workers share the files, the longest comes first, so that no worker waits for it in the end."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.path.name != LONGEST)


@pytest.fixture(scope="session")
def tiny_product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole product folder of real, untrained models: seconds to build, nonsense to talk to.

    Read-only: copy it before changing a file.
    """
    from ohlora.artifacts import read_manifest, write_manifest
    from ohlora.config import load_config
    from ohlora.llm import bases as llm_bases
    from ohlora.memory import bases as memory_bases
    from ohlora.memory import merge
    from ohlora.memory.adapter import save_adapter
    from ohlora.memory.encoder import load_network

    work = tmp_path_factory.mktemp("tiny-models")
    product = tmp_path_factory.mktemp("tiny") / "product"
    product.mkdir()
    config = load_config(ROOT, "smoke")

    voice = llm_bases.build(config, product / "voice")
    write_manifest(
        product / "voice", "voice", files=list(voice.files), settings={**voice.settings, "merged": True}
    )

    base = memory_bases.build_scratch_bert(work / "base")
    save_adapter(
        load_network(work / "base"),
        work / "adapter",
        base=base,
        settings={"threshold": 0.5, "max_length": 64},
        provenance={},
    )
    merge(work / "base", work / "adapter", product / "memory")

    _untrained_face(product / "face")
    shutil.copyfile(ROOT / config.persona.card, product / "persona.yaml")
    models = {
        name: {"version": 1, "sha256": read_manifest(product / name).digest}
        for name in ("face", "voice", "memory")
    }
    settings = {
        "format": 1,
        "models": models,
        "generation": {**config.generation.model_dump(mode="json"), "max_new_tokens": 48},
        "memory": {"threshold": None, "top_k": 2},
        "max_message_chars": 200,
    }
    (product / "product.json").write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
    return product


def _untrained_face(folder: Path) -> None:
    import numpy as np
    import torch

    from ohlora.gan.face import fit_people, save_face
    from ohlora.gan.networks import Generator, GeneratorConfig, Normalisation

    shape = GeneratorConfig(
        resolution=64, z_dim=16, w_dim=32, channel_base=256, channel_max=32, mapping_layers=2
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = Generator(shape)
    numbers = np.arange(6)
    latents = torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
    conditions = np.random.default_rng(2).uniform(0, 1, (6, 7)).astype(np.float32)
    scales = Normalisation(torch.full((7,), 0.5), torch.ones(7), torch.zeros(3), torch.ones(3))
    people = fit_people(numbers, latents, -latents, conditions, scales, persona=0)
    save_face(folder, generator, people, truncation=0.8, provenance={})
