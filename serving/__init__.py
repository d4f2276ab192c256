"""How does she reach people? One BentoML service with the chat API and its page.

Wiring only: `service` loads the product and mounts `api`, `engine` keeps the model work in one thread,
`build` packs a bento. What happens in a turn is `ohlora.chat`'s business.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""Source folder of the bento, or the repository; `ohlora/` lies beside `serving/` in both."""

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")


def _forget_other_source(package: str) -> None:
    """Drop modules of `package` that were loaded from somewhere else.

    `bentoml serve ohlora:TAG` first tries to import a module of that name, and so finds an `ohlora` that is
    installed in the environment. A bento runs its own source and no other.
    """
    loaded = {name: m for name, m in sys.modules.items() if name.partition(".")[0] == package}
    for name, module in loaded.items():
        if not Path(getattr(module, "__file__", None) or "/").resolve().is_relative_to(ROOT):
            del sys.modules[name]


_forget_other_source("ohlora")
