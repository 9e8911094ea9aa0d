"""What a Pruner's saved state has to be, and of which layers it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trisparse.prune.config.own_parts import is_function_name
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.layer import Layer
from trisparse.prune.pruner.group import PrunedGroup

VERSION = 1
_LATER = ("sparse_layers", "budgets")  # what older states lack
_DEFAULTS = {"on_misfit": "error"}  # of keys that older states lack


def checked_state(state: Any, mine: Mapping[str, Any], groups: Sequence[PrunedGroup]) -> list[list[Layer]]:
    """The layers of each group that a state is of; `mine` is the state of the Pruner that is to take it.

    Raises:
        PruningError: it is of another config or another model, or no state.
    """
    if not isinstance(state, dict):
        raise PruningError(f"state: want what state_dict gave, got a {type(state).__name__}")
    if state.get("version") != VERSION:
        raise PruningError(f"state: want version {VERSION}, got {state.get('version')!r}")
    if lacking := [key for key in mine if key not in state and key not in _LATER]:
        raise PruningError(f"state: is no Pruner's state, it lacks {', '.join(lacking)}")
    if len(state["config"]) != len(mine["config"]):
        raise PruningError(
            f"state: of another config: it has {len(state['config'])} groups, this one {len(mine['config'])}"
        )
    for index, (saved, own) in enumerate(zip(state["config"], mine["config"], strict=True)):
        for key in own:
            if saved.get(key, _DEFAULTS.get(key)) != own[key]:
                is_part = is_function_name(saved.get(key))
                fix = f"give the function {saved[key]} as {key}" if is_part else "resume with the same settings"
                raise PruningError(
                    f"state: of another config: group {index} was saved with {key} {saved.get(key)!r}, "
                    f"this one has {own[key]!r}; {fix}"
                )
    return [_layers_of(group, saved) for group, saved in zip(groups, state["layers"], strict=True)]


def saved_layer(group: PrunedGroup, layer: Layer) -> list[Any]:
    """What a state says of a layer: name and shape, and the block that a function gave it."""
    block = [list(layer.block)] if group.config.pattern.sizes else []
    return [layer.name, list(layer.shape), *block]


def _layers_of(group: PrunedGroup, saved: list[list[Any]]) -> list[Layer]:
    """Those of a group that a state is of; it may lack layers that no gradient reached."""
    names = [name for name, *_ in saved]
    may_lack = group.config.needs_gradient and group.config.names_all
    layers = [layer for layer in group.found if layer.name in names or not may_lack]
    mine = [saved_layer(group, layer) for layer in layers]
    if saved != mine:
        if [entry[:2] for entry in saved] == [entry[:2] for entry in mine]:
            raise PruningError(f"state: {group.config.pattern} gave other block sizes when it was saved")
        raise PruningError("state: of another model: the names or shapes of its pruned layers differ")
    return layers
