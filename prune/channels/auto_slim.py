"""A config made from what a model does: hidden channels of its feed-forward blocks, and heads of its attentions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from trisparse.prune.channels.find_chains import find_chains
from trisparse.prune.config.config import PruningConfig
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.attentions import KNOWN, attentions_of
from trisparse.prune.layers.modules import exact, find_head, op_type, unwrap

_CHOSEN = ("pruning_configs", "pattern", "op_names", "target_sparsity", "pruning_op_types")


def auto_slim_config(
    model: nn.Module, ffn2_sparsity: float = 0.0, mha_sparsity: float = 0.0, *,
    example: Mapping[str, Any] | tuple | None = None, **keys: Any,
) -> PruningConfig:  # fmt: skip
    """A config whose zeros `compact` and `compress` remove for real.

    One group prunes input columns (`channelx1`) of each linear layer that alone reads what other linear layers make,
    the second of a feed-forward block; another prunes heads (`mha`). Neural-compressor's `parse_auto_slim_config`.

    Args:
        model: which is run, in evaluation mode, to see what reads what.
        ffn2_sparsity: of the second layers; 0 for none of them.
        mha_sparsity: of the attentions; 0 for none of them.
        example: inputs to run it on, keywords or positions; many models of transformers have their own. Without one,
            blocks are found by names.
        **keys: those of `PruningConfig` for both groups, `start_step` and `end_step` above all.

    Raises:
        PruningError: nothing is asked for, the model has none of it, or a key that is chosen here or does not fit.
    """
    for name, value in (("ffn2_sparsity", ffn2_sparsity), ("mha_sparsity", mha_sparsity)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise PruningError(f"{name}: want a number from 0 up to but not 1, got {value!r}")
    if not ffn2_sparsity and not mha_sparsity:
        raise PruningError("ffn2_sparsity, mha_sparsity: both are 0, which prunes nothing; give one of them")
    if given := [key for key in _CHOSEN if key in keys]:
        raise PruningError(f"{given[0]}: auto_slim_config chooses it; leave it out, or write a PruningConfig")
    groups: list[dict[str, Any]] = []
    if ffn2_sparsity:
        names = [exact(name) for name in _second_layers(unwrap(model), example)]
        groups.append({"op_names": names, "pattern": "channelx1", "target_sparsity": ffn2_sparsity})
    if mha_sparsity:
        if not any(True for _ in attentions_of(model)):
            raise PruningError(f"mha_sparsity: the model has no attention that is known; known are those of {KNOWN}")
        groups.append({"pattern": "mha", "target_sparsity": mha_sparsity})
    return PruningConfig(pruning_configs=groups, **keys)


def _second_layers(model: nn.Module, example: Any) -> list[str]:
    """Linear layers but the head that read channels of linear layers, which nothing else reads."""
    found, head = find_chains(model, example), find_head(model)
    names = []
    for chain in found.chains:
        layers = [model.get_submodule(side.layer) for side in chain.sides]
        is_free = not chain.is_heads and not chain.obstacle and not (head and head[1] in layers)
        if is_free and len(chain.readers) == 1 and all(op_type(layer) == "Linear" for layer in layers):
            names.append(chain.readers[0].layer)
    if not names:
        raise PruningError(
            "ffn2_sparsity: the model has no linear layer that alone reads what another makes"
            + (f", as far as names tell, since {found.note}; give example=…" if found.note else "")
        )
    return names
