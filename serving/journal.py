"""What the service writes to its log: never a message, a memory, a token or a path of the machine."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

from ohlora.artifacts import ArtifactError
from serving import ROOT

logger = logging.getLogger("bentoml.ohlora")  # below "bentoml", which has a handler in every worker


def describe(error: BaseException) -> str:
    """An error for the log and for `/readyz`.

    Only errors about model files are quoted: others may hold what a person wrote, so they are told by their
    type and the place they came from.
    """
    if isinstance(error, ArtifactError | FileNotFoundError):
        return f"{type(error).__name__}: {error}".replace(f"{ROOT}/", "")
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-4:]))
    return f"{type(error).__name__} at {places}" if places else type(error).__name__
