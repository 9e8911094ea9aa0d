"""What to prune, how far and when. Everything that needs no model is checked here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trisparse.prune.config.budget import BUDGET_KEYS, budget_of
from trisparse.prune.config.checks import check_group
from trisparse.prune.config.file import find_config, read_config
from trisparse.prune.config.group import DEFAULT_TARGET, KEYS, OP_TYPES, SCHEDULE_KEYS, GroupConfig, in_steps
from trisparse.prune.config.layer_names import parse_names
from trisparse.prune.config.neural_compressor import convert_keys
from trisparse.prune.config.own_parts import Part, find_part
from trisparse.prune.config.patterns import parse_pattern
from trisparse.prune.config.schedules import Schedule
from trisparse.prune.errors import PruningError, nearest


class PruningConfig:
    """A global section and a list of groups; a key set in a group wins over the global one.

    Args:
        pruning_configs: one mapping a group; none means one group of the global keys.
        total_steps: how many steps the optimizer makes in all, where `start_step` or `end_step` is a fraction of them.
            `PruningCallback` and the GLUE loop know it.
        pattern, target_sparsity and so on: the keys of `GroupConfig`, for all groups that do not set them; None stands
            for one that is not given.

    Attributes:
        groups: the resolved groups.

    Raises:
        PruningError: an unknown key, or a value that is out of range or does not fit another.

    Example:
        >>> PruningConfig(pattern="2:4", start_step=1, end_step=100).groups[0].target_sparsity
        0.5
        >>> PruningConfig(start_step=0.1, end_step=0.75, total_steps=200).groups[0].window
        (20, 150, 1)
    """

    groups: tuple[GroupConfig, ...]

    def __init__(
        self, *, pruning_configs: Sequence[Mapping[str, Any]] | None = None,
        pattern: str | Part | None = None, target_sparsity: float | None = None,
        target_speedup: float | None = None, target_bytes: float | None = None, target_flops: float | None = None,
        tokens: Sequence[int] | None = None,
        start_step: int | float | None = None, end_step: int | float | None = None,
        pruning_frequency: int | None = None, total_steps: int | None = None,
        pruning_type: str | Part | None = None, sparsity_decay_type: str | Schedule | None = None,
        op_names: Sequence[str | type] | None = None, excluded_op_names: Sequence[str | type] | None = None,
        pruning_op_types: Sequence[str] | None = None, exclude_head: bool | None = None,
        pruning_scope: str | None = None, min_sparsity_ratio_per_op: float | None = None,
        max_sparsity_ratio_per_op: float | None = None, criterion_reduce_type: str | None = None,
        reg_type: str | None = None, reg_coeff: float | None = None, lock_init_sparsity: bool | None = None,
        seed: int | None = None, on_misfit: str | None = None, **unknown: Any,
    ) -> None:  # fmt: skip
        given = locals()
        check_keys(unknown, "")
        keys = {key: given[key] for key in KEYS if given[key] is not None}
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
        _check_shared(self.groups)
        unfelt = [key for key in SCHEDULE_KEYS if key in keys]
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

    def excluding(self, *patterns: str | type) -> PruningConfig:
        """The same config with more `excluded_op_names` in every group."""
        more = parse_names("excluded_op_names", patterns)
        return self.of_groups(
            dataclasses.replace(group, excluded_op_names=(*group.excluded_op_names, *more)) for group in self.groups
        )

    def in_steps(self, total_steps: int) -> PruningConfig:
        """The same with steps in the place of fractions of so many; itself where there are none.

        Raises:
            PruningError: what then does not fit together.
        """
        if not any(group.has_fractions for group in self.groups):
            return self
        found = []
        for group in self.groups:
            steps = in_steps({"start_step": group.start_step, "end_step": group.end_step}, total_steps)
            found.append(dataclasses.replace(group, **steps))
        return self.of_groups(found)

    @classmethod
    def of(cls, config: PruningConfig | Mapping[str, Any] | Sequence[Mapping[str, Any]] | str | Path) -> PruningConfig:
        """A config as it is, or made of what stands for one: its keys, a list of groups, a file or a recipe's name.

        Raises:
            PruningError: anything else, or what `PruningConfig` and `load` raise it for.
        """
        if isinstance(config, PruningConfig):
            return config
        if isinstance(config, (str, Path)):
            return cls.load(find_config(str(config)))
        if isinstance(config, Mapping):
            check_keys({key: value for key, value in config.items() if key != "pruning_configs"})
            return cls(**config)
        if isinstance(config, (list, tuple)):
            return cls(pruning_configs=config)
        raise PruningError(
            f"config: want a PruningConfig, its keys in a dict, or a file of them, got {type(config).__name__}"
        )

    @classmethod
    def of_groups(cls, groups: Iterable[GroupConfig]) -> PruningConfig:
        """A config of resolved groups.

        Raises:
            PruningError: values that do not fit one another.
        """
        config = cls.__new__(cls)
        config.groups = tuple(groups)
        for group in config.groups:
            check_group(group)
        return config

    @classmethod
    def load(cls, path: str | Path, *, defaults: Mapping[str, Any] | None = None, **flags: Any) -> PruningConfig:
        """Read a .json, .yaml or .yml file: a list of groups, or a mapping of global keys with `pruning_configs`.

        A key is taken from the group, else from `flags`, else from the file's global keys, else from `defaults`.

        Raises:
            PruningError: the file can't be read or is no config, or a flag that every group overrides.
        """
        keys = read_config(Path(path), defaults or {}, flags)
        try:
            return cls(**keys)
        except PruningError as error:
            raise PruningError(f"{path}: {error}") from None

    @classmethod
    def from_neural_compressor(cls, config: Mapping[str, Any]) -> PruningConfig:
        """Build a config from the keys of Intel neural-compressor 2.x and print what changed meaning.

        There `N:M` says how many are *pruned*, here how many are kept; there a target counts units, here weights (the
        same thing where all units are of one size).

        Raises:
            PruningError: a key or value that has no counterpart here.
        """
        keys, notes = convert_keys(config)
        result = cls(**keys)
        for note in notes:
            print(f"from_neural_compressor: {note}")  # noqa: T201 -- asked for: the caller reads it
        return result


def check_keys(keys: Mapping[str, Any], where: str = "") -> None:
    """Raise PruningError for what is no key of a group."""
    if not isinstance(keys, Mapping):
        raise PruningError(f"{where.rstrip('.') or 'pruning_configs[0]'}: want a mapping of keys, got {keys!r}")
    for key in keys:
        if key not in KEYS:
            raise PruningError(f"{where}{key}: unknown key{nearest(str(key), KEYS)}")


def _resolve(group: Mapping[str, Any], keys: Mapping[str, Any], where: str) -> GroupConfig:
    check_keys(group, where)
    # a target of None is one that is not given
    given_group = {key: value for key, value in group.items() if not (key == "target_sparsity" and value is None)}
    values = {**keys, **given_group}
    try:
        pattern = parse_pattern(values.get("pattern", "4x1"))
        if values.get("pruning_type") == "pattern_lock":
            if given := [key for key in SCHEDULE_KEYS if key in group]:
                raise PruningError(f"{given[0]}: pattern_lock holds from the first step; leave {given[0]} out")
            values = {key: value for key, value in values.items() if key not in SCHEDULE_KEYS}
        total = values.pop("total_steps", None)
        if (
            isinstance(values.get("start_step"), float)
            and values.get("end_step") == 1
            and type(values["end_step"]) is int
        ):
            raise PruningError("end_step: 1 is the first step, and start_step a fraction; write 1.0 for all steps")
        if total is not None:
            values = in_steps(values, total)
        values = _one_goal(values, given_group)
        budget = budget_of(values)
        if budget is not None:
            values |= {"target_sparsity": None, "tokens": budget.tokens or None}
        elif values.get("target_sparsity") is None:
            values["target_sparsity"] = 1 - pattern.n / pattern.m if pattern.is_nm else DEFAULT_TARGET
        values["pattern"] = pattern
        for name in ("pruning_type", "sparsity_decay_type"):
            if name in values:
                values[name] = find_part(name, values[name])
        for name, parse in (
            ("op_names", parse_names),
            ("excluded_op_names", parse_names),
            ("pruning_op_types", _types),
        ):
            if name in values:
                values[name] = parse(name, values[name])
        config = GroupConfig(**values)
        check_group(config)
    except PruningError as error:
        raise PruningError(f"{where}{error}") from None
    return config


def _check_shared(groups: Sequence[GroupConfig]) -> None:
    """Groups under one budget prune at the same steps."""
    for name in ("start_step", "end_step", "pruning_frequency", "sparsity_decay_type"):
        for budget in {group.budget for group in groups if group.budget is not None}:
            values = [getattr(group, name) for group in groups if group.budget == budget]
            if len(set(values)) > 1:
                raise PruningError(f"{name}: groups that share {budget} want the same, got {values}")


def _one_goal(values: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Of a group that says itself how far it goes, without what all groups are told of that."""
    goals = ("target_sparsity", *BUDGET_KEYS)
    if not any(own.get(key) is not None for key in goals):
        return values
    dropped = [key for key in (*goals, "tokens") if own.get(key) is None]
    return {key: value for key, value in values.items() if key not in dropped}


def _types(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
        raise PruningError(f"{name}: want a list of {' and '.join(OP_TYPES)}, got {value!r}; classes go into op_names")
    return tuple(value)
