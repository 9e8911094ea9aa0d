"""Chains of a traced model: channels that are the same, wherever they are made, read or let through."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from trisparse.prune.channels.chains import Chain, Side
from trisparse.prune.channels.channel_trace import BLOCKED, ChannelTrace
from trisparse.prune.channels.shrinking import rows_of
from trisparse.prune.layers.modules import op_type

_Pairs = Sequence[tuple[Tensor, Tensor]]
_Key = tuple[str, str]  # a layer and its side


def traced_chains(model: nn.Module, trace: ChannelTrace) -> tuple[list[Chain], dict[str, str]]:
    """The chains whose readers are all known, and of the other layers with zero rows what reads these."""
    pairs = [(a.cpu(), b.cpu()) for a, b in trace.joined]
    same = _connected(trace.count, pairs)
    why = _first_reasons(trace, same)
    chains: list[Chain] = []
    reasons: dict[str, str] = {}
    for sides in _neighbours(trace, pairs):
        ids = {key: trace.ids(*key) for key in sides}
        stuck = torch.cat([why[some] for some in ids.values()])
        found = sorted(set(stuck[stuck < len(trace.stuck)].tolist()))
        texts = [trace.stuck[index][1] for index in found]
        kinds = {side for _, side in sides}
        if all(text.startswith(BLOCKED) for text in texts) and {"in", "out"} <= kinds:
            chain = _chain(trace, {key: same[some] for key, some in ids.items()})
            chains.append(chain._replace(obstacle=texts[0]) if texts else chain)
            continue
        for (name, side), some in ids.items():
            layer = model.get_submodule(name)
            if side == "in" or op_type(layer) is None:
                continue
            if (zero := (rows_of(layer) == 0).flatten(1).all(1).cpu()).any():
                own = set(why[some][zero].tolist()) & set(found) or found
                texts = list(dict.fromkeys(trace.stuck[index][1].removeprefix(BLOCKED) for index in sorted(own)))
                reasons[name] = "; ".join(texts) or "nothing reads them"
    return chains, reasons


def _connected(count: int, pairs: _Pairs) -> Tensor:
    """For every id the least of those that are the same."""
    least = torch.arange(count, device="cpu")
    if not pairs:
        return least
    a, b = (torch.cat(some) for some in zip(*pairs, strict=True))
    while True:
        low = torch.minimum(least[a], least[b])
        new = least.clone().scatter_reduce_(0, a, low, "amin").scatter_reduce_(0, b, low, "amin")
        new = new[new]
        if torch.equal(new, least):
            return least
        least = new


def _first_reasons(trace: ChannelTrace, same: Tensor) -> Tensor:
    """For every id the index of the first reason why it, or one that is the same, must stay; their number for none."""
    why = torch.full((trace.count,), len(trace.stuck), device="cpu")
    for index, (ids, _) in reversed(list(enumerate(trace.stuck))):
        why[same[ids.cpu()]] = index
    return why[same]


def _neighbours(trace: ChannelTrace, pairs: _Pairs) -> Iterator[list[_Key]]:
    """Sides with channels that are the same, in the order in which the model came to them."""
    keys, starts = list(trace.sides), [first for first, _ in trace.sides.values()]

    def index(ids: Tensor) -> Tensor:
        return torch.tensor([bisect.bisect(starts, int(ids[0])) - 1], device="cpu")

    least = _connected(len(keys), [(index(a), index(b)) for a, b in pairs])
    for group in least.unique():
        yield [key for key, own in zip(keys, least, strict=True) if own == group]


def _chain(trace: ChannelTrace, same: dict[_Key, Tensor]) -> Chain:
    """Of sides, each with what is the same."""
    units, index = torch.cat(list(same.values())).unique(return_inverse=True)
    sides, obstacle = [], ""
    for (name, kind), unit in zip(same, index.split([len(some) for some in same.values()]), strict=True):
        parts = _parts(unit, len(units))
        if not parts:
            obstacle = f"stays: {name} has them in another order, or not all"
        read = trace.reads.get(name) if kind == "in" else None
        sides.append(Side(name, kind, unit, parts or 1, *(read or (None, None))))
    return Chain(tuple(sides), len(units), obstacle)


def _parts(unit: Tensor, units: int) -> int:
    """In how many parts units come, in each all of them in order and with equally many channels; 0 if they do not."""
    width = int((unit == unit[0]).long().cumprod(0).sum())
    parts = len(unit) // (units * width)
    order = torch.arange(units, device="cpu").repeat_interleave(width).repeat(parts)
    return parts if torch.equal(order, unit) else 0
