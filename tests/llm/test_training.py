from __future__ import annotations

import doctest
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ohlora.llm import training
from ohlora.llm.training import Trained, learning_rate_factor, ordered_batches, padding_share

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=60)


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(training).failed == 0


@given(LENGTHS, st.integers(1, 9), st.integers(0, 3))
def test_a_pass_sees_every_row(lengths: list[int], size: int, seed: int) -> None:
    per_pass = -(-len(lengths) // size)
    batches = ordered_batches(lengths, size, 2 * per_pass, seed)
    assert all(len(batch) == size for batch in batches)
    for half in (batches[:per_pass], batches[per_pass:]):
        assert {row for batch in half for row in batch} == set(range(len(lengths)))


@given(LENGTHS, st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
def test_more_steps_begin_with_the_same_ones(lengths: list[int], size: int, few: int, more: int) -> None:
    assert ordered_batches(lengths, size, few + more, 1)[:few] == ordered_batches(lengths, size, few, 1)


def test_similar_lengths_share_a_batch() -> None:
    lengths = torch.randint(20, 200, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    grouped = padding_share(lengths, ordered_batches(lengths, 8, 50, 0))
    shuffled = torch.randperm(400, generator=torch.Generator().manual_seed(1)).reshape(50, 8).tolist()
    assert grouped < 0.3 * padding_share(lengths, shuffled)


@given(st.integers(1, 500))
def test_the_learning_rate_rises_then_falls_and_never_stops(steps: int) -> None:
    rates = [learning_rate_factor(step, steps) for step in range(steps)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) > 0 and max(rates) == 1.0


def trained(seed: int = 0) -> Trained:
    torch.manual_seed(seed)
    return Trained(torch.nn.Linear(3, 2), 0.1)


def step(state: Trained) -> None:
    state.network(torch.ones(1, 3)).sum().backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.progress.step += 1


def test_a_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    first = trained()
    step(first)
    first.keep_if_best(2.0)
    step(first)
    first.progress.samples.append({"step": 2, "sampled": "안녕"})
    first.save(tmp_path / "state.safetensors")
    second = trained(1)
    assert second.resume(tmp_path / "state.safetensors")
    assert second.progress == first.progress
    step(first)
    step(second)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True)
    )
    second.take_best()
    first.take_best()
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True)
    )


@pytest.mark.parametrize("damage", ["absent", "cut", "another shape"])
def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state.safetensors"
    other = Trained(torch.nn.Linear(4, 2), 0.1) if damage == "another shape" else trained()
    if damage != "absent":
        other.save(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-4])
    state = trained(1)
    before = [p.clone() for p in state.network.parameters()]
    assert not state.resume(path)
    assert all(torch.equal(a, b) for a, b in zip(before, state.network.parameters(), strict=True))
    assert state.progress.step == 0
