"""A real bento, built once from the tiny product and served once, away from the repository."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.bento_server import Bento, Server, build, serve, wait_for


@pytest.fixture(scope="session")
def bento(tiny_product: Path, tmp_path_factory: pytest.TempPathFactory) -> Bento:
    home = tmp_path_factory.mktemp("bentoml")
    built = build(tiny_product, home)
    assert built.returncode == 0, built.stderr
    result = json.loads(built.stdout.splitlines()[-1])
    return Bento(result["tag"], Path(result["path"]), home)


@pytest.fixture(scope="session")
def server(bento: Bento, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("elsewhere")
    with serve(bento.tag, bento.home, folder) as running:
        wait_for(running, "/readyz")
        yield running
