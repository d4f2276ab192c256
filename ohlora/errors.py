"""The one kind of error that is meant for a person, and the commonest reason for one: a file."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """Something that the user can mend; the message says what is wrong and what to do.

    The CLI prints the message alone and exits with 1; anything else is a bug and keeps its traceback.
    """


def read_text_file(path: Path, error: type[UserError]) -> str:
    """Text of a file that a person gave, in UTF-8 with or without a byte order mark.

    Raises:
        error: it is missing, or not UTF-8; the message says which.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not UTF-8 (byte {problem.start}); save it as UTF-8") from problem
