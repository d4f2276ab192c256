"""When the pipeline runs: Prefect flows and their deployments, wiring only.

Importing this package points Prefect at the work tree's own state folder, before Prefect reads its settings;
what the environment says already stays.
"""

import os

from ohlora.config import find_root, load_config
from ohlora.services import server_environment

ROOT = find_root()
"""The work tree: the folder in which the flows were started."""

_WANTED = server_environment(load_config(ROOT), ROOT)
for _key, _value in _WANTED.items():
    # PREFECT_API_URL is left alone: without one Prefect runs a flow against a server of its own.
    if _key.startswith(("PREFECT_", "DO_NOT_TRACK")) and _key != "PREFECT_API_URL":
        os.environ.setdefault(_key, _value)
