"""Compaction: remove pruned channels for real, so that what is left is a smaller dense model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.prune.chains import Chain, find_chains
from trisparse.prune.compaction_report import CompactedChain, CompactionReport
from trisparse.prune.errors import PruningError
from trisparse.prune.layer_spec import note_in_config
from trisparse.prune.layers import is_hf_conv1d, op_type

_MULTIPLES = {"cuda": 64, "cpu": 8}
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of the largest output; 16-bit types round more
_TOLERANCE_16 = 3e-2


@torch.no_grad()
def compact(
    model: nn.Module, example: Mapping[str, Any] | tuple | None = None, multiple: int | None = None
) -> CompactionReport:
    """Remove channels and heads that are zero, in place; in evaluation mode the outputs stay what they were.

    A hidden channel goes where its row is zero, its constant activation being folded into the next bias, or where
    nothing reads it. A head goes where all its query, key and value rows are zero, or all columns that read it.
    Nothing else goes: rows that other layers read stay, as zeros, and the report names them.

    Args:
        model: with feed-forward blocks and attention as in BERT, DistilBERT, GPT-2 or Llama, or nn.Sequential.
        example: inputs to compare outputs before and after, keywords or positions; a transformers model has its own.
        multiple: to which kept channels are rounded up, by keeping the largest of those that could go; 64 on a GPU,
            8 on a CPU, where matrix products are fastest.

    Raises:
        PruningError: no chain was found, or the outputs changed; then the model is as it was.
    """
    chains = find_chains(model)
    if not chains:
        raise PruningError(
            "model: no feed-forward block or attention that is known; want one as in BERT, DistilBERT, GPT-2 or Llama"
        )
    device = next(model.parameters()).device.type
    multiple = _MULTIPLES.get(device, _MULTIPLES["cuda"]) if multiple is None else multiple
    if multiple < 1:
        raise PruningError(f"multiple: want at least 1, got {multiple}")
    example = getattr(model, "dummy_inputs", None) if example is None else example
    before = _outputs(model, example)
    report = CompactionReport(verified=example is not None)
    count = _count(model)
    undo = {name: copy.copy(model.get_submodule(name).__dict__) for c in chains for name in (*c.producers, c.consumer)}
    undo = {name: {**state, "_parameters": dict(state["_parameters"])} for name, state in undo.items()}
    try:
        report.chains = [_shrink(model, chain, multiple) for chain in chains]
        trouble = _difference(before, _outputs(model, example))
    except RuntimeError as error:  # shapes that do not fit
        trouble = str(error).splitlines()[0]
    if trouble:
        for name, state in undo.items():
            model.get_submodule(name).__dict__.update(state)
        raise PruningError(
            f"model: fails without its zero channels ({trouble}), so its modules are not what their names say; "
            "it is as it was before"
        )
    report.masked, report.parameters = _masked(model, chains), (count, _count(model))
    note_in_config(model)
    return report


def _shrink(model: nn.Module, chain: Chain, multiple: int) -> CompactedChain:
    makes: list[Any] = [model.get_submodule(name) for name in chain.producers]
    reads: Any = model.get_submodule(chain.consumer)
    rows, columns = [_matrix(layer) for layer in makes], _matrix(reads)
    units = columns.shape[1] // chain.width
    result = CompactedChain(list(chain.producers), chain.consumer, units, 0, units)
    if shared := _shared(model, [*makes, reads]):
        result.reason = f"stays: a weight is shared with {shared}"
        return result
    zero = [(weight == 0).all(1) for weight in rows]
    biases = [w.new_zeros(len(w)) if m.bias is None else m.bias for m, w in zip(makes, rows, strict=True)]
    constant, values = chain.constants(zero, biases)
    unread = (columns == 0).all(0)
    removable = (constant | unread).view(units, chain.width).all(1)
    result.removable = int(removable.sum())
    if not result.removable:
        return result
    step = multiple if chain.width == 1 else 1
    wanted = max(-(-(units - result.removable) // step) * step, step)
    size = columns.float().square().sum(0).view(units, -1).sum(1)
    for weight in rows:
        size = size + weight.float().square().reshape(units, -1).sum(1)
    order = torch.argsort(torch.where(removable, size, torch.inf), descending=True, stable=True)
    kept = order[:wanted].sort().values
    result.kept = len(kept)
    if result.kept == units:
        result.reason = f"stays: kept units are rounded to {step}"
        return result
    gone = torch.ones(units, dtype=torch.bool, device=kept.device).index_fill_(0, kept, False)
    gone = gone.repeat_interleave(chain.width)
    folded = columns[:, gone] @ values[gone]  # where values vary, nothing reads them
    if folded.any():
        reads.bias = nn.Parameter(folded if reads.bias is None else reads.bias + folded, reads.weight.requires_grad)
    for layer, count in zip(makes, chain.sizes, strict=True):
        _keep(layer, _expand(kept, count), 0)
    _keep(reads, _expand(kept, chain.width), 1)
    return result


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


def _shared(model: nn.Module, layers: list[Any]) -> str | None:
    """Name of another module that holds one of the layers' weights."""
    own = {id(layer) for layer in layers}
    weights = {id(layer.weight) for layer in layers}
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) not in own and any(id(p) in weights for p in module.parameters(recurse=False)):
            return name
    return None


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


def _outputs(model: nn.Module, example: Mapping[str, Any] | tuple | None) -> list[Tensor]:
    """All float tensors that the model gives for the example, in evaluation mode."""
    if example is None:
        return []
    device, training = next(model.parameters()).device, model.training
    moved: Any = _to(example, device)
    model.eval()
    try:
        result = model(**moved) if isinstance(moved, Mapping) else model(*moved)
    finally:
        model.train(training)
    return [t for t in _tensors(result) if t.is_floating_point()]


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _to(item, device) for key, item in value.items()}
    return tuple(_to(item, device) for item in value) if isinstance(value, (tuple, list)) else value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def _difference(before: list[Tensor], after: list[Tensor]) -> str:
    """How far outputs differ, if by more than rounding."""
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        difference = float((a.float() - b.float()).abs().max()) if a.numel() else 0.0
        if not difference <= _TOLERANCE.get(a.dtype, _TOLERANCE_16) * max(1.0, float(a.abs().max())):
            worst = max(worst, difference)
    return f"its outputs differ by {worst:.2g}" if worst else ""
