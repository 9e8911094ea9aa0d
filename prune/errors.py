"""The one error for what a user can mend."""

import difflib
from collections.abc import Iterable


class PruningError(ValueError):
    """What was asked for can't be done. The message names the field, the value and the fix."""


def one_line(error: BaseException) -> str:
    """An error's kind and the beginning of what it says, for a message of one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the most similar of the known names, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
