"""Rows of the storage format with drawn pictures, for tests that need no face."""

import numpy as np
import pyarrow as pa

from ohlora.corpus.portraits import SCHEMA, TRUTH_NAMES, encode_image, encode_mask, split_of


def synthetic_table(people: int, each: int, resolution: int = 32, seed: int = 0) -> pa.Table:
    """Portraits of identities 0 to `people` - 1."""
    rng = np.random.default_rng(seed)
    rows = []
    for identity in range(people):
        for moment in range(each):
            image = rng.integers(0, 256, (resolution, resolution, 3)).astype(np.uint8)
            mask = rng.integers(0, 14, (resolution, resolution)).astype(np.uint8)
            rows.append(
                {
                    "image": encode_image(image),
                    "mask": encode_mask(mask),
                    "identity": identity,
                    "seed": 1000 + identity,
                    "moment": moment,
                    "variant": "drawn",
                    "split": split_of(identity, 0.2),
                    "set": -1,
                    "swept": "",
                    "parameters": "",
                    **{name: float(rng.random()) for name in TRUTH_NAMES},
                }
            )
    return pa.Table.from_pylist(rows, SCHEMA)
