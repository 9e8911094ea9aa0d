"""Parts of one's own: plain functions in the place of a name, known by their module and qualified name."""

from __future__ import annotations

import functools
import inspect
import math
import re
import sys
from collections.abc import Callable
from typing import Any

from trisparse.prune.errors import PruningError, one_line

Part = Callable[..., Any]
# the parameters without a default that a function of each key may have
_PARAMETERS = {
    "pruning_type": ((1, 2, 3), "(weight), (weight, grad) or (weight, grad, score)"),
    "sparsity_decay_type": ((2,), "(target, progress)"),
    "pattern": ((2,), "(name, shape)"),
}
_NAME = re.compile(r"[^\W\d]\w*(\.[\w<>]+)+")
_SLACK = 1e-9  # what rounding may do to a schedule; the last event takes the target itself


def name_of(value: Any) -> Any:
    """Module and qualified name of a function, `methods.my_score`; anything else as it is."""
    return f"{value.__module__}.{value.__qualname__}" if inspect.isfunction(value) else value


def is_function_name(value: object) -> bool:
    """Whether this is what `name_of` gives for a function."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


@functools.lru_cache
def parameters(part: Part) -> int:
    """How many arguments a function wants: its parameters without a default; -1 if that can't be told."""
    wanted = [p for p in inspect.signature(part).parameters.values() if p.default is p.empty]
    is_odd = any(p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL) for p in wanted)
    return -1 if is_odd else sum(p.kind is not p.VAR_KEYWORD for p in wanted)


def find_part(key: str, value: object) -> Any:
    """The function that is given or named as the value of a key; any other value as it is.

    A name is looked up in modules that are imported already: to read a config imports nothing.

    Raises:
        PruningError: another callable, a name without a function, or parameters that do not fit.
    """
    part = _by_name(key, value) if isinstance(value, str) and is_function_name(value) else value
    if not inspect.isfunction(part):
        if callable(part):
            raise PruningError(f"{key}: want a name or a function made by def or lambda, got {part!r}; wrap it in one")
        return part
    counts, wanted = _PARAMETERS[key]
    if parameters(part) not in counts:
        raise PruningError(
            f"{key}: {name_of(part)}{inspect.signature(part)} does not take {wanted}; give what comes besides a default"
        )
    return part


def _by_name(key: str, name: str) -> Part:
    words = name.split(".")
    for cut in range(len(words) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(words[:cut]))
        for word in words[cut:]:
            found = getattr(found, "__dict__", {}).get(word)  # a lazy module would import for getattr
        if inspect.isfunction(found):
            return found
    if "<" in name:
        raise PruningError(
            f"{key}: {name!r} is a lambda or a nested function, which has no name to find it by; give the function "
            "itself, or define it at the top of a module"
        )
    raise PruningError(
        f"{key}: {name!r} is no function of a module that is imported; import it first, or give the function itself"
    )


def check_schedule(schedule: Part, target: float, last: int) -> None:
    """Raise PruningError unless a schedule rises from event to event, 0 to `last`, and ends at the target."""
    name, before = f"sparsity_decay_type: {name_of(schedule)}", 0.0
    for event in range(last + 1):
        progress = event / last if last else 1.0
        try:
            sparsity = schedule(target, progress)
        except Exception as error:
            raise PruningError(
                f"{name}: failed for target {target}, progress {progress:g}: {one_line(error)}"
            ) from error
        if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not math.isfinite(sparsity):
            raise PruningError(f"{name} gives {sparsity!r} at progress {progress:g}; want a number")
        if sparsity < before - _SLACK:
            raise PruningError(f"{name} falls from {before} to {sparsity} at progress {progress:g}; want it to rise")
        if sparsity > target + _SLACK:
            raise PruningError(f"{name} gives {sparsity} at progress {progress:g}; want at most the target, {target}")
        before = max(before, sparsity)
    if before < target - _SLACK:
        raise PruningError(f"{name} ends at {before}; want the target, {target}, at progress 1")


def block_of(sizes: Part, name: str, shape: tuple[int, int]) -> tuple[int, int]:
    """The block size that a pattern of one's own gives a layer.

    Raises:
        PruningError: it is no pair of whole numbers of at least 1.
    """
    where = f"pattern: {name_of(sizes)}"
    try:
        block = sizes(name, shape)
    except Exception as error:
        raise PruningError(f"{where} failed for {name} {list(shape)}: {one_line(error)}") from error
    if (
        not isinstance(block, (tuple, list))
        or len(block) != 2
        or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in block)
    ):
        raise PruningError(
            f"{where} gives {block!r} for {name} {list(shape)}; want the rows and columns of a unit, such as (4, 1)"
        )
    return block[0], block[1]
