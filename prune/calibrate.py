"""Run a calibration set through a model block by block, so that each block sees what pruned blocks before it give."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trisparse.prune.errors import PruningError
from trisparse.prune.evaluating import evaluating
from trisparse.prune.layers import Layer


class Block(NamedTuple):
    """One of the repeated parts of a model, and the layers to prune in it."""

    module: nn.Module
    layers: list[Layer]


class _Call(NamedTuple):
    """What a block is called with: its hidden states, and the rest."""

    hidden: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def blocks_of(model: nn.Module, layers: Iterable[Layer]) -> list[Block]:
    """The repeated blocks of a model, with the layers in each; one block, the model, if it repeats none.

    Raises:
        PruningError: a layer outside the blocks.
    """
    layers = list(layers)
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    counts = {name: sum(layer.name.startswith(f"{name}.") for layer in layers) for name in lists}
    best = max(counts, key=lambda name: (counts[name], -len(name)), default=None)
    if best is None or not counts[best]:
        return [Block(model, layers)]
    outside = [layer.name for layer in layers if not layer.name.startswith(f"{best}.")]
    if outside:
        raise PruningError(
            f"op_names: calibration goes through the blocks of {best}; outside of it are {', '.join(outside)}; "
            "add them to excluded_op_names"
        )
    inside = [[layer for layer in layers if layer.name.startswith(f"{best}.{i}.")] for i in range(len(lists[best]))]
    return [Block(module, found) for module, found in zip(lists[best], inside, strict=True)]


@torch.no_grad()
def calibrate(
    model: nn.Module, layers: Iterable[Layer], batches: Iterable[Any],
    see: Callable[[Layer, Tensor], None], prune: Callable[[Layer], None], progress: Callable[[str], None],
) -> None:  # fmt: skip
    """Show every layer its inputs over all batches, prune it, and go on with what its block then gives.

    Args:
        model: its blocks are called as its own forward calls them; hidden states of all batches are held.
        layers: of the model.
        batches: keywords or positions of the model's forward.
        see: gets each layer and inputs of it, `[tokens, in]`, for each batch.
        prune: gets each layer once its block has seen all batches.
        progress: is told which block is at work.

    Raises:
        PruningError: no batches, or layers outside the model's blocks.
    """
    blocks = blocks_of(model, layers)
    with evaluating(model), _no_cache(model):
        calls = _recorded(model, [block.module for block in blocks], batches)
        if not calls:
            raise PruningError("batches: want at least one batch to calibrate with, got none")
        hidden = [call[0].hidden for call in calls]
        for index, block in enumerate(blocks):
            progress(f"block {index + 1} of {len(blocks)}")
            handles = [layer.module.register_forward_pre_hook(_seer(layer, see)) for layer in block.layers]
            try:
                for value, call in zip(hidden, calls, strict=True):
                    _run(block, value, call[index])
            finally:
                for handle in handles:
                    handle.remove()
            for layer in block.layers:
                prune(layer)
            if index + 1 < len(blocks):
                hidden = [_run(block, value, call[index]) for value, call in zip(hidden, calls, strict=True)]


def _recorded(model: nn.Module, modules: list[nn.Module], batches: Iterable[Any]) -> list[list[_Call]]:
    """For each batch what each block is called with; hidden states of the first block only."""
    calls: list[list[_Call]] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        hidden = args[0] if args else kwargs.pop("hidden_states", None)
        calls[-1].append(_Call(None if calls[-1] else hidden, args[1:], kwargs))

    handles = [module.register_forward_pre_hook(record, with_kwargs=True) for module in modules]
    try:
        for batch in batches:
            calls.append([])
            if isinstance(batch, Mapping):
                model(**batch)
            else:
                model(*(batch if isinstance(batch, (tuple, list)) else (batch,)))
            if len(calls[-1]) != len(modules):
                raise PruningError(f"model: its forward calls {len(calls[-1])} of its {len(modules)} blocks once each")
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _run(block: Block, hidden: Any, call: _Call) -> Any:
    if hidden is None:  # the model itself, called with keywords
        return block.module(**call.kwargs)
    output = block.module(hidden, *call.args, **call.kwargs)
    return output[0] if isinstance(output, (tuple, list)) else output


def _seer(layer: Layer, see: Callable[[Layer, Tensor], None]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    return lambda module, args: see(layer, args[0].flatten(0, -2))


@contextlib.contextmanager
def _no_cache(model: nn.Module) -> Iterator[None]:
    """A cache of keys would grow with every call of a block."""
    config: Any = getattr(model, "config", None)
    before = getattr(config, "use_cache", None)
    if before:
        config.use_cache = False
    try:
        yield
    finally:
        if before:
            config.use_cache = before
