from __future__ import annotations

from difflib import SequenceMatcher

from hypothesis import given
from hypothesis import strategies as st

from ohlora.persona.similarity import near_duplicates

texts = st.lists(st.text("가나다ab", max_size=8), max_size=6)


@given(left=texts, right=texts, threshold=st.sampled_from([0.3, 0.6, 0.85, 1.0]))
def test_the_bound_never_loses_a_pair(left: list[str], right: list[str], threshold: float) -> None:
    expected = {
        (i, j): SequenceMatcher(a=a, b=b, autojunk=False).ratio()
        for j, b in enumerate(right)
        for i, a in enumerate(left)
    }
    found = {(i, j): ratio for i, j, ratio in near_duplicates(left, right, threshold)}
    assert found == {pair: ratio for pair, ratio in expected.items() if ratio >= threshold}
