"""Retrain-free pruning: channels and heads go by the Fisher information of their masks, without training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.prune.choosing.mask_gradient import mask_gradient
from trisparse.prune.config.config import PruningConfig
from trisparse.prune.config.group import REDUCTIONS
from trisparse.prune.errors import PruningError, one_line
from trisparse.prune.evaluating import evaluating
from trisparse.prune.layers.layer import Layer
from trisparse.prune.layers.modules import exact
from trisparse.prune.pruner.group import PrunedGroup
from trisparse.prune.pruner.pruner import Pruner
from trisparse.prune.pruner.report import SparsityReport
from trisparse.sparse_ops import Plan

_KINDS = ("row", "column", "heads")
Loss = Callable[[nn.Module, Any], Tensor]


def prune_retrain_free(
    model: nn.Module, batches: Iterable[Any] | None, loss: Loss | None, config: PruningConfig
) -> SparsityReport:
    """Prune rows, columns or heads at once and in place, by what masks on them would do to the loss.

    Each batch gives the gradient g of every unit's mask. Units go by their diagonal Fisher information, Σ g² over the
    batches; then, in each layer, units are exchanged one by one while that lowers Σ (Σ g)², where the inner sum is over
    the units that go: those stay whose effects on the loss add up. Kwon et al. 2022, arXiv 2204.09656, sections 4.1
    and 4.2, without the tuning of what stays; neural-compressor's `retrain_free`. No weight that stays is changed.

    Args:
        model: which is run in evaluation mode, forward and backward.
        batches: what `loss` takes, on the model's device; batches of one example each give the paper's information.
        loss: gets the model and a batch, and gives a number; without it, batches are keywords of the model's forward,
            and it is what this gives as `loss`.
        config: groups with a pattern of `1xchannel`, `channelx1`, several such side by side, or `mha`.

    Returns:
        The report that `Pruner.report` gives.

    Raises:
        PruningError: an argument that does not fit, or layers without a finite gradient; the weights are as they were.
            Gradients and `requires_grad` are in any case.
    """
    for group in config.groups:
        for key, is_plain in (
            ("lock_init_sparsity", not group.lock_init_sparsity),
            ("criterion_reduce_type", group.criterion_reduce_type == REDUCTIONS[0]),
        ):
            if not is_plain:
                raise PruningError(f"{key}: retrain_free prunes once, by gradients of masks; leave it out")
        if group.pattern.kind not in _KINDS:
            raise PruningError(
                f"pattern: {group.pattern} has too many units for retrain_free; want 1xchannel, channelx1 or mha"
            )
    if isinstance(batches, (Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        raise PruningError(f"batches: want a list or a loader of batches, got one {type(batches).__name__}")
    pruner = Pruner(model, config)
    if any(group.weights.is_sharded for group in pruner.groups):
        raise PruningError("model: is spread over processes; retrain_free takes one that is whole on each")
    found = _gradients(model, pruner.layers, batches, loss or _own_loss)
    with torch.no_grad():
        for pruned in pruner.groups:
            _choose(pruned, found)
        for pruned in pruner.groups:
            pruned.active = True
            pruned.write_masks(0)
    return pruner.report()


def _own_loss(model: nn.Module, batch: Any) -> Tensor:
    found = getattr(model(**batch), "loss", None) if isinstance(batch, Mapping) else None
    if found is None:
        raise PruningError("loss: the model gives none for this batch; put labels into it, or give loss=…")
    return found


def _gradients(model: nn.Module, layers: Sequence[Layer], batches: Iterable[Any], loss: Loss) -> dict[Layer, Tensor]:
    """Of the units' masks, fp64 `[units, batches]` on the CPU, where sums come out the same each time."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    weights = list({id(layer.weight): layer.weight for layer in layers}.values())
    found: dict[Layer, list[Tensor]] = {layer: [] for layer in layers}
    unseen = set(layers)
    try:
        model.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        with evaluating(model), torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            for number, batch in enumerate(batches):
                grads = dict(zip(map(id, weights), _backward(model, batch, number, loss, weights), strict=True))
                for layer in layers:
                    if (grad := grads[id(layer.weight)]) is None:
                        grad = torch.zeros_like(layer.weight)
                    else:
                        unseen.discard(layer)
                    own = layer.unit_view(layer.own(grad.contiguous()))
                    found[layer].append(mask_gradient(layer.view, own, layer.block)[:, 0])
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    if not found[layers[0]]:
        raise PruningError("batches: want at least one batch, got none")
    if unseen:
        names = [layer.name for layer in layers if layer in unseen]
        raise PruningError(
            f"batches: the loss depends on no weight of {', '.join(names)}; add to excluded_op_names: "
            f"{[exact(name) for name in names]}"
        )
    whole = {layer: torch.stack(parts, 1).cpu().double() for layer, parts in found.items()}
    for layer, grad in whole.items():
        if not bool(grad.isfinite().all()):
            raise PruningError(f"{layer.name}: gradients of its masks are not finite; use float32, or other batches")
    return whole


def _backward(
    model: nn.Module, batch: Any, number: int, loss: Loss, weights: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Gradients that are kept nowhere, so that those of the caller stay."""
    try:
        return torch.autograd.grad(loss(model, batch), weights, allow_unused=True)
    except PruningError:
        raise
    except Exception as error:  # whatever a forward or a loss raises
        raise PruningError(f"batches: no gradient comes of batch {number}: {one_line(error)}") from error


def _choose(group: PrunedGroup, gradients: Mapping[Layer, Tensor]) -> None:
    """Masks of one group; of an attention the columns that read its heads, as what these give is masked."""
    numbers = [own[-1] for own in group.attentions] or range(len(group.layers))
    grads = [gradients[group.layers[i]] for i in numbers]
    masks = [group.units[i] for i in numbers]
    scores = [grad.square().sum(1, keepdim=True).float().to(group.weights.device) for grad in grads]
    group.selection.ask(group.config.target)
    group.selection.run(scores, masks, Plan())
    for grad, mask in zip(grads, masks, strict=True):
        mask.copy_(rearranged(grad, mask[:, 0].cpu())[:, None])


def rearranged(grads: Tensor, kept: Tensor) -> Tensor:
    """As many units, chosen so that what goes does less to the loss together.

    Greedy, in one pass: each unit that stays is tried, the cheapest first. It goes if ‖Σ g‖² over what goes, of which
    one then has to come back, gets lower by it; what comes back is the unit without which that is lowest.

    Args:
        grads: `[units, batches]`.
        kept: bool `[units]`.

    Returns:
        bool `[units]`, with as many that are kept.
    """
    gone = ~kept
    size = grads.square().sum(1)
    total = grads[gone].sum(0)
    if not bool(gone.any()):
        return kept.clone()
    for unit in torch.argsort(size, stable=True).tolist():
        if not kept[unit]:
            continue
        total = total + grads[unit]
        without = size - 2 * (grads @ total)  # and ‖total‖², the same for all
        back = int(without.masked_fill(~gone, torch.inf).argmin())
        if without[back] < without[unit]:
            gone[unit], gone[back] = True, False
            total = total - grads[back]
        else:
            total = total - grads[unit]
    return ~gone
