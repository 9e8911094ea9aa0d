"""The one error for what a user can mend."""

import difflib
from collections.abc import Iterable


class PruningError(ValueError):
    """What was asked for can't be done. The message names the field, the value and the fix."""


def one_line(error: BaseException) -> str:
    """An error's kind and the first line of what it says, for a message of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the most similar of the known names, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
