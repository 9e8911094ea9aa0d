"""Convert a pruning config of Intel neural-compressor 2.x."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trisparse.prune.config.group import SCHEDULE_KEYS
from trisparse.prune.errors import PruningError

_DROPPED = ("backend", "low_memory_usage", "resume_from_pruned_checkpoint", "criterion_type", "progressive")


def _convert_section(keys: Mapping[str, Any], where: str, notes: list[str]) -> dict[str, Any]:
    out = dict(keys)
    for key in _DROPPED:
        if key in out:
            notes.append(f"{where}{key}: dropped, it has no meaning here")
            del out[key]
    # there None stands for a key that is not given
    out = {key: value for key, value in out.items() if value is not None}
    parameters = out.pop("parameters", {})
    if unknown := [key for key in parameters if key != "reg_coeff"]:
        raise PruningError(f"{where}parameters.{unknown[0]}: unknown key")
    if "reg_type" not in out:
        out.pop("reg_coeff", None)  # nothing there reads it without a reg_type
    elif "reg_coeff" in parameters:
        out["reg_coeff"] = parameters["reg_coeff"]
        notes.append(
            f"{where}parameters.reg_coeff: now reg_coeff, and it shrinks by lr * reg_coeff / norm of the weights"
        )
    if isinstance(out.get("pruning_op_types"), str):
        notes.append(f"{where}pruning_op_types: now a list")
        out["pruning_op_types"] = [out["pruning_op_types"]]
    if out.get("op_names") == []:
        del out["op_names"]
    pattern = out.get("pattern")
    if isinstance(pattern, str):
        bare = pattern.rsplit("_", 1)[-1]
        if group := re.fullmatch(r"(\d+):(\d+)", bare):
            n, m = int(group[1]), int(group[2])
            bare = f"{m - n}:{m}"
            if 2 * n != m:
                notes.append(f"{where}pattern: {pattern} prunes {n} of {m}; here N counts the kept, so {bare}")
        elif "channel" in bare:
            notes.append(f"{where}target_sparsity: counted {bare} units, here it counts their weights")
        out["pattern"] = bare
    return out


def convert_keys(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The arguments of `PruningConfig` for neural-compressor's keys, and notes on what changed meaning.

    Raises:
        PruningError: a key or value that has no counterpart here.
    """
    if not isinstance(config, Mapping):
        raise PruningError(f"config: want a mapping of keys, got {type(config).__name__}")
    notes: list[str] = []
    groups = config.get("pruning_configs") or [{}]
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
        raise PruningError(f"pruning_configs: want a list of groups, got {groups!r}")
    top = _convert_section({k: v for k, v in config.items() if k != "pruning_configs"}, "", notes)
    converted = [_convert_section(g, f"pruning_configs[{i}].", notes) for i, g in enumerate(groups)]
    for i, (given, out) in enumerate(zip(groups, converted, strict=True)):
        if out.get("pattern", top.get("pattern")) == "mha":  # whose pruning_type nothing reads there
            kind = given.get("criterion_type") or config.get("criterion_type") or "snip_momentum"
            if out.get("pruning_type", top.get("pruning_type", kind)) != kind or kind != "snip_momentum":
                notes.append(f"pruning_configs[{i}].pruning_type: {kind}, which mha takes from criterion_type there")
            out["pruning_type"] = kind
    _drop_schedules_of_locks(top, converted, notes)
    return {"pruning_configs": converted, **top}, notes


def _drop_schedules_of_locks(top: dict[str, Any], groups: Sequence[dict[str, Any]], notes: list[str]) -> None:
    """A lock takes the masks at its start_step there, and holds from the first step here."""
    locks = [group.get("pruning_type", top.get("pruning_type")) == "pattern_lock" for group in groups]
    held = [(f"pruning_configs[{i}].", group) for i, group in enumerate(groups) if locks[i]]
    for where, keys in [*held, *([("", top)] if all(locks) else [])]:
        for key in [key for key in SCHEDULE_KEYS if key in keys]:
            notes.append(f"{where}{key}: dropped, pattern_lock holds from the first step")
            del keys[key]
