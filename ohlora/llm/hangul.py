"""Can a base write Korean at all? A check of its tokenizer, before hours of training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ohlora.artifacts import ArtifactError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = (
    "안녕, 나는 오로라야! 오늘 하루는 어땠어? 떡볶이 먹고 한강에서 자전거 탔다니 진짜 부럽다. "
    "괜찮아, 힘들면 쉬어도 돼. 얘기해 줘서 고마워. 별빛처럼 반짝이는 꿈을 꿨으면 좋겠어."
)
LEAST_SHARE = 0.98
MOST_TOKENS = 2.0


@dataclass(frozen=True)
class HangulSupport:
    """What a tokenizer makes of Hangul."""

    share: float  # of the probe's syllables that come back through encode and decode, 0 to 1
    tokens_per_syllable: float  # tokens a word of syllables takes, by syllable; 3 is byte by byte
    bytes_per_token: float  # UTF-8 bytes of Hangul that a token holds; a syllable has 3


def hangul_support(tokenizer: PreTrainedTokenizerBase, probe: str = PROBE) -> HangulSupport:
    """Measure a tokenizer on the Hangul words of a text; each is encoded on its own, after a space."""
    words = ["".join(c for c in word if "가" <= c <= "힣") for word in probe.split()]
    syllables = kept = tokens = 0
    for word in filter(None, words):
        ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        back = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
        syllables += len(word)
        kept += sum((Counter(word) & Counter(back)).values())
        tokens += len(ids)
    return HangulSupport(kept / syllables, tokens / syllables, 3 * syllables / max(1, tokens))


def require_hangul(tokenizer: PreTrainedTokenizerBase, name: str) -> HangulSupport:
    """Refuse a base that cannot write Hangul, or only byte by byte.

    Raises:
        ArtifactError: says which, with the figures.
    """
    support = hangul_support(tokenizer)
    if support.share < LEAST_SHARE:
        raise ArtifactError(
            f"{name} cannot write Korean: its tokenizer gives back {support.share:.0%} of the Hangul of a "
            f"probe text (at least {LEAST_SHARE:.0%} are needed); choose a base that was made for Korean"
        )
    if support.tokens_per_syllable > MOST_TOKENS:
        raise ArtifactError(
            f"{name} spells Hangul byte by byte: {support.tokens_per_syllable:.1f} tokens a syllable, "
            f"{support.bytes_per_token:.1f} bytes a token (at most {MOST_TOKENS} tokens a syllable are "
            "taken, or replies take several times as long); choose a base that was made for Korean"
        )
    return support
