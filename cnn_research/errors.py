"""How work may end early: a mistake that the user can mend, divergence, a request to leave."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend: a wrong option, a missing dataset, a broken file.

    The message is one clear line that says what is wrong, where, and what to do. Commands print it without a traceback
    and exit with status 2; every other exception is a defect of the code and keeps its traceback.
    """


class Diverged(Exception):
    """The loss or a parameter is no longer finite; the message names the steps and the checkpoint that is left."""


class Preempted(Exception):
    """The process was asked to leave; the message names the step up to which everything is saved."""


def suggest(word: str, choices: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the nearest of `choices`, or "" when none is near. Case is ignored."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[near[0]]!r}?" if near else ""
