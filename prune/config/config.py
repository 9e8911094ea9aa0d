"""What to prune, how far and when. Everything that needs no model is checked here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trisparse.prune.config.patterns import Pattern, parse_pattern
from trisparse.prune.config.schedules import SCHEDULES, last_event
from trisparse.prune.errors import PruningError, nearest

CRITERIA = ("magnitude", "gradient", "snip", "snip_momentum")
PRUNING_TYPES = (*CRITERIA, *(f"{c}_progressive" for c in CRITERIA), "pattern_lock")
SCOPES = ("global", "local")
OP_TYPES = ("Conv", "Linear")
REDUCTIONS = ("mean", "sum", "max")
DEFAULT_TARGET = 0.9
# what a pattern_lock has no use for
SCHEDULE_KEYS = ("start_step", "end_step", "pruning_frequency", "target_sparsity")


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """The keys of one group of layers, and of the global section. All of them resolved.

    Attributes:
        target_sparsity: fraction of the group's weights that end as zero; default 0.9, for N:M 1 - N/M.
        pruning_type: a criterion (`magnitude`, `gradient`, `snip`, `snip_momentum`), one with
            `_progressive` behind it, or `pattern_lock`.
        pattern: `NxM`, `1xchannel`, `channelx1`, or `N:M` where N of every M are kept.
        op_names: regular expressions; a layer whose name one of them finds (`re.search`) is in the group.
        excluded_op_names: regular expressions; a layer whose name one of them finds is not.
        pruning_op_types: `Conv`, `Linear` or both.
        start_step: optimizer steps before the first event. Required, but for `pattern_lock`.
        end_step: optimizer step after which the masks stay. Required, but for `pattern_lock`.
        pruning_frequency: steps from one event to the next.
        pruning_scope: `global`: the group's layers compete; `local`: each layer meets the target alone.
        min_sparsity_ratio_per_op: least sparsity of each layer when the target is met.
        max_sparsity_ratio_per_op: greatest sparsity of each layer, at any time.
        sparsity_decay_type: `linear`, `cos`, `cube`, `exp` or `cubic`.
        criterion_reduce_type: `mean`, `sum` or `max` of the weights' scores in a unit.
        reg_type: None or `group_lasso`, which shrinks whole units from start to end.
        reg_coeff: strength of `reg_type`.
        lock_init_sparsity: what is zero at the start stays zero; units that are (for N:M, groups with at most N
            nonzero weights) count as pruned.
        exclude_head: leave the model's last layer, its classification head, dense.
    """

    target_sparsity: float = DEFAULT_TARGET
    pruning_type: str = "snip_momentum"
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
    sparsity_decay_type: str = "exp"
    criterion_reduce_type: str = "mean"
    reg_type: str | None = None
    reg_coeff: float | None = None
    lock_init_sparsity: bool = False
    exclude_head: bool = True

    @property
    def is_lock(self) -> bool:
        return self.pruning_type == "pattern_lock"

    @property
    def is_progressive(self) -> bool:
        return self.pruning_type.endswith("_progressive")

    @property
    def criterion(self) -> str:
        return self.pruning_type.removesuffix("_progressive")

    @property
    def needs_gradient(self) -> bool:
        return not self.is_lock and self.criterion != "magnitude"

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
        """The keys as plain JSON values; builds an equal group again."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.is_lock:
            values = {key: value for key, value in values.items() if key not in SCHEDULE_KEYS}
        return {k: str(v) if k == "pattern" else list(v) if isinstance(v, tuple) else v for k, v in values.items()}


KEYS = tuple(f.name for f in dataclasses.fields(GroupConfig))


class PruningConfig:
    """A global section and a list of groups; a key set in a group wins over the global one.

    Args:
        pruning_configs: one mapping a group; none means one group of the global keys.
        **keys: the keys of `GroupConfig`, for all groups that do not set them.

    Attributes:
        groups: the resolved groups.

    Raises:
        PruningError: an unknown key, or a value that is out of range or does not fit another.

    Example:
        >>> PruningConfig(pattern="2:4", start_step=1, end_step=100).groups[0].target_sparsity
        0.5
    """

    groups: tuple[GroupConfig, ...]

    def __init__(self, *, pruning_configs: Sequence[Mapping[str, Any]] | None = None, **keys: Any) -> None:
        _check_keys(keys, "")
        if pruning_configs is None:
            pruning_configs = [{}]
        if isinstance(pruning_configs, str | Mapping) or not isinstance(pruning_configs, Sequence):
            raise PruningError(f"pruning_configs: want a list of groups, got {pruning_configs!r}")
        if not pruning_configs:
            raise PruningError("pruning_configs: got an empty list; leave the key out for one group of all layers")
        self.groups = tuple(
            _resolve(group, keys, f"pruning_configs[{i}]." if len(pruning_configs) > 1 else "")
            for i, group in enumerate(pruning_configs)
        )
        unfelt = [key for key in SCHEDULE_KEYS if keys.get(key) is not None]
        if unfelt and all(group.is_lock for group in self.groups):
            raise PruningError(f"{unfelt[0]}: pattern_lock holds from the first step; leave {unfelt[0]} out")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PruningConfig) and self.groups == other.groups

    def __hash__(self) -> int:
        return hash(self.groups)

    def __repr__(self) -> str:
        return f"PruningConfig(pruning_configs={self.to_dict()})"

    def to_dict(self) -> list[dict[str, Any]]:
        """The resolved groups as plain JSON values."""
        return [group.to_dict() for group in self.groups]

    def excluding(self, *patterns: str) -> PruningConfig:
        """The same config with more `excluded_op_names` in every group."""
        more = PruningConfig.__new__(PruningConfig)
        more.groups = tuple(
            dataclasses.replace(group, excluded_op_names=(*group.excluded_op_names, *patterns)) for group in self.groups
        )
        return more

    @classmethod
    def load(cls, path: str, **flags: Any) -> PruningConfig:
        """Read a .json, .yaml or .yml file; see `trisparse.prune.config.file.load_config`."""
        from trisparse.prune.config.file import load_config

        return load_config(path, **flags)

    @classmethod
    def from_neural_compressor(cls, config: Mapping[str, Any]) -> PruningConfig:
        """Convert neural-compressor's keys; see `trisparse.prune.config.neural_compressor`."""
        from trisparse.prune.config.neural_compressor import convert_config

        return convert_config(config)


def _check_keys(keys: Mapping[str, Any], where: str) -> None:
    if not isinstance(keys, Mapping):
        raise PruningError(f"{where.rstrip('.') or 'pruning_configs[0]'}: want a mapping of keys, got {keys!r}")
    for key in keys:
        if key not in KEYS:
            raise PruningError(f"{where}{key}: unknown key{nearest(str(key), KEYS)}")


def _resolve(group: Mapping[str, Any], keys: Mapping[str, Any], where: str) -> GroupConfig:
    _check_keys(group, where)
    # a target of None is one that is not given
    given_group = {key: value for key, value in group.items() if not (key == "target_sparsity" and value is None)}
    values = {**keys, **given_group}
    try:
        pattern = parse_pattern(values.get("pattern", "4x1"))
        if values.get("target_sparsity") is None:
            values["target_sparsity"] = 1 - pattern.n / pattern.m if pattern.is_nm else DEFAULT_TARGET
        values["pattern"] = pattern
        for name in ("op_names", "excluded_op_names", "pruning_op_types"):
            if name in values:
                values[name] = _names(name, values[name])
        if values.get("pruning_type") == "pattern_lock":
            if given := [key for key in SCHEDULE_KEYS if key in group]:
                raise PruningError(f"{given[0]}: pattern_lock holds from the first step; leave {given[0]} out")
            values = {key: value for key, value in values.items() if key not in SCHEDULE_KEYS}
        config = GroupConfig(**values)
        _check(config)
    except PruningError as error:
        raise PruningError(f"{where}{error}") from None
    return config


def _names(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
        raise PruningError(f"{name}: want a list of strings, got {value!r}; write [{value!r}]")
    return tuple(value)


def _check(c: GroupConfig) -> None:
    _choice("pruning_type", c.pruning_type, PRUNING_TYPES)
    _choice("pruning_scope", c.pruning_scope, SCOPES)
    _choice("sparsity_decay_type", c.sparsity_decay_type, tuple(SCHEDULES))
    _choice("criterion_reduce_type", c.criterion_reduce_type, REDUCTIONS)
    if not c.pruning_op_types:
        raise PruningError(f"pruning_op_types: got an empty list; want {' or '.join(OP_TYPES)}")
    for op_type in c.pruning_op_types:
        _choice("pruning_op_types", op_type, OP_TYPES)
    for name in ("op_names", "excluded_op_names"):
        for pattern in getattr(c, name):
            try:
                re.compile(pattern)
            except re.error as error:
                raise PruningError(f"{name}: {pattern!r} is no regular expression: {error}") from None
    for name in ("lock_init_sparsity", "exclude_head"):
        if not isinstance(getattr(c, name), bool):
            raise PruningError(f"{name}: want true or false, got {getattr(c, name)!r}")
    _check_ratios(c)
    _check_regularization(c)
    if not c.is_lock:
        _check_window(c)


def _check_ratios(c: GroupConfig) -> None:
    low, target, high = c.min_sparsity_ratio_per_op, c.target_sparsity, c.max_sparsity_ratio_per_op
    _number("target_sparsity", target, 0, 1)
    _number("min_sparsity_ratio_per_op", low, 0, 1)
    _number("max_sparsity_ratio_per_op", high, 0, 1)
    if c.is_lock:
        return
    if target == 0:
        raise PruningError("target_sparsity: 0 prunes nothing; want a fraction above 0 and below 1")
    if c.pattern.is_nm:
        reach = 1 - c.pattern.n / c.pattern.m
        if target > reach + 1e-9:  # a rounded 2/3 is meant as 2/3
            raise PruningError(
                f"target_sparsity: {target} is out of reach for {c.pattern}, which keeps {c.pattern.n} of every "
                f"{c.pattern.m}; want at most {reach}"
            )
        if c.is_progressive:
            raise PruningError(f"pruning_type: {c.pruning_type!r} can't cut an N:M group in parts; use {c.criterion!r}")
    if target > high:
        raise PruningError(
            f"target_sparsity: {target} is out of reach with max_sparsity_ratio_per_op {high}; "
            "raise one or lower the other"
        )
    if low > target:
        raise PruningError(f"min_sparsity_ratio_per_op: {low} is above target_sparsity {target}; want at most {target}")


def _check_regularization(c: GroupConfig) -> None:
    if c.reg_type is None:
        if c.reg_coeff is not None:
            raise PruningError(f"reg_coeff: {c.reg_coeff} has no effect without reg_type; add reg_type: group_lasso")
        return
    _choice("reg_type", c.reg_type, ("group_lasso",))
    if c.reg_coeff is None:
        raise PruningError("reg_coeff: missing; reg_type group_lasso needs a strength, such as 0.001")
    _number("reg_coeff", c.reg_coeff, 0, float("inf"))
    if c.pattern.is_nm or c.is_lock:
        what = f"pattern {c.pattern}" if c.pattern.is_nm else "pruning_type pattern_lock"
        raise PruningError(f"reg_type: group_lasso shrinks whole units, which {what} has none of; leave reg_type out")


def _check_window(c: GroupConfig) -> None:
    for name in ("start_step", "end_step"):
        value = getattr(c, name)
        if value is None:
            raise PruningError(f"{name}: missing; give the optimizer step at which pruning {name.split('_')[0]}s")
        _integer(name, value, 0)
    _integer("pruning_frequency", c.pruning_frequency, 1)
    start, end, _ = c.window
    if end < start:
        raise PruningError(f"end_step: {end} is before start_step {start}; want end_step >= start_step")
    if start == 0 and c.last_event == 0 and c.needs_gradient:
        raise PruningError(
            f"start_step: {c.pruning_type} has no gradient to score before the first step; "
            "want start_step >= 1, or pruning_type magnitude"
        )


def _choice(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise PruningError(f"{name}: {value!r} is not one of {', '.join(known)}{nearest(str(value), known)}")


def _number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < high:
        raise PruningError(f"{name}: want a number from {low} up to but not {high}, got {value!r}")


def _integer(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise PruningError(f"{name}: want a whole number of at least {low}, got {value!r}")
