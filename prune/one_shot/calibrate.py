"""Run a calibration set through a model once for each block, so that each sees what pruned blocks before it give."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear as _AttentionOutput

from trisparse.prune.errors import PruningError, one_line
from trisparse.prune.evaluating import evaluating
from trisparse.prune.layers.layer import Layer
from trisparse.prune.layers.modules import exact, unwrap
from trisparse.prune.layers.shards import is_sharded
from trisparse.prune.layers.weights import named_weights
from trisparse.prune.one_shot.inputs import See, is_called, watched
from trisparse.prune.one_shot.method import Method
from trisparse.prune.one_shot.visits import Visits
from trisparse.sparse_ops.library import no_autocast


class Block(NamedTuple):
    """Layers that are pruned together, after they have all seen their inputs, and the module that they are in."""

    module: nn.Module
    layers: list[Layer]


class _Run(NamedTuple):
    """Calls of each module for each batch; experts that no token came to; layers that other code multiplies by."""

    calls: dict[nn.Module, list[int]]
    unreached: list[Layer]
    multiplied: set[Layer]


class _Enough(Exception):  # noqa: N818 (no error: the rest of a forward is of no interest)
    pass


def blocks_of(model: nn.Module, layers: Iterable[Layer]) -> list[Block]:
    """The layers by the element of the outermost `nn.ModuleList` that they are in; any other layer is a block alone."""
    owners = _owners(model)
    blocks: dict[nn.Module, Block] = {}
    for layer in layers:
        owner = owners.get(layer.module, layer.module)
        blocks.setdefault(owner, Block(owner, [])).layers.append(layer)
    return list(blocks.values())


def _owners(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """The element of the outermost `nn.ModuleList` that a module is in, itself included."""
    owners: dict[nn.Module, nn.Module] = {}
    for module in model.modules():  # from the outside in
        for element in module if isinstance(module, nn.ModuleList) else []:
            for inner in element.modules():
                owners.setdefault(inner, element)
    return owners


@torch.no_grad()
def calibrate(
    model: nn.Module, layers: Iterable[Layer], batches: Iterable[Any], method: Method | None,
    progress: Callable[[str], None], look: See | None = None, begin: Callable[[list[Block]], None] | None = None,
    device: torch.device | str | None = None,
) -> list[Layer]:  # fmt: skip
    """Show every layer its inputs over all batches, prune it, and go on with the next block in the order of calls.

    The batches go through the dense model first, which finds that order and what cannot be calibrated; then for each
    block once more, as far as that block. A copy of the weights is kept on the CPU, and put back if something fails.

    Args:
        model: whose forward gets the batches.
        layers: of the model.
        batches: keywords or positions of the model's forward; where their `attention_mask` is 0, inputs do not count.
        method: gets each layer and its inputs, `[tokens, in]`, for each call, and prunes it once its block has seen all
            batches; None for a first look alone.
        progress: is told which block is at work.
        look: gets the same of the dense model, before anything is pruned.
        begin: gets the blocks after that.
        device: where each block runs; None for where the model is.

    Returns:
        The experts that no token came to.

    Raises:
        PruningError: no batches, such that the model does not take, or layers that see no or no finite inputs.
    """
    model, layers = unwrap(model), list(layers)
    _check_weights(model, layers)
    if isinstance(batches, (Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        raise PruningError(f"batches: want a list or a loader of batches, got one {type(batches).__name__}")
    data = list(batches)
    if not data:
        raise PruningError("batches: want at least one batch to calibrate with, got none")
    blocks = blocks_of(model, layers)
    modules = [block.module for block in blocks]
    visits = None if device is None else Visits(dict.fromkeys((*_owners(model).values(), *modules)), device)
    before: dict[Layer, Tensor] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        if visits is not None:
            stack.enter_context(visits.on_call())
        progress(f"a first look at {len(data)} batches")
        order: dict[Layer, int] = {}

        def note(layer: Layer, x: Tensor | None = None) -> None:
            order.setdefault(layer, len(order))
            if look is not None and x is not None:
                look(layer, x)

        first = _run_all(model, layers, data, note, note, modules, multiplied=layers, visits=visits)
        if begin is not None:
            begin(blocks)
        if method is None:
            return first.unreached
        try:
            for index, block in enumerate(sorted(blocks, key=lambda b: min(order[layer] for layer in b.layers))):
                progress(f"block {index + 1} of {len(blocks)}")
                own = [layer for layer in block.layers if layer in first.multiplied]
                calls = first.calls[block.module]
                stays = visits is not None and any(calls)  # else other code reads its weights where they are
                with visits.staying(block.module) if visits and stays else contextlib.nullcontext():
                    _run_all(model, block.layers, data, method.see, method.unseen, [block.module], calls, own, visits)
                    for layer in block.layers:
                        before[layer] = layer.values.to("cpu", copy=True)
                        with no_autocast(layer.weight.device):
                            method.prune(layer)
                torch.clear_autocast_cache()  # a caller's autocast would go on with copies of what was dense
        except BaseException:
            for layer, weight in before.items():
                layer.values.copy_(weight)
            torch.clear_autocast_cache()
            raise
    return first.unreached


def _check_weights(model: nn.Module, layers: Sequence[Layer]) -> None:
    owners = {(id(layer.weight), layer.part): layer for layer in layers}
    for weight in named_weights(model):
        layer = owners.get((id(weight.tensor), weight.part))
        if layer is not None and weight.module is not layer.module:
            raise PruningError(
                f"op_names: {layer.name} and {weight.name} share a weight, and calibration looks at each layer's own "
                f"inputs; add to excluded_op_names: {[exact(layer.name), exact(weight.name)]}"
            )
    if sharded := [layer.name for layer in layers if is_sharded(layer.weight)]:
        raise PruningError(f"model: {sharded[0]} is spread over processes; calibrate a model that is whole on each")


def _run_all(
    model: nn.Module, layers: Sequence[Layer], data: Sequence[Any], see: See, unseen: Callable[[Layer], None],
    modules: Sequence[nn.Module], limit: Sequence[int] | None = None, multiplied: Sequence[Layer] = (),
    visits: Visits | None = None,
) -> _Run:  # fmt: skip
    """Run every batch, until the one module was called as often as `limit` says; `multiplied` as `watched` has it."""
    calls: dict[nn.Module, list[int]] = {module: [] for module in modules}
    tokens = dict.fromkeys(layers, 0)
    finite: dict[Layer, Tensor] = {}
    mask: Tensor | None = None

    def count(module: nn.Module, args: Any, output: Any) -> None:
        calls[module][-1] += 1
        if limit is not None and calls[module][-1] == limit[len(calls[module]) - 1]:
            raise _Enough

    def show(layer: Layer, x: Tensor) -> None:
        if mask is not None and x.shape[:-1] in (mask.shape, mask.flatten().shape):
            in_attention = x.dim() == 2 and isinstance(layer.module, (nn.MultiheadAttention, _AttentionOutput))
            x = x[(mask.t() if in_attention else mask).reshape(x.shape[:-1]).to(x.device)]  # there tokens come first
        x = x.reshape(-1, x.shape[-1])
        tokens[layer] += len(x) if layer.part is None else int((x != 0).any(-1).sum())  # some hide by zeros
        finite[layer] = finite.get(layer, True) & x.isfinite().all()
        with no_autocast(x.device):  # the forward is the caller's, sums over its inputs are not rounded like it
            see(layer, x)

    direct: set[Layer] = set()

    def show_product(layer: Layer, x: Tensor) -> None:
        direct.add(layer)
        show(layer, x)

    handles = [module.register_forward_hook(count) for module in modules]
    try:
        moves = (lambda: 0) if visits is None else (lambda: visits.moves)
        with watched(model, filter(is_called, layers), multiplied, show, show_product, moves):
            for number, batch in enumerate(data):
                for counted in calls.values():
                    counted.append(0)
                mask = _mask(batch)
                _forward(model, batch, number)
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        if layer.part is not None and not tokens[layer]:  # an expert that no token came to is pruned by size alone
            unseen(layer)
    if missed := [layer.name for layer in layers if not tokens[layer] and layer.part is None]:
        raise PruningError(
            f"batches: they show no input to {', '.join(missed)}; give more, or add to excluded_op_names: "
            f"{[exact(name) for name in missed]}"
        )
    for layer in layers:
        if not bool(finite.get(layer, True)):
            raise PruningError(f"{layer.name}: its inputs were not finite; calibrate in bfloat16 or float32")
    return _Run(calls, [layer for layer in layers if not tokens[layer]], direct)


def _mask(batch: Any) -> Tensor | None:
    """bool `[batch, tokens]`, what of a batch is no padding; None if nothing is."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask.all()) else None


def _forward(model: nn.Module, batch: Any, number: int) -> None:
    """Run a batch, of which each time a copy is made, since a forward may write to it."""
    try:
        if isinstance(batch, Mapping):
            model(**{key: _copy(value) for key, value in batch.items()})
        else:
            model(*[_copy(value) for value in (batch if isinstance(batch, (tuple, list)) else (batch,))])
    except _Enough:
        pass
    except Exception as error:
        raise PruningError(f"batches: the model does not take batch {number}: {one_line(error)}") from error


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
