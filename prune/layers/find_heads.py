"""Find the attentions whose heads a config names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from trisparse.prune.config.group import GroupConfig
from trisparse.prune.config.layer_names import finds
from trisparse.prune.config.patterns import Pattern
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.attentions import KNOWN, attentions_of
from trisparse.prune.layers.left_out import listed
from trisparse.prune.layers.modules import bare_modules, exact
from trisparse.prune.layers.shards import is_sharded
from trisparse.prune.layers.weights import Weight
from trisparse.sparse_ops.checks import DTYPES


class Chosen(NamedTuple):
    """A weight to be pruned; of an attention's, which one it is of, and its bias that goes with its rows."""

    weight: Weight
    pattern: Pattern
    attention: str | None = None
    bias: str | None = None


def find_heads(
    model: nn.Module, config: GroupConfig, index: int, weights: Sequence[Weight], left: Mapping[str, str]
) -> Iterator[Chosen]:
    """All weights of each attention in group `index`; `left` names weights that stay dense.

    An attention is in the group if `op_names` finds all of its layers, as its own name does, and it is out if
    `excluded_op_names` finds one of them, or one is left.

    Raises:
        PruningError: no attention that is known, or none in the group; one of which only some layers are named, or that
            has a weight in common with another or spread over processes.
    """
    numbers: dict[tuple[int, str], int] = {}
    for number, weight in enumerate(weights):
        numbers.setdefault((id(weight.module), weight.parameter), number)
    holders = Counter(id(p) for _, module in _once(model) for p in module._parameters.values() if p is not None)
    owners: dict[int, tuple[str, str]] = {}
    known = []
    chosen = False
    for name, parts in attentions_of(model):
        own = [weights[numbers[id(part.module), part.parameter]] for part in parts]
        if all(id(weight.tensor) in owners for weight in own):  # an attention under another name
            continue
        known.append(name)
        wanted = [weight.name for weight in own if any(finds(e, weight.name, weight.classes) for e in config.op_names)]
        is_out = "Linear" not in config.pruning_op_types or any(_is_out(config, weight, left) for weight in own)
        if not wanted or is_out:
            continue
        if len(wanted) < len(own):
            rest = [weight.name for weight in own if weight.name not in wanted]
            raise PruningError(
                f"op_names: {list(config.op_names)} finds {listed(wanted)} but not {listed(rest)}, and heads go from "
                f"all of them; name the attention, {exact(name)[:-1] + '[.]'!r} say"
            )
        for weight in own:
            _check(weight, name, owners)
        for weight, part in zip(own, parts, strict=True):
            bias = part.parameter.replace("weight", "bias")
            parameter = part.module._parameters.get(bias) if part is not parts[-1] else None
            is_own = parameter is not None and holders[id(parameter)] == 1 and parameter.dtype in DTYPES
            yield Chosen(weight, part.pattern, name, bias if is_own else None)
            chosen = True
    if not known:
        raise PruningError(
            f"pattern: mha knows no attention in this model; it knows, by the names of their layers, those of {KNOWN}; "
            "use 1xchannel, or a pattern of blocks"
        )
    if not chosen:
        raise PruningError(
            f"op_names: {list(config.op_names)} with excluded_op_names {list(config.excluded_op_names)} finds no "
            f"attention for group {index}; the model has {listed(known)}"
            + "".join(f"; {name} {reason}" for name, reason in left.items())
        )


def _once(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list({id(module): (name, module) for name, module in bare_modules(model)}.values())


def _is_out(config: GroupConfig, weight: Weight, left: Mapping[str, str]) -> bool:
    return weight.name in left or any(finds(e, weight.name, weight.classes) for e in config.excluded_op_names)


def _check(weight: Weight, attention: str, owners: dict[int, tuple[str, str]]) -> None:
    """`owners` has the attention and the name of each weight that is in the group already."""
    tensor = weight.tensor
    assert tensor is not None
    other, name = owners.setdefault(id(tensor), (attention, weight.name))
    if other != attention:
        raise PruningError(
            f"pattern: mha prunes whole heads, and {attention} has {weight.name} in common with {other}; add to "
            f"excluded_op_names: {[exact(name), exact(weight.name)]}"
        )
    if is_sharded(tensor):
        raise PruningError(
            f"pattern: mha prunes heads of weights that are whole on each process, and {weight.name} is spread over "
            "them; train without fully_shard, or use 1xchannel"
        )
