"""Recipes of `trisparse train`: the flags of a run, kept in a YAML file. One for each published row comes along."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trisparse.prune.config.file import find_file, parse_file
from trisparse.prune.errors import PruningError, nearest

RECIPES = Path(__file__).parent / "recipes"


def recipe_flags(name: str, known: Sequence[str]) -> list[str]:
    """The words of a command line that a recipe stands for.

    Args:
        name: path of a YAML or JSON mapping of flags, or the name of one that comes with the package.
        known: names that flags may have.

    Raises:
        PruningError: there is none, or it holds something else.
    """
    try:
        path = find_file(name, RECIPES)
    except PruningError as error:
        raise PruningError(f"--recipe: {error}") from None
    content = parse_file(path)
    if not isinstance(content, dict):
        raise PruningError(f"--recipe: {path}: want a mapping of flags, got {type(content).__name__}")
    for key, value in content.items():
        if key not in known or key == "recipe":
            raise PruningError(f"--recipe: {path}: {key!r}: unknown flag{nearest(str(key), known)}")
        if not isinstance(value, str | int | float):
            raise PruningError(f"--recipe: {path}: {key}: want text, a number, true or false, got {value!r}")
    return [word for key, value in content.items() for word in (f"--{key}", str(value))]


def recipe_lines() -> list[str]:
    """Name and first line of each recipe that comes with the package."""
    paths = sorted(RECIPES.glob("*.yaml"))
    width = max(len(path.stem) for path in paths)
    first = [path.read_text(encoding="utf-8").splitlines()[0] for path in paths]
    return [f"  {path.stem:<{width}}  {line.removeprefix('# ')}" for path, line in zip(paths, first, strict=True)]
