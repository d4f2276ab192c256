"""Which facts of the card a message asks for: what she reads in her prompt instead of knowing it by heart.

A small model copies what it reads far better than it recalls what it was trained on, and a changed card is
true at once. The card holds for each fact some questions that ask for it; a message finds the nearest ones
by the n-grams of their characters. No network is involved: training and serving find the same facts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEAST = 0.3
"""Cosine below which a message asks for no fact."""

BESIDE = 0.6
"""Other facts join the best one from this share of its cosine on."""

MOST = 3


_MARKS = re.compile(r"[^\w\s]+")


class Found(NamedTuple):
    """A fact that a message asks for."""

    index: int
    cosine: float


class FactFinder:
    """Nearest questions by TF-IDF over character n-grams inside words (Salton and Buckley 1988)."""

    def __init__(self, asked: Sequence[Sequence[str]]) -> None:
        """Index the questions.

        Args:
            asked: of each fact, what people ask when they want to know it; at least one question in all.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer  # half a second, for who is asked only

        questions = [(index, question) for index, group in enumerate(asked) for question in group]
        self._owner = np.array([index for index, _ in questions])
        self._vectorizer = TfidfVectorizer(
            analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, preprocessor=_letters
        )
        self._questions = self._vectorizer.fit_transform([question for _, question in questions])

    def find(self, message: str, most: int = MOST, least: float = LEAST) -> list[Found]:
        """The facts that a message asks for, best first; none for most messages.

        Args:
            message: what the person says.
            most: so many at most.
            least: cosine to the nearest question that a fact must have.
        """
        cosines = (self._questions @ self._vectorizer.transform([message]).T).toarray()[:, 0]
        best = np.zeros(self._owner.max() + 1)
        np.maximum.at(best, self._owner, cosines)
        order = np.argsort(-best, kind="stable")[:most]
        return [Found(int(i), float(best[i])) for i in order if best[i] >= max(least, BESIDE * best[order[0]])]


def _letters(text: str) -> str:
    """Without marks: `몇 살?` ends in the same word as `몇 살이야`."""
    return _MARKS.sub(" ", text.lower())
