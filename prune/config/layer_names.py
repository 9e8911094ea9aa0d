"""What names layers: regular expressions, globs, and classes of the modules that they are or lie in."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence, Set
from typing import Any

from trisparse.prune.errors import PruningError

GLOB, CLASS = "glob:", "class:"


def parse_names(key: str, value: object) -> tuple[str, ...]:
    """The expressions that a list stands for: a class becomes `class:module.Name`, all else stays as it is.

    Raises:
        PruningError: no list of strings and classes, or a string that is no regular expression.
    """
    if isinstance(value, (str, type)) or not isinstance(value, Sequence):
        raise PruningError(f"{key}: want a list of names, got {value!r}; write [{_written(value)}]")
    if odd := [item for item in value if not isinstance(item, (str, type))]:
        raise PruningError(f"{key}: want regular expressions, 'glob:…' or classes of modules, got {odd[0]!r:.60}")
    names = tuple(class_name(item) if isinstance(item, type) else item for item in value)
    for name in names:
        _check(key, name)
    return names


def _written(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)


def _check(key: str, name: str) -> None:
    if name in (GLOB, CLASS):
        raise PruningError(f"{key}: {name!r} names nothing; write what comes behind the colon")
    if name.startswith((GLOB, CLASS)):
        return
    try:
        re.compile(name)
    except re.error as error:
        glob = f"; as a glob it is {GLOB + name!r}" if "*" in name or "?" in name else ""
        raise PruningError(f"{key}: {name!r} is no regular expression: {error}{glob}") from None


def class_name(kind: type) -> str:
    """A class as an expression; of one that `fully_shard` derived, the class that it was."""
    kind = next(c for c in kind.__mro__ if not c.__name__.startswith("FSDP"))
    return f"{CLASS}{kind.__module__}.{kind.__qualname__}"


def names_of_class(kind: type) -> frozenset[str]:
    """How a class may be called, and those that it derives from, but for those of all modules."""
    own = [c for c in kind.__mro__ if c.__module__ not in ("builtins", "torch.nn.modules.module")]
    public = [f"torch.nn.{c.__name__}" for c in own if c.__module__.startswith("torch.nn.modules.")]
    return frozenset([*public, *(name for c in own for name in (c.__name__, f"{c.__module__}.{c.__qualname__}"))])


def finds(expression: str, name: str, classes: Set[str] = frozenset()) -> bool:
    """Whether an expression finds a layer.

    Args:
        expression: a regular expression, which finds what `re.search` does; `glob:` with a glob that the whole name
            matches; or `class:` with a class, bare or with its module in front, that the layer is or lies in.
        name: of the layer.
        classes: what `names_of_class` says of its module and of those around it.
    """
    if expression.startswith(GLOB):
        return fnmatch.fnmatchcase(name, expression.removeprefix(GLOB))
    if expression.startswith(CLASS):
        return expression.removeprefix(CLASS) in classes
    return re.search(expression, name) is not None
