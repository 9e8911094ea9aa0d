"""Compaction: remove pruned channels for real, so that what is left is a smaller dense model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.prune.channels.chains import Chain, Found
from trisparse.prune.channels.find_chains import find_chains
from trisparse.prune.channels.obstacles import check_numbers
from trisparse.prune.channels.same_outputs import check_example, difference, outputs_of
from trisparse.prune.channels.shrinking import keep, rows_of
from trisparse.prune.deploy.compaction_report import CompactedChain, CompactionReport
from trisparse.prune.deploy.layer_spec import check_config, note_in_config
from trisparse.prune.deploy.removable import folded, removable_units
from trisparse.prune.errors import PruningError, one_line
from trisparse.prune.layers.modules import op_type

_MULTIPLES = {"cuda": 64, "cpu": 8}


@torch.no_grad()
def compact(
    model: nn.Module, example: Mapping[str, Any] | tuple | None = None, multiple: int | None = None
) -> CompactionReport:
    """Remove channels and heads that are zero, in place; in evaluation mode the outputs stay what they were.

    A hidden channel goes where its row is zero, its constant activation being folded into the next bias, or where
    nothing reads it. What reads it is found by running the model on the example. A head of BERT, DistilBERT or Llama
    goes where all its query, key and value rows are zero, or all columns that read it. Rows that something reads which
    needs them all stay, as zeros, and the report names what that is. Units stay, too, between layers with hooks,
    replaced forwards or weights that are computed, and where no bias can take what they always give.

    Args:
        model: with linear layers or convolutions. Without an example that it runs on, only feed-forward blocks named
            as in BERT, DistilBERT, GPT-2 or Llama, and those of nn.Sequential, are found, and the report says so.
        example: inputs to find readers with, and to compare outputs before and after, keywords or positions; many
            models of transformers have their own.
        multiple: to which kept channels are rounded up, by keeping the largest of those that could go; 64 on a GPU,
            8 on a CPU, where matrix products are fastest.

    Raises:
        PruningError: nothing was found by names either, the model does not run on the example, or the outputs changed;
            then the model is as it was.
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
    example = getattr(model, "dummy_inputs", None) if example is None else example
    report, count = CompactionReport(note=found.note), _count(model)
    before: list[Tensor] | None = None
    with _undone_on_error(model, chains):
        for chain in chains:
            row, kept = _plan(model, chain, multiple)
            report.chains.append(row)
            if kept is None:
                continue
            if before is None:  # not until something is to go, so that other models need no example
                before = _run(model, example)
            _cut(model, chain, kept)
        if before:
            _compare(before, model, example)
    report.verified = bool(before)
    report.masked, report.parameters = _masked(model, chains), (count, _count(model))
    unseen = f"what reads them is not known, since {found.note}" if found.note else "the example never reaches it"
    report.reasons = {name: found.reasons.get(name, unseen) for name in report.masked}
    note_in_config(model)
    return report


@contextlib.contextmanager
def _undone_on_error(model: nn.Module, chains: list[Chain]) -> Iterator[None]:
    """Whatever happens, a model whose layers were cut has them back as they were."""
    layers = [model.get_submodule(side.layer) for chain in chains for side in chain.sides]
    own = ("_parameters", "_buffers")
    saved = [(layer, {**vars(layer), **{name: dict(vars(layer)[name]) for name in own}}) for layer in layers]
    try:
        yield
    except BaseException:
        for layer, state in saved:
            vars(layer).clear()
            vars(layer).update(state)
        raise


def _run(model: nn.Module, example: Any) -> list[Tensor]:
    try:
        return outputs_of(model, example)
    except Exception as error:
        raise PruningError(
            f"example: the model does not run on it ({one_line(error)}); give example=…, or keep all channels "
            "(remove_channels=False, --keep_channels)"
        ) from error


def _compare(before: list[Tensor], model: nn.Module, example: Any) -> None:
    cause = None
    try:
        trouble = difference(before, outputs_of(model, example))
    except Exception as error:  # whatever a forward raises that knew its sizes
        trouble, cause = one_line(error), error
    if trouble:
        raise PruningError(
            f"model: fails without its zero channels ({trouble}), so it counts on having them; it is as it was before"
        ) from cause


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
    return row, torch.zeros(chain.units, dtype=torch.bool).index_fill_(0, order[:wanted], True)


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
