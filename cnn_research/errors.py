"""The one exception that stands for a mistake the user can mend."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend: a wrong option, a missing dataset, a broken file.

    The message is one clear line that says what is wrong, where, and what to do. Commands print it without a traceback
    and exit with status 2; every other exception is a defect of the code and keeps its traceback.
    """


def suggest(word: str, choices: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the nearest of `choices`, or "" when none is near. Case is ignored."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[near[0]]!r}?" if near else ""
