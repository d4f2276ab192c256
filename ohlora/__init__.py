"""ohlora: build, improve and serve a virtual human.

The library behind every stage: plain functions and small classes that take paths, typed configuration
and tensors. It knows neither Prefect nor BentoML; `flows/` and `serving/` wire it to them.
"""

__version__ = "0.1.0"
