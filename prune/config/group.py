"""The keys of one group of layers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from trisparse.prune.config.budget import BUDGET_KEYS, Budget, budget_of
from trisparse.prune.config.own_parts import Part, name_of, parameters
from trisparse.prune.config.patterns import Pattern, parse_pattern
from trisparse.prune.config.schedules import Schedule, last_event
from trisparse.prune.errors import PruningError

OF_WEIGHTS = ("magnitude", "lamp", "random")  # what needs no gradient
CRITERIA = ("magnitude", "gradient", "snip", "snip_momentum", "block_mask", "taylor", "lamp", "random")
PRUNING_TYPES = (*CRITERIA, *(f"{c}_progressive" for c in CRITERIA), "pattern_lock")
SCOPES = ("global", "local")
OP_TYPES = ("Conv", "Linear")
REDUCTIONS = ("mean", "sum", "max")
MISFITS = ("error", "skip")
DEFAULT_TARGET = 0.9
# what a pattern_lock has no use for
SCHEDULE_KEYS = ("start_step", "end_step", "pruning_frequency", "target_sparsity", *BUDGET_KEYS, "tokens")


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """The keys of one group of layers, and of the global section. All of them resolved.

    Attributes:
        target_sparsity: fraction of the group's weights that end as zero; default 0.9, for N:M 1 - N/M; None under
            a budget.
        target_speedup: times as fast as dense that the model is to be, on this machine, once it is compressed.
        target_bytes: share of the model's bytes that is to be left, or how many bytes.
        target_flops: share that is to be left of the multiplications of all linear layers.
        tokens: numbers of tokens that `target_speedup` is measured with, (128, 4096) unless given.
        pruning_type: a criterion (`magnitude`, `gradient`, `snip`, `snip_momentum`, `block_mask`, `taylor`, `lamp`,
            `random`), one with `_progressive` behind it, `pattern_lock`, or a function of one's own.
        pattern: `NxM`, `Nxchannel`, `channelxM`, `mha`, `N:M` where N of every M are kept, or a function of one's own.
        op_names: regular expressions, which find a layer as `re.search` does; `glob:` with a glob; or classes, of the
            layer or of a module that it lies in. What one of them finds is in the group.
        excluded_op_names: the same; what one of them finds is not.
        pruning_op_types: `Conv`, `Linear` or both.
        start_step: optimizer steps before the first event, or a fraction of all. Required, but for `pattern_lock`.
        end_step: optimizer step after which the masks stay, or a fraction. Required, but for `pattern_lock`.
        pruning_frequency: steps from one event to the next.
        pruning_scope: `global`: the group's layers compete; `local`: each layer meets the target alone.
        min_sparsity_ratio_per_op: least sparsity of each layer when the target is met.
        max_sparsity_ratio_per_op: greatest sparsity of each layer, at any time.
        sparsity_decay_type: `linear`, `cos`, `cube`, `exp`, `cubic`, or a function of one's own.
        criterion_reduce_type: `mean`, `sum` or `max` of the weights' scores in a unit.
        reg_type: None or `group_lasso`, which shrinks whole units from start to end.
        reg_coeff: strength of `reg_type`.
        lock_init_sparsity: what is zero at the start stays zero; units that are (for N:M, groups with at most N
            nonzero weights) count as pruned.
        exclude_head: leave the model's last layer, its classification head, dense.
        seed: of `random`, which is 0 where it is None.
        on_misfit: of layers that the pattern does not divide: `error`, or `skip`, which leaves them dense.
    """

    target_sparsity: float | None = DEFAULT_TARGET
    target_speedup: float | None = None
    target_bytes: float | None = None
    target_flops: float | None = None
    tokens: tuple[int, ...] | None = None
    pruning_type: str | Part = "snip_momentum"
    pattern: Pattern = field(default_factory=lambda: parse_pattern("4x1"))
    op_names: tuple[str, ...] = (".*",)
    excluded_op_names: tuple[str, ...] = ()
    pruning_op_types: tuple[str, ...] = OP_TYPES
    start_step: int | float | None = None
    end_step: int | float | None = None
    pruning_frequency: int = 1
    pruning_scope: str = "global"
    min_sparsity_ratio_per_op: float = 0.0
    max_sparsity_ratio_per_op: float = 0.98
    sparsity_decay_type: str | Schedule = "exp"
    criterion_reduce_type: str = "mean"
    reg_type: str | None = None
    reg_coeff: float | None = None
    lock_init_sparsity: bool = False
    exclude_head: bool = True
    seed: int | None = None
    on_misfit: str = "error"

    @property
    def budget(self) -> Budget | None:
        """What the group is to cost, where that is asked for in place of a sparsity; all such groups share it."""
        return budget_of({key: getattr(self, key) for key in (*BUDGET_KEYS, "tokens")})

    @property
    def target(self) -> float:
        """The sparsity aimed at.

        Raises:
            PruningError: under a budget there is none.
        """
        if self.target_sparsity is None:
            key = str(self.budget).split()[0]
            raise PruningError(
                f"{key}: has no meaning for what is asked for, which needs a sparsity; want target_sparsity"
            )
        return self.target_sparsity

    @property
    def goal(self) -> float | str:
        """The sparsity aimed at, or the budget in words."""
        return str(self.budget) if self.target_sparsity is None else self.target_sparsity

    @property
    def is_lock(self) -> bool:
        return self.pruning_type == "pattern_lock"

    @property
    def is_progressive(self) -> bool:
        return isinstance(self.pruning_type, str) and self.pruning_type.endswith("_progressive")

    @property
    def criterion(self) -> str | Part:
        """A name, or a function of one's own."""
        kind = self.pruning_type
        return kind.removesuffix("_progressive") if isinstance(kind, str) else kind

    @property
    def needs_gradient(self) -> bool:
        if not isinstance(self.criterion, str):
            return parameters(self.criterion) > 1
        return not self.is_lock and self.criterion not in OF_WEIGHTS

    @property
    def keeps_scores(self) -> bool:
        """Whether a score comes of the one before, on every step."""
        return self.criterion in ("snip_momentum", "block_mask") or self.keeps_weight_scores

    @property
    def keeps_weight_scores(self) -> bool:
        """Whether those are one a weight, of a function of one's own."""
        return not isinstance(self.criterion, str) and parameters(self.criterion) == 3

    @property
    def own_parts(self) -> dict[str, str]:
        """Key -> name of each function of one's own."""
        parts = ("pruning_type", self.pruning_type), ("sparsity_decay_type", self.sparsity_decay_type)
        return {key: name_of(part) for key, part in (*parts, ("pattern", self.pattern.sizes)) if callable(part)}

    @property
    def names_all(self) -> bool:
        """Whether nobody named layers, so that those without use may be left out."""
        return self.op_names == (".*",)

    @property
    def window(self) -> tuple[int, int, int]:
        """Start, end and frequency; for groups that have a schedule.

        Raises:
            PruningError: of a fraction of steps that nobody has counted.
        """
        for name in ("start_step", "end_step"):
            value = getattr(self, name)
            assert value is not None
            if isinstance(value, float):
                raise PruningError(f"total_steps: missing; {name} {value} is a fraction of the optimizer's steps")
        return self.start_step, self.end_step, self.pruning_frequency  # type: ignore[return-value]

    @property
    def has_fractions(self) -> bool:
        """Whether the schedule's start or end is a fraction of steps that nobody has counted."""
        return not self.is_lock and (isinstance(self.start_step, float) or isinstance(self.end_step, float))

    @property
    def last_event(self) -> int:
        return last_event(*self.window)

    def to_dict(self) -> dict[str, Any]:
        """The keys as plain JSON values, functions by name; builds an equal group again."""
        values = {f.name: name_of(getattr(self, f.name)) for f in dataclasses.fields(self)}
        if self.is_lock:
            values = {key: value for key, value in values.items() if key not in SCHEDULE_KEYS}
        unused = (*BUDGET_KEYS, "tokens") if self.budget is None else ("target_sparsity",)
        values = {key: value for key, value in values.items() if key not in unused or value is not None}
        return {k: str(v) if k == "pattern" else list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def in_steps(values: dict[str, Any], total: object) -> dict[str, Any]:
    """Keys with `start_step` and `end_step` in steps, where they are fractions of so many.

    Raises:
        PruningError: `total` is no number of steps, or one that is reached before the last event.
    """
    if isinstance(total, bool) or not isinstance(total, int) or total < 1:
        raise PruningError(f"total_steps: want how many steps the optimizer makes in all, got {total!r}")
    fractions = {key: values.get(key) for key in ("start_step", "end_step")}
    found = values | {k: round(v * total) for k, v in fractions.items() if isinstance(v, float) and 0 <= v <= 1}
    if isinstance(end := found.get("end_step"), int) and end > total:
        raise PruningError(f"end_step: want at most {total}, the steps that are made in all, got {end}")
    return found


KEYS = (*(f.name for f in dataclasses.fields(GroupConfig)), "total_steps")
