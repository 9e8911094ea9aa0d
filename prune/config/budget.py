"""A budget: how fast, how large or how much work a model may end as, in place of a sparsity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trisparse.prune.errors import PruningError

BUDGET_KEYS = ("target_speedup", "target_bytes", "target_flops")
DEFAULT_TOKENS = (128, 4096)


@dataclass(frozen=True)
class Budget:
    """What one of `BUDGET_KEYS` asks of the whole model; groups that ask for the same share it.

    Attributes:
        key: which of them.
        target: times as fast, or what is to be left: a share below 1, or, of bytes, a number of them.
        tokens: numbers of tokens whose times count alike, each as a share of the dense model's.
    """

    key: str
    target: float
    tokens: tuple[int, ...] = ()

    def left(self, total: float) -> float:
        """Share of the dense model's cost that may be left; `total` is that cost in the budget's own unit."""
        if self.key == "target_speedup":
            return 1 / self.target
        return self.target if self.target < 1 else self.target / total

    def __str__(self) -> str:
        return f"{self.key} {self.target:g}"


def budget_of(values: dict[str, Any]) -> Budget | None:
    """The budget that a group's keys give, checked; None where they give a sparsity.

    Raises:
        PruningError: two budgets, a budget beside what it replaces, or a value that is none.
    """
    given = [key for key in BUDGET_KEYS if values.get(key) is not None]
    if len(given) > 1:
        raise PruningError(f"{given[1]}: {given[0]} is the budget already; want one of them")
    tokens = values.get("tokens")
    if not given:
        if tokens is not None:
            raise PruningError("tokens: has no effect without target_speedup; leave it out")
        return None
    key = given[0]
    if values.get("target_sparsity") is not None:
        raise PruningError(f"target_sparsity: {key} says how far to prune; leave one of them out")
    if values.get("pruning_scope", "global") != "global":
        raise PruningError(f"pruning_scope: under {key} all layers compete; want 'global', or leave it out")
    if str(values.get("pruning_type", "")) == "pattern_lock":
        raise PruningError(f"{key}: pattern_lock prunes nothing more; leave {key} out")
    if tokens is not None and key != "target_speedup":
        raise PruningError(f"tokens: has no effect on {key}; leave it out")
    return Budget(key, _target(key, values[key]), _tokens(tokens) if key == "target_speedup" else ())


def _target(key: str, value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if key == "target_speedup":
        if not is_number or not 1 < value < float("inf"):
            raise PruningError(f"target_speedup: want how many times as fast, more than 1, got {value!r}")
    elif key == "target_bytes":
        if not is_number or not (0 < value < 1 or (isinstance(value, int) and value > 1)):
            raise PruningError(f"target_bytes: want a share between 0 and 1, or a whole number of bytes, got {value!r}")
    elif not is_number or not 0 < value < 1:
        raise PruningError(f"target_flops: want a share between 0 and 1, got {value!r}")
    return value


def _tokens(value: Any) -> tuple[int, ...]:
    if value is None:
        return DEFAULT_TOKENS
    counts = value if isinstance(value, (list, tuple)) else ()
    if not counts or any(isinstance(t, bool) or not isinstance(t, int) or t < 1 for t in counts):
        raise PruningError(f"tokens: want a list of numbers of tokens, each 1 or more, got {value!r:.60}")
    return tuple(counts)
