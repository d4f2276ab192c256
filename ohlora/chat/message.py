"""What a person may say: the checks in front of every turn."""

from __future__ import annotations

import unicodedata

# Letters by Unicode's table, but nothing to see: the Hangul fillers and the empty Braille cell.
_BLANK_LETTERS = set("\u115f\u1160\u3164\uffa0\u2800")
_ALLOWED_CONTROLS = set("\n\r\t")


class MessageError(ValueError):
    """A message that she cannot answer. The text is Korean, for the person; `code` is for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code  # "empty", "too_long" or "bad_text"


def check_message(text: str, max_chars: int) -> str:
    """The message without surrounding white space.

    Raises:
        MessageError: nothing visible in it (`empty`), more than `max_chars` characters (`too_long`), or
            control characters or lone surrogates in it (`bad_text`).
    """
    if any(unicodedata.category(c) in {"Cc", "Cs"} and c not in _ALLOWED_CONTROLS for c in text):
        raise MessageError("bad_text", "읽을 수 없는 글자가 섞여 있어요. 지우고 다시 보내 주세요.")
    text = text.strip()
    if not any(_is_visible(c) for c in text):
        raise MessageError("empty", "빈 메시지예요. 하고 싶은 말을 적어 주세요.")
    if len(text) > max_chars:
        raise MessageError("too_long", f"메시지가 너무 길어요. {max_chars:,}자까지 보낼 수 있어요.")
    return text


def _is_visible(character: str) -> bool:
    return not (
        character.isspace() or character in _BLANK_LETTERS or unicodedata.category(character).startswith("C")
    )
