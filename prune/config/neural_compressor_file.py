"""Config files of Intel neural-compressor, whose groups are tagged `!Pruner`: their nesting and their older keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trisparse.prune.config.neural_compressor import convert_keys
from trisparse.prune.errors import PruningError

TAGS = ("!Pruner", "!PrunerV2")
_RENAMED = {
    "names": "op_names", "excluded_names": "excluded_op_names", "prune_layer_type": "pruning_op_types",
    "prune_type": "pruning_type", "prune_domain": "pruning_scope", "update_frequency_on_step": "pruning_frequency",
    "max_sparsity_ratio_per_layer": "max_sparsity_ratio_per_op",
}  # fmt: skip
_UNREAD = ("initial_sparsity", "method")
_OF_EPOCHS = ("start_epoch", "end_epoch", "update_frequency")
_AT_ONCE = ("magnitude", "pattern_lock")  # what can prune before the first step
_KINDS = {"Conv1d": "Conv", "Conv2d": "Conv", "Conv3d": "Conv"}


class Pruner(dict[str, Any]):
    """A mapping that carries one of the tags."""


def is_neural_compressors(content: object) -> bool:
    """Whether what a file holds is one of its configs, by its nesting or its tags."""
    if isinstance(content, Mapping) and "pruning" in content:
        return True
    groups = content.get("pruners", content.get("pruning_configs")) if isinstance(content, Mapping) else content
    return isinstance(groups, list) and any(isinstance(group, Pruner) for group in groups)


def convert_file(content: Any) -> tuple[dict[str, Any], list[str]]:
    """The arguments of `PruningConfig` that such a file stands for, and notes on what changed meaning.

    Raises:
        PruningError: a key or value that has no counterpart here.
    """
    notes: list[str] = []
    kind, section = _section(content, notes)
    found = section.pop("pruners", section.pop("pruning_configs", None)) or [{}]
    if not isinstance(found, list) or not all(isinstance(group, Mapping) for group in found):
        raise PruningError(f"pruners: want a list of !Pruner mappings, got {found!r:.60}")
    is_old = kind in ("weight_compression", "weight_compression_pytorch")
    top = _renamed(section, "", kind, notes)
    groups = [_renamed(group, f"pruners[{i}].", kind, notes) for i, group in enumerate(found)]
    for i, group in enumerate(groups):
        if is_old:  # a !Pruner has these itself, whatever the section says
            for key, default in (("pattern", "1x1"), ("pruning_type", "magnitude")):
                if group.get(key) is None:
                    notes.append(f"pruners[{i}].{key}: not given, which is {default} there")
                    group[key] = default
        extra = group.pop("extra_excluded_names", None) or top.get("extra_excluded_names") or []
        excluded = group.get("excluded_op_names") or top.get("excluded_op_names") or []
        if not isinstance(extra, list):
            raise PruningError(f"pruners[{i}].extra_excluded_names: want a list of strings, got {extra!r}")
        if extra and isinstance(excluded, list):
            group["excluded_op_names"] = [*extra, *excluded]
    top.pop("extra_excluded_names", None)
    _drop_placeholder(top, groups, notes)
    keys, more = convert_keys({**top, "pruning_configs": groups})
    return keys, notes + more


def _section(content: Any, notes: list[str]) -> tuple[str, dict[str, Any]]:
    """The part that is about pruning, and its name; the rest of the file is for other things."""
    if isinstance(content, list):
        return "", {"pruning_configs": content}
    if "pruning" not in content:
        return "", dict(content)
    pruning = content["pruning"]
    approach = pruning.get("approach") if isinstance(pruning, Mapping) else None
    kinds = approach if isinstance(approach, Mapping) else {}
    if len(kinds) != 1 or not all(isinstance(section, Mapping) for section in kinds.values()):
        raise PruningError("pruning: want approach, and in it one section such as weight_compression_pytorch")
    ((kind, section),) = kinds.items()
    if unread := [
        *(key for key in content if key != "pruning"),
        *(f"pruning.{key}" for key in pruning if key != "approach"),
    ]:
        notes.append(f"{', '.join(map(str, unread))}: not read; pruning.approach.{kind} is")
    return kind, dict(section)


def _renamed(section: Mapping[str, Any], where: str, kind: str, notes: list[str]) -> dict[str, Any]:
    """A section's keys as 2.x calls them."""
    out = {_RENAMED.get(key, key): value for key, value in section.items()}
    if out.get("pruning_type") == "basic_magnitude":
        out["pruning_type"] = "magnitude"
    if out.get("pruning_type") in ("gradient_sensitivity", "group_lasso"):
        raise PruningError(
            f"{where}prune_type: {out['pruning_type']} is not here; want a criterion such as snip_momentum, with "
            "pattern mha for heads, or reg_type: group_lasso"
        )
    for key in _UNREAD:
        if out.pop(key, None) is not None:
            notes.append(f"{where}{key}: dropped, it has no meaning here")
    says_when = kind == "weight_compression" and where and out.get("pruning_type") != "pattern_lock"
    for key in _OF_EPOCHS:
        if key not in out:
            continue
        if says_when:
            raise PruningError(
                f"{where}{key}: counts epochs; want start_step, end_step and pruning_frequency, in steps"
            )
        notes.append(f"{where}{key}: dropped, steps say when")
        del out[key]
    kinds = out.get("pruning_op_types")
    if isinstance(kinds, list) and any(name in kinds for name in _KINDS):
        notes.append(f"{where}prune_layer_type: {', '.join(map(str, kinds))} is now of all dimensions: Conv")
        out["pruning_op_types"] = list(dict.fromkeys(_KINDS.get(str(name), str(name)) for name in kinds))
    return out


def _drop_placeholder(top: dict[str, Any], groups: list[dict[str, Any]], notes: list[str]) -> None:
    """Both steps are 0 in files whose scripts fill them in."""
    window = [top.get("start_step"), top.get("end_step")]
    at_once = all(group.get("pruning_type", top.get("pruning_type")) in _AT_ONCE for group in groups)
    if window == [0, 0] and not at_once:
        notes.append("start_step, end_step: 0 and 0 were for a script to fill in; dropped")
        del top["start_step"], top["end_step"]
