"""Command lines: a mistake is one line, and help shows each flag in one spelling and each default once."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from trisparse.prune.errors import PruningError, nearest

# what argparse says, and what it means
_WORDINGS = (
    (r"^argument ([\w-]+)[^:]*: ", r"\1: "),
    (r"invalid int value: ", "want a whole number, got "),
    (r"invalid float value: ", "want a number, got "),
    (r"Truthy value expected: got (.*?) but .*", r"want true or false, got '\1'"),
    (r"expected (one|at least one) argument$", "its value is missing"),
    (r"^the following arguments are required: (.*)$", r"\1: missing"),
    (r"^one of the arguments (\S+) (\S+) is required$", r"\1 or \2: missing"),
    (r"not allowed with argument (.*)$", r"does not go together with \1; leave one of them out"),
)


class Parser(argparse.ArgumentParser):
    """Raises PruningError, one line, where argparse prints its usage and ends the program."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            raise PruningError(unknown_argument(unknown[1], self.flags()))
        for said, meant in _WORDINGS:
            message = re.sub(said, meant, message)
        raise PruningError(message)

    def flags(self) -> list[str]:
        """Each flag in the spelling that help shows."""
        return [action.option_strings[0] for action in self._actions if action.option_strings]

    def format_help(self) -> str:
        for action in self._actions:
            action.option_strings = action.option_strings[-1 if action.dest == "help" else 0 :][:1]
            is_told = action.default in (None, argparse.SUPPRESS) or action.default is False
            if not is_told and "default" not in str(action.help):
                action.help = f"{action.help} (default: %(default)s)"
        return super().format_help()


def flag(default: Any, help: str, shown: str | None = None) -> Any:
    """A field of a dataclass of flags; `shown` stands for its value in help."""
    return dataclasses.field(default=default, metadata={"help": help} | ({"metavar": shown} if shown else {}))


def one_of(*known: str) -> dict[str, Any]:
    """Arguments of `add_argument` for a flag that takes one of these words."""

    def check(word: str) -> str:
        if word not in known:
            raise argparse.ArgumentTypeError(not_one_of(word, known))
        return word

    return {"type": check, "metavar": f"{{{','.join(known)}}}"}


def not_one_of(word: str, known: Iterable[str]) -> str:
    """What is said of a word that is none of the known."""
    known = list(known)
    return f"{word!r} is not one of {', '.join(known)}{nearest(word, known)}"


def unknown_argument(word: str, flags: Iterable[str]) -> str:
    """What is said of an argument that a command does not take."""
    word = word.split("=")[0]
    close = nearest(word.replace("-", "_").replace("__", "--", 1), flags) if word.startswith("--") else ""
    return f"{word}: unknown argument{close.replace(chr(39), '')}"
