"""All variants by name, in the order in which they are trained."""

from __future__ import annotations

from ohlora.gan.variants.autoencoder import V3
from ohlora.gan.variants.base import Base
from ohlora.gan.variants.conditional import V1, V4
from ohlora.gan.variants.directions import Directions
from ohlora.gan.variants.guided import V2
from ohlora.gan.variants.method import Method

METHODS: dict[str, type[Method]] = {method.name: method for method in (Base, V1, V2, V3, V4, Directions)}
