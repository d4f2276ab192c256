"""Folds by identity, balanced over strata: no person is on both sides of a fold.

Each identity has its fold for life: a model that continues another one keeps the other's assignment, so
that no network ever meets, as unseen, a person it was trained on before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ohlora.errors import UserError


class FoldError(UserError, ValueError):
    """There are fewer people than folds."""


def assign_folds(
    identity: NDArray[np.int64],
    stratum: NDArray[np.integer],
    folds: int,
    seed: int,
    known: Mapping[int, int] | None = None,
) -> dict[int, int]:
    """Deal identities to folds so that each stratum is spread evenly.

    As in scikit-learn's StratifiedGroupKFold each goes to the fold in which its strata are rarest so far; a
    person weighs the same however many portraits there are, so that folds have like numbers of people.

    Args:
        identity: [n] whom each portrait shows.
        stratum: [n] what is to be spread, 0..k-1, e.g. a class.
        folds: how many.
        seed: decides between equals.
        known: fold of identities that have one already.

    Returns:
        Identity -> fold in 0..folds-1.

    Raises:
        FoldError: fewer identities than folds.
    """
    people, inverse = np.unique(identity, return_inverse=True)
    if len(people) < folds:
        raise FoldError(f"{folds} folds need as many people to train on; the corpus has {len(people)}")
    counts = np.zeros((len(people), int(stratum.max()) + 1))
    np.add.at(counts, (inverse, stratum), 1)
    counts /= counts.sum(1, keepdims=True)  # shares of each person's portraits
    counts /= np.maximum(counts.sum(0), 1e-9)  # a rare stratum weighs more
    filled = np.zeros((folds, counts.shape[1]))
    answer: dict[int, int] = {}
    for row, person in enumerate(people):
        if known and int(person) in known:
            answer[int(person)] = known[int(person)]
            filled[known[int(person)]] += counts[row]

    def priority(row: int) -> tuple[float, bytes]:
        return -float(counts[row].sum()), hashlib.sha256(f"{seed} {people[row]}".encode()).digest()

    for row in sorted(range(len(people)), key=priority):
        if int(people[row]) not in answer:
            load = (filled * (counts[row] > 0)).sum(1)
            fold = int(np.lexsort((filled.sum(1), load.round(9)))[0])
            answer[int(people[row])] = fold
            filled[fold] += counts[row]
    return dict(sorted(answer.items()))
