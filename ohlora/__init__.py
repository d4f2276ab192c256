"""ohlora: build, improve and serve a virtual human.

The library behind every stage: plain functions and small classes that take paths, typed configuration
and tensors. It knows neither Prefect nor BentoML; `flows/` and `serving/` wire it to them.
"""

import os

# OpenMP threads that spin while they wait starve all other processes of a small machine; only speed changes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

__version__ = "0.1.0"
