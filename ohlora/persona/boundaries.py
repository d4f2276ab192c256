"""Which boundary of the card a message crosses: what she is asked for and declines.

A small voice declines by itself in three of four messages where it should, and has agreed to what no persona
may. So where a message clearly crosses a boundary, the card says her words, and the voice her expression. No
network is involved; the card holds messages that cross a boundary and others that do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline

from ohlora.persona.facts import letters_of

LEAST = 0.5
"""Probability from which a message counts as crossing some boundary."""


class BoundaryFinder:
    """Linear models on character n-grams of a message: does it cross a boundary, and which one?"""

    def __init__(self, asked: Sequence[Sequence[str]], fine: Sequence[str]) -> None:
        """Learn the messages; takes a second for 2,500.

        Args:
            asked: of each boundary, messages that cross it; at least one in all.
            fine: messages that cross none; at least one.
        """
        messages = [message for every in asked for message in every]
        owners = np.array([index for index, every in enumerate(asked) for _ in every])
        # hashed, so that n-grams never seen count in a message's length: else 야옹 would be all 야(한)
        counts = HashingVectorizer(
            analyzer="char_wb",
            ngram_range=(1, 4),
            preprocessor=letters_of,
            n_features=1 << 18,
            alternate_sign=False,
            norm=None,
        )
        self._vectorizer = make_pipeline(counts, TfidfTransformer(sublinear_tf=True))
        x = self._vectorizer.fit_transform([*messages, *fine])
        self._crossing = LogisticRegression(C=100.0, solver="liblinear", random_state=0)
        self._crossing.fit(x, [1] * len(messages) + [0] * len(fine))
        self._owners = np.unique(owners)
        which = Ridge(alpha=1.0, fit_intercept=False, solver="sparse_cg", tol=1e-6)
        self._weights = which.fit(x[: len(messages)], np.eye(len(asked))[owners]).coef_.T
        self._look = lru_cache(maxsize=1 << 13)(self._look_up)

    def find(self, message: str, least: float = LEAST) -> int | None:
        """Number of the boundary that a message crosses; None if it rather crosses none.

        Args:
            message: what the person says.
            least: probability that it crosses one.
        """
        chance, owner = self._look(message)
        return owner if chance >= least else None

    def _look_up(self, message: str) -> tuple[float, int]:
        x = self._vectorizer.transform([message])
        scores = (x @ self._weights).reshape(-1)[self._owners]
        return float(self._crossing.predict_proba(x)[0, 1]), int(self._owners[np.argmax(scores)])
