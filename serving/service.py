"""The product as one BentoML service: all models in one process, the API and the page mounted at `/`.

The product folder lies beside `serving/` in the bento. BentoML answers `/healthz` and `/livez` (the process
lives) and `/readyz`, which is 503 until the models are loaded and stays so, with the reason, when they cannot
be. Settings come from the environment: `OHLORA_TOKEN` (see `serving.api`), `OHLORA_DATABASE` (an SQLAlchemy
URL) and `OHLORA_MAX_WAITING` (how many turns may queue behind the running one).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import bentoml
from starlette.exceptions import HTTPException

import ohlora
from serving import ROOT
from serving.api import create_app
from serving.engine import Engine
from serving.journal import logger

if TYPE_CHECKING:
    from ohlora.chat import Companion

PRODUCT = ROOT / "product"


def _load() -> Companion:
    from ohlora.chat import (
        Companion,  # not above: BentoML's supervisor imports this module and needs no torch
    )

    database = os.environ.get("OHLORA_DATABASE")
    if not database:
        raise RuntimeError("OHLORA_DATABASE is not set and the deployment hook did not run")
    return Companion.load(PRODUCT, database)


app = create_app(lambda: bentoml.get_current_service().engine, token=os.environ.get("OHLORA_TOKEN", ""))


@bentoml.service(
    name="ohlora",
    workers=1,
    traffic={"timeout": 300},
    http={"host": "127.0.0.1"},  # a bare `bentoml serve` is not open to the network
)
@bentoml.asgi_app(app)
class OhLoRA:
    """Oh-LoRA (오로라): chat, face and memory."""

    def __init__(self) -> None:
        source = Path(ohlora.__file__).resolve().parent
        logger.info("ohlora is the %s", "bento's" if source.is_relative_to(ROOT) else f"one in {source}")
        self.engine = Engine(_load, waiting=int(os.environ.get("OHLORA_MAX_WAITING") or 8))

    @bentoml.on_deployment
    def choose_database() -> None:
        """Put the chat store beside the server, never into the bento store, which a worker has as its cwd."""
        if not os.environ.get("OHLORA_DATABASE"):
            folder = Path.cwd() / "ohlora-data"
            folder.mkdir(exist_ok=True)
            os.environ["OHLORA_DATABASE"] = f"sqlite:///{folder / 'chat.db'}"

    @bentoml.on_shutdown
    def close(self) -> None:
        """Let no waiting job keep the process."""
        self.engine.close()

    async def __is_ready__(self) -> bool:
        if not self.engine.ready:
            raise HTTPException(503, self.engine.failure or "loading")
        return True
