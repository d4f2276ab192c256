import numpy as np
import pytest

from ohlora.labeling.folds import FoldError, assign_folds


def people(count: int, each: int = 3) -> tuple[np.ndarray, np.ndarray]:
    identity = np.repeat(np.arange(count) * 7, each)
    return identity, (identity // 7 % 4 == 0).astype(np.int64)


def test_every_person_has_one_fold_and_strata_are_spread() -> None:
    identity, stratum = people(40)
    folds = assign_folds(identity, stratum, 5, seed=1)
    assert sorted(folds) == sorted(set(identity.tolist()))
    fold = np.array([folds[i] for i in identity.tolist()])
    for k in range(5):
        assert (fold == k).sum() == 24
        assert stratum[fold == k].sum() == 6


def test_a_person_with_many_portraits_takes_no_more_than_her_place() -> None:
    identity = np.concatenate([np.zeros(500, np.int64), np.arange(1, 20)])
    folds = assign_folds(identity, np.zeros(len(identity), np.int64), 5, seed=1)
    assert sorted(np.bincount(list(folds.values())).tolist()) == [4, 4, 4, 4, 4]


def test_the_order_of_portraits_does_not_matter_but_the_seed_does() -> None:
    identity, stratum = people(40)
    shuffled = np.random.default_rng(0).permutation(len(identity))
    first = assign_folds(identity, stratum, 5, seed=1)
    assert assign_folds(identity[shuffled], stratum[shuffled], 5, seed=1) == first
    assert assign_folds(identity, stratum, 5, seed=2) != first


def test_known_people_keep_their_folds_and_new_ones_fill_up() -> None:
    identity, stratum = people(20)
    known = {int(i): 0 for i in np.unique(identity)[:8]} | {999_999: 3}
    folds = assign_folds(identity, stratum, 4, seed=1, known=known)
    assert all(folds[i] == fold for i, fold in known.items() if i != 999_999)
    assert 999_999 not in folds
    assert np.bincount(list(folds.values())).tolist() == [8, 4, 4, 4]


def test_too_few_people_are_refused() -> None:
    identity, stratum = people(3)
    with pytest.raises(FoldError, match="5 folds need as many people to train on; the corpus has 3"):
        assign_folds(identity, stratum, 5, seed=1)
