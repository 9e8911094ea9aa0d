"""Compaction: remove pruned channels for real, so that what is left is a smaller dense model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trisparse.prune.deploy.chains import Chain, find_chains
from trisparse.prune.deploy.compaction_report import CompactedChain, CompactionReport
from trisparse.prune.deploy.layer_spec import check_config, note_in_config
from trisparse.prune.deploy.obstacles import check_numbers
from trisparse.prune.deploy.same_outputs import check_example, difference, outputs_of
from trisparse.prune.errors import PruningError, one_line
from trisparse.prune.pruner.layers import is_hf_conv1d, op_type

_MULTIPLES = {"cuda": 64, "cpu": 8}


@torch.no_grad()
def compact(
    model: nn.Module, example: Mapping[str, Any] | tuple | None = None, multiple: int | None = None
) -> CompactionReport:
    """Remove channels and heads that are zero, in place; in evaluation mode the outputs stay what they were.

    A hidden channel goes where its row is zero, its constant activation being folded into the next bias, or where
    nothing reads it. A head of BERT, DistilBERT or Llama goes where all its query, key and value rows are zero, or all
    columns that read it. Rows that other layers read stay, as zeros, and the report names them. Units stay, too,
    between layers with hooks, replaced forwards or weights that are computed, and where no bias can take what they
    always give.

    Args:
        model: with feed-forward blocks and attention as in BERT, DistilBERT, GPT-2 (blocks only) or Llama, or
            nn.Sequential.
        example: inputs to compare outputs before and after, keywords or positions; a transformers model has its own.
        multiple: to which kept channels are rounded up, by keeping the largest of those that could go; 64 on a GPU,
            8 on a CPU, where matrix products are fastest.

    Raises:
        PruningError: no chain was found, the model does not run on the example, or the outputs changed; then the model
            is as it was.
    """
    check_example(example)
    if multiple is not None and (type(multiple) is not int or multiple < 1):
        raise PruningError(f"multiple: want a whole number of 1 or more, got {multiple!r:.60}")
    check_config(model)
    check_numbers(model)
    chains = find_chains(model)
    if not chains:
        raise PruningError(
            "model: no feed-forward block or attention that is known; want one as in BERT, DistilBERT, GPT-2 or Llama"
        )
    device = next(model.parameters()).device.type
    multiple = _MULTIPLES.get(device, _MULTIPLES["cuda"]) if multiple is None else multiple
    example = getattr(model, "dummy_inputs", None) if example is None else example
    report, count = CompactionReport(), _count(model)
    before: list[Tensor] | None = None
    with _undone_on_error(model, chains):
        for chain in chains:
            row, cut = _plan(model, chain, multiple)
            report.chains.append(row)
            if cut is None:
                continue
            if before is None:  # not until something is to go, so that other models need no example
                before = _run(model, example)
            _cut(model, chain, cut)
        if before:
            _compare(before, model, example)
    report.verified = bool(before)
    report.masked, report.parameters = _masked(model, chains), (count, _count(model))
    note_in_config(model)
    return report


@contextlib.contextmanager
def _undone_on_error(model: nn.Module, chains: list[Chain]) -> Iterator[None]:
    """Whatever happens, a model whose layers were cut has them back as they were."""
    layers = [model.get_submodule(name) for chain in chains for name in (*chain.producers, chain.consumer)]
    saved = [(layer, {**vars(layer), "_parameters": dict(layer._parameters)}) for layer in layers]
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
            f"model: fails without its zero channels ({trouble}), so its modules are not what their names say; "
            "it is as it was before"
        ) from cause


class _Cut(NamedTuple):
    """Indices of the units to keep, and what those that go always add to the consumer's output."""

    kept: Tensor
    folded: Tensor


def _plan(model: nn.Module, chain: Chain, multiple: int) -> tuple[CompactedChain, _Cut | None]:
    makes: list[Any] = [model.get_submodule(name) for name in chain.producers]
    reads: Any = model.get_submodule(chain.consumer)
    columns = _matrix(reads)
    units = columns.shape[1] // chain.width
    row = CompactedChain(list(chain.producers), chain.consumer, units, 0, units, chain.obstacle)
    if row.reason:
        return row, None
    if shared := _shared(model, chain):
        row.reason = f"stays: a weight is shared with {shared}"
        return row, None
    rows = [_matrix(layer) for layer in makes]
    zero = [(weight == 0).all(1) for weight in rows]
    biases = [w.new_zeros(len(w)) if m.bias is None else m.bias for m, w in zip(makes, rows, strict=True)]
    try:
        constant, values = chain.constants(zero, biases)
        unread = (columns == 0).all(0)
        size = columns.float().square().sum(0).view(units, -1).sum(1)
        given = torch.zeros_like(size)
        for weight, bias in zip(rows, biases, strict=True):
            size = size + weight.float().square().reshape(units, -1).sum(1)
            given = given + bias.float().view(units, -1).sum(1)
        finite = (size + given).isfinite()  # zero times infinity is not zero
        could = (constant | unread).view(units, chain.width).all(1) & finite
        if reads.bias is None:  # one added would be lost where only the model's own class is known
            constant = constant & (values == 0)
        removable = (constant | unread).view(units, chain.width).all(1) & finite
    except (RuntimeError, TypeError) as error:
        row.reason = f"stays: its layers do not fit together ({one_line(error)})"
        return row, None
    row.removable = int(removable.sum())
    if stuck := int(could.sum()) - row.removable:
        row.reason = f"{stuck} stay: {chain.consumer} has no bias to take what they always give"
    if not row.removable:
        return row, None
    step = multiple if chain.width == 1 else 1
    wanted = max(-(-(units - row.removable) // step) * step, step)
    order = torch.argsort(torch.where(removable, size, torch.inf), descending=True, stable=True)
    kept = order[:wanted].sort().values
    row.kept = len(kept)
    if row.kept == units:
        row.reason = f"stays: kept units are rounded to {step}"
        return row, None
    gone = torch.ones(units, dtype=torch.bool, device=kept.device).index_fill_(0, kept, False)
    always = gone.repeat_interleave(chain.width) & constant
    return row, _Cut(kept, columns[:, always] @ values[always])


def _cut(model: nn.Module, chain: Chain, cut: _Cut) -> None:
    reads: Any = model.get_submodule(chain.consumer)
    if reads.bias is not None:
        reads.bias = nn.Parameter(reads.bias + cut.folded, reads.bias.requires_grad)
    for name, count in zip(chain.producers, chain.sizes, strict=True):
        _keep(model.get_submodule(name), _expand(cut.kept, count), 0)
    _keep(reads, _expand(cut.kept, chain.width), 1)


def _matrix(layer: Any) -> Tensor:
    """The weight as `[out, in]`."""
    return layer.weight.t() if is_hf_conv1d(layer) else layer.weight


def _expand(units: Tensor, count: int) -> Tensor:
    """Indices of the rows or columns of units."""
    return (units[:, None] * count + torch.arange(count, device=units.device)).flatten()


def _keep(layer: Any, index: Tensor, dim: int) -> None:
    """Keep these rows (dim 0) or columns (dim 1) of a layer."""
    weight = layer.weight
    swapped = is_hf_conv1d(layer)
    if not hasattr(layer, "full_shape"):  # for `decompress`
        layer.full_shape = tuple(_matrix(layer).shape)
    kept = weight.index_select(1 - dim if swapped else dim, index)
    layer.weight = nn.Parameter(kept, weight.requires_grad)
    if dim == 0 and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.index_select(0, index), layer.bias.requires_grad)
    if swapped:
        layer.nx, layer.nf = layer.weight.shape
    else:
        layer.out_features, layer.in_features = layer.weight.shape


def _shared(model: nn.Module, chain: Chain) -> str | None:
    """Another name under which the model has one of the layers' weights."""
    own = [*chain.producers, chain.consumer]
    weights = [id(p) for name in own for p in model.get_submodule(name).parameters(recurse=False)]
    for name, module in model.named_modules(remove_duplicate=False):
        if name not in own and any(id(p) in weights for p in module.parameters(recurse=False)):
            return name
    return chain.consumer if len(set(weights)) < len(weights) else None


def _masked(model: nn.Module, chains: list[Chain]) -> dict[str, int]:
    inside = {name for chain in chains for name in chain.producers if chain.width == 1}
    found = {}
    for name, module in model.named_modules():
        if op_type(module) is not None and name not in inside:
            weight = _matrix(module)
            zero = int((weight.flatten(1) == 0).all(1).sum())
            if zero:
                found[name] = zero
    return found


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
