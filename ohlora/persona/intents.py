"""What a message wants, where the card holds her words: it crosses a boundary, or asks for a fact.

A small voice declines by itself in three of four messages where it should, has agreed to what no persona may,
and says nine of ten facts right that its prompt shows. So where a message clearly has such an intent, the
card says her words, and the voice her expression. No network is involved; the card holds messages of each
intent and others without any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline

from ohlora.persona.facts import letters_of

LEAST = 0.5
"""Probability from which a message counts as having one of the intents."""


class IntentFinder:
    """Linear models on character n-grams of a message: has it one of the intents, and which?"""

    def __init__(self, asked: Sequence[Sequence[str]], others: Sequence[str]) -> None:
        """Learn the messages; takes a second for 4,000.

        Args:
            asked: of each intent, messages that have it; at least one in all.
            others: messages that have none; at least one.
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
        x = self._vectorizer.fit_transform([*messages, *others])
        self._any = LogisticRegression(C=100.0, solver="liblinear", random_state=0)
        self._any.fit(x, [1] * len(messages) + [0] * len(others))
        self._owners = np.unique(owners)
        self._weights: np.ndarray | None = None
        if len(self._owners) > 1:  # or there is nothing to choose
            which = Ridge(alpha=1.0, fit_intercept=False, solver="sparse_cg", tol=1e-6)
            which.fit(x[: len(messages)], np.eye(len(asked))[owners])
            self._weights = np.ascontiguousarray(which.coef_.T)  # else each product copies it
        self._look = lru_cache(maxsize=1 << 15)(self._look_up)

    def find(
        self,
        message: str,
        least: float = LEAST,
        margin: float = 0.0,
        evidence: float = 0.0,
        towards: Sequence[float] = (),
    ) -> int | None:
        """Number of the intent that a message has; None if it rather has none.

        Args:
            message: what the person says.
            least: probability that it has one at all.
            margin: by how much the best intent's score, about 1 for a message of the card, exceeds the next.
            evidence: of another witness that it has one, in nats of log-odds.
            towards: what that witness adds to the score of each intent; empty for nothing.
        """
        chance, scores = self._look(message)
        if towards:
            scores = scores + np.asarray(towards)[self._owners]
        second, first = np.sort(np.append(scores, 0.0))[-2:]
        if _log_odds(chance) + evidence < _log_odds(least) or first - second < margin:
            return None
        return int(self._owners[np.argmax(scores)])

    def _look_up(self, message: str) -> tuple[float, np.ndarray]:
        """Probability of any intent, and the score of each that has messages."""
        x = self._vectorizer.transform([message])
        chance = float(self._any.predict_proba(x)[0, 1])
        if self._weights is None:
            return chance, np.ones(1)
        return chance, (x @ self._weights).reshape(-1)[self._owners]


def _log_odds(probability: float) -> float:
    tiny = 1e-12  # so that certainty is a number
    return math.log(max(probability, tiny)) - math.log(max(1.0 - probability, tiny))
