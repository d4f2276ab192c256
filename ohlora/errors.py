"""The one kind of error that is meant for a person."""


class UserError(Exception):
    """Something that the user can mend; the message says what is wrong and what to do.

    The CLI prints the message alone and exits with 1; anything else is a bug and keeps its traceback.
    """
