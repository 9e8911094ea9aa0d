"""What goes and how much, without when: the config of pruning at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trisparse.prune.config.budget import BUDGET_KEYS
from trisparse.prune.config.config import PruningConfig, check_keys
from trisparse.prune.config.file import find_config, read_config
from trisparse.prune.config.patterns import parse_pattern
from trisparse.prune.errors import PruningError

SCHEDULE = (
    "pruning_type", "start_step", "end_step", "pruning_frequency", "total_steps", "sparsity_decay_type", "reg_type",
    "reg_coeff", "seed",
)  # fmt: skip
_NOW: dict[str, Any] = {"pruning_type": "magnitude", "start_step": 0, "end_step": 0}
_GOALS = ("target_sparsity", *BUDGET_KEYS)


def config_at_once(config: Any, keys: Mapping[str, Any], has_sparsities: bool) -> tuple[PruningConfig, list[str]]:
    """The config that one event at step 0 carries out, and a note on what of `config` is left without use.

    Args:
        config: what `PruningConfig.of` takes, or None. When and by which criterion it says to prune does not count.
        keys: of `PruningConfig`, in its place; beside a file they win over its own.
        has_sparsities: whether each layer's sparsity is said elsewhere.

    Raises:
        PruningError: no pattern or no goal is given, keys beside a config, or one that says when to prune.
    """
    if config is None:
        _refuse_schedule(keys)
        _check_asked(keys, has_sparsities)
        return PruningConfig(**_NOW, **keys), []
    if keys and not isinstance(config, (str, Path)):
        raise PruningError(f"{min(keys)}: config says what to prune already; put it there")
    if isinstance(config, PruningConfig):
        if any(group.is_lock for group in config.groups):
            raise PruningError("config: pattern_lock prunes nothing; want what to prune and how far")
        own = _NOW | {"pruning_frequency": 1, "sparsity_decay_type": "exp"}
        own |= dict.fromkeys(("reg_type", "reg_coeff", "seed"))
        now = PruningConfig.of_groups(dataclasses.replace(group, **own) for group in config.groups)
        return now, ["config: pruned at once; its pruning_type and schedule had no use"]
    if isinstance(config, (str, Path)):
        path = find_config(str(config))
        raw = read_config(path, {}, keys)
        try:
            return _of_keys(raw, has_sparsities)
        except PruningError as error:
            raise PruningError(f"{path}: {error}") from None
    if isinstance(config, Mapping):
        return _of_keys(config, has_sparsities)
    if isinstance(config, (list, tuple)):
        return _of_keys({"pruning_configs": config}, has_sparsities)
    return PruningConfig.of(config), []  # which says what it wants


def _of_keys(keys: Mapping[str, Any], has_sparsities: bool) -> tuple[PruningConfig, list[str]]:
    """Of a dict or a file, which may say when to prune."""
    if any(mapping.get("pruning_type") == "pattern_lock" for mapping in _mappings(keys)):
        raise PruningError("config: pattern_lock prunes nothing; want what to prune and how far")
    unused = {key for mapping in _mappings(keys) for key in SCHEDULE if mapping.get(key) is not None}
    now = _without_schedule(keys)
    if groups := now.get("pruning_configs"):
        now["pruning_configs"] = [_without_schedule(g) if isinstance(g, Mapping) else g for g in groups]
    _check_asked(now, has_sparsities)
    note = [f"config: pruned at once; no use for its {', '.join(sorted(unused))}"] if unused else []
    return PruningConfig(**_NOW, **now), note


def _mappings(keys: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The keys of all groups, and those of each."""
    groups = keys.get("pruning_configs")
    return [keys, *(g for g in (groups if isinstance(groups, (list, tuple)) else ()) if isinstance(g, Mapping))]


def _without_schedule(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if key not in SCHEDULE}


def _refuse_schedule(keys: Mapping[str, Any]) -> None:
    for key in SCHEDULE:
        if any(key in mapping for mapping in _mappings(keys)):
            raise PruningError(f"{key}: prune_once prunes at once, by its method; for a schedule use Pruner")


def _check_asked(keys: Mapping[str, Any], has_sparsities: bool) -> None:
    """Each group says what goes and how much, itself or by the keys of all."""
    common, *groups = _mappings(keys)
    for mapping in (common, *groups):
        check_keys({key: value for key, value in mapping.items() if key != "pruning_configs"})
    for own in groups or [{}]:
        given = {**common, **own}
        if given.get("pattern") is None:
            raise PruningError("pattern: missing; want what goes together, such as '2:4', '4x1', '1xchannel' or '1x1'")
        says = parse_pattern(given["pattern"]).is_nm or has_sparsities
        if not says and all(given.get(key) is None for key in _GOALS):
            raise PruningError(
                f"target_sparsity: missing; want which fraction of the weights goes, such as 0.5, or {BUDGET_KEYS[1]}"
            )
