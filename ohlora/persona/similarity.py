"""Which texts are nearly the same? The ratio of difflib, with a bound that spares most comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
import numpy.typing as npt


def near_duplicates(
    texts: Sequence[str], others: Sequence[str], threshold: float
) -> list[tuple[int, int, float]]:
    """Pairs whose similarity reaches a threshold.

    Similarity is twice the number of matching characters by both lengths (`SequenceMatcher.ratio`,
    Ratcliff and Metzener 1988). Characters that both hold, in any order, bound it from above.

    Args:
        texts: n texts.
        others: m texts.
        threshold: from 0 to 1; equal texts have 1.

    Returns:
        (index in `texts`, index in `others`, similarity) in the order of `others`.
    """
    columns: dict[str, int] = {}
    for text in texts:
        for c in text:
            columns.setdefault(c, len(columns))
    counts = np.zeros((len(columns), len(texts)), np.int32)  # a character's counts side by side in memory
    for i, text in enumerate(texts):
        for c in text:
            counts[columns[c], i] += 1
    lengths = np.array([len(text) for text in texts], np.int32)
    pairs: list[tuple[int, int, float]] = []
    for j, other in enumerate(others):
        matcher = SequenceMatcher(b=other, autojunk=False)
        bound = _bound(counts, lengths, columns, other)
        for i in np.flatnonzero(bound >= threshold).tolist():
            matcher.set_seq1(texts[i])
            if (ratio := matcher.ratio()) >= threshold:
                pairs.append((i, j, ratio))
    return pairs


def _bound(
    counts: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32], columns: dict[str, int], other: str
) -> npt.NDArray[np.float64]:
    """Upper bounds of the similarity of one text to each of n: float64 [n]."""
    wanted: dict[int, int] = {}
    for c in other:
        if c in columns:
            wanted[columns[c]] = wanted.get(columns[c], 0) + 1
    if not wanted:
        return np.where(lengths + len(other) == 0, 1.0, 0.0)
    common = np.minimum(counts[list(wanted)], np.array(list(wanted.values()), np.int32)[:, None]).sum(axis=0)
    bound: npt.NDArray[np.float64] = 2.0 * common / np.maximum(1, lengths + len(other))
    return bound
