"""Compaction: remove pruned channels for real, so that what is left is a smaller dense model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.prune.channels.chains import Chain, Found
from trisparse.prune.channels.find_chains import find_chains
from trisparse.prune.channels.obstacles import check_numbers
from trisparse.prune.channels.same_outputs import check_example, difference, outputs_of, own_example
from trisparse.prune.channels.shrinking import keep, rows_of
from trisparse.prune.deploy.compaction_report import NEEDED, CompactedChain, CompactionReport
from trisparse.prune.deploy.layer_spec import check_config, note_in_config
from trisparse.prune.deploy.removable import folded, removable_units
from trisparse.prune.errors import PruningError, one_line
from trisparse.prune.layers.modules import op_type

_MULTIPLES = {"cuda": 64, "cpu": 8}


@torch.inference_mode(False)  # in which new tensors could not take part in training any more
@torch.no_grad()
def compact(
    model: nn.Module, example: Mapping[str, Any] | tuple | None = None, multiple: int | None = None
) -> CompactionReport:
    """Remove channels and heads that are zero, in place; in evaluation mode the outputs stay what they were.

    A hidden channel goes where its row is zero, its constant activation being folded into the next bias, or where
    nothing reads it. What reads it is found by running the model on the example. A head of BERT, DistilBERT or Llama
    goes where all its query, key and value rows are zero, or all columns that read it. Rows that something reads which
    needs them all stay, as zeros, and the report names what that is. Units stay, too, between layers with hooks,
    replaced forwards or weights that are computed, where no bias can take what they always give, and where the model's
    forward counts on their number.

    Args:
        model: with linear layers or convolutions. Without an example that it runs on, only feed-forward blocks named
            as in BERT, DistilBERT, GPT-2 or Llama, and those of nn.Sequential, are found, and the report says so.
        example: inputs to find readers with, and to compare outputs before and after, keywords or positions; many
            models of transformers have their own.
        multiple: to which kept channels are rounded up, by keeping the largest of those that could go; 64 on a GPU,
            8 on a CPU, where matrix products are fastest.

    Raises:
        PruningError: nothing was found by names either, the model does not run on the example, or it fails without
            channels of which it could spare each; then the model is as it was.
    """
    check_example(example)
    if multiple is not None and (type(multiple) is not int or multiple < 1):
        raise PruningError(f"multiple: want a whole number of 1 or more, got {multiple!r:.60}")
    check_config(model)
    check_numbers(model)
    found = find_chains(model, example)
    if not found.chains and found.note:
        raise PruningError(
            f"model: no feed-forward block or attention that is known by its names, and {found.note}; give example=…"
        )
    return compact_found(model, found, example, multiple)


def compact_found(model: nn.Module, found: Found, example: Any, multiple: int | None = None) -> CompactionReport:
    """`compact` of chains that were found."""
    chains = found.chains
    device = next(model.parameters()).device.type
    multiple = _MULTIPLES.get(device, _MULTIPLES["cuda"]) if multiple is None else multiple
    example = own_example(model) if example is None else example
    report, count = CompactionReport(note=found.note), _count(model)
    before: list[Tensor] | None = None

    def look() -> None:  # not until something is to go, so that other models need no example
        nonlocal before
        before = _run(model, example) if before is None else before

    saved = _state_of(model, chains)
    try:
        report.chains = _remove(model, chains, multiple, {}, look)
        trouble, cause = _trouble(before, model, example)
        if trouble:
            _put_back(saved)
            stay = _that_are_needed(model, chains, multiple, before, example)
            report.chains = _remove(model, chains, multiple, stay, look)
            trouble, cause = _trouble(before, model, example)
        if trouble:
            raise PruningError(
                f"model: fails without its zero channels ({trouble}), so it counts on having them; it is as it was "
                "before"
            ) from cause
    except BaseException:
        _put_back(saved)
        raise
    report.verified = bool(before)
    report.masked, report.parameters = _masked(model, chains), (count, _count(model))
    unseen = f"what reads them is not known, since {found.note}" if found.note else "the example never reaches it"
    report.reasons = {name: found.reasons.get(name, unseen) for name in report.masked}
    note_in_config(model)
    return report


def _remove(
    model: nn.Module, chains: Sequence[Chain], multiple: int, stay: Mapping[int, str], look: Callable[[], None]
) -> list[CompactedChain]:
    """Cut all chains but those that stay, by number and for what reason, after a look at the model; a row each."""
    rows = []
    for number, chain in enumerate(chains):
        row, kept = _plan(model, chain, multiple)
        if kept is not None and number in stay:
            row.kept, row.reason = row.units, stay[number]
        elif kept is not None:
            look()
            _cut(model, chain, kept)
        rows.append(row)
    return rows


def _that_are_needed(
    model: nn.Module, chains: Sequence[Chain], multiple: int, before: list[Tensor] | None, example: Any
) -> dict[int, str]:
    """Chains whose zero channels the model needs, as a forward may that knows its sizes; each is tried by itself."""
    needed = {}
    for number, chain in enumerate(chains):
        saved = _state_of(model, [chain])
        try:
            _remove(model, [chain], multiple, {}, lambda: None)
            if trouble := _trouble(before, model, example)[0]:
                needed[number] = f"{NEEDED} ({trouble})"
        finally:
            _put_back(saved)
    return needed


def _state_of(model: nn.Module, chains: Sequence[Chain]) -> list[tuple[nn.Module, dict[str, Any]]]:
    layers = [model.get_submodule(side.layer) for chain in chains for side in chain.sides]
    return [(layer, _copied(vars(layer))) for layer in layers]


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "_parameters": dict(state["_parameters"]), "_buffers": dict(state["_buffers"])}


def _put_back(saved: Sequence[tuple[nn.Module, dict[str, Any]]]) -> None:
    for layer, state in saved:
        vars(layer).clear()
        vars(layer).update(_copied(state))


def _run(model: nn.Module, example: Any) -> list[Tensor]:
    try:
        return outputs_of(model, example)
    except Exception as error:
        raise PruningError(
            f"example: the model does not run on it ({one_line(error)}); give example=…, or keep all channels "
            "(remove_channels=False, --keep_channels)"
        ) from error


def _trouble(before: list[Tensor] | None, model: nn.Module, example: Any) -> tuple[str, Exception | None]:
    """How outputs differ from those before, if they were looked at, or what a forward raises that knew its sizes."""
    try:
        return (difference(before, outputs_of(model, example)) if before else ""), None
    except Exception as error:
        return one_line(error), error


def _plan(model: nn.Module, chain: Chain, multiple: int) -> tuple[CompactedChain, Tensor | None]:
    """A row for the report, and which units to keep if any are to go."""
    readers = ", ".join(side.layer for side in chain.readers)
    row = CompactedChain(chain.producers, readers, chain.units, 0, chain.units, chain.obstacle)
    if row.reason:
        return row, None
    if shared := _shared(model, chain):
        row.reason = f"stays: a weight is shared with {shared}"
        return row, None
    units = removable_units(model, chain)
    row.removable, row.reason = int(units.removable.sum()), units.reason
    if not row.removable:
        return row, None
    step = 1 if chain.is_heads else multiple
    wanted = max(-(-(chain.units - row.removable) // step) * step, step)
    order = torch.argsort(torch.where(units.removable, units.size, torch.inf), descending=True, stable=True)
    row.kept = min(wanted, chain.units)
    if row.kept == chain.units:
        row.reason = f"stays: kept units are rounded to {step}"
        return row, None
    return row, torch.zeros(chain.units, dtype=torch.bool, device="cpu").index_fill_(0, order[:wanted], True)


def _cut(model: nn.Module, chain: Chain, kept: Tensor) -> None:
    for side in chain.readers:
        reads: Any = model.get_submodule(side.layer)
        if reads.bias is not None:
            reads.bias = nn.Parameter(reads.bias + folded(reads, side, ~kept), reads.bias.requires_grad)
    for side in chain.sides:
        keep(model.get_submodule(side.layer), kept[side.unit].nonzero().flatten(), side.kind, side.parts)


def _shared(model: nn.Module, chain: Chain) -> str | None:
    """Another name under which the model has one of the layers' weights."""
    own = {side.layer for side in chain.sides}
    layers = [model.get_submodule(name) for name in own]
    weights = [id(parameter) for layer in layers for parameter in layer.parameters(recurse=False)]
    for name, module in model.named_modules(remove_duplicate=False):
        if name not in own and any(id(p) in weights for p in module.parameters(recurse=False)):
            return name
    return chain.readers[0].layer if len(set(weights)) < len(weights) else None


def _masked(model: nn.Module, chains: list[Chain]) -> dict[str, int]:
    """Rows that are zero, of all layers but those whose chain says what became of each."""
    inside = {side.layer for chain in chains if not chain.is_heads for side in chain.sides if side.kind != "in"}
    found = {}
    for name, module in model.named_modules():
        if op_type(module) is not None and name not in inside:
            zero = int((rows_of(module).flatten(1) == 0).all(1).sum())
            if zero:
                found[name] = zero
    return found


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
