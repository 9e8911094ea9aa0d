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
        op_names: regular expressions; a layer whose name one of them finds (`re.search`) is in the group.
        excluded_op_names: regular expressions; a layer whose name one of them finds is not.
        pruning_op_types: `Conv`, `Linear` or both.
        start_step: optimizer steps before the first event. Required, but for `pattern_lock`.
        end_step: optimizer step after which the masks stay. Required, but for `pattern_lock`.
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
    start_step: int | None = None
    end_step: int | None = None
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
        """Start, end and frequency; for groups that have a schedule."""
        assert self.start_step is not None
        assert self.end_step is not None
        return self.start_step, self.end_step, self.pruning_frequency

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


KEYS = tuple(f.name for f in dataclasses.fields(GroupConfig))
