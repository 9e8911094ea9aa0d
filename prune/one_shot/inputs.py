"""What goes into layers while a model runs: seen by hooks, or at the product where other code multiplies by them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trisparse.prune.layers.layer import Layer
from trisparse.prune.layers.modules import op_type

See = Callable[[Layer, Tensor], None]
_PRODUCTS = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1, torch.ops.aten.bmm.default: 0}


@contextlib.contextmanager
def watched(
    model: nn.Module, called: Iterable[Layer], multiplied: Sequence[Layer], see: See, see_product: See,
    moves: Callable[[], int] = lambda: 0,
) -> Iterator[None]:  # fmt: skip
    """Tell of every input `[…, in]` of these layers while the context lasts.

    Args:
        model: whose forwards run meanwhile; experts of transformers one after the other, and attention in the open, so
            that each product can be told apart.
        called: layers whose modules are called with their input.
        multiplied: layers to be known by their weight's memory in a product; what their module's own forward multiplies
            does not count, if it is among those called.
        see: gets a layer that is called, and its input.
        see_product: gets a layer that is multiplied by, and its input.
        moves: counts how often weights changed their place.
    """
    inside: set[Layer] = set()
    handles = []
    for layer in called:
        handles.append(layer.module.register_forward_pre_hook(_enter(layer, see, inside), with_kwargs=True))
        handles.append(layer.module.register_forward_hook(_leave(layer, inside), always_call=True))
    try:
        with contextlib.ExitStack() as stack:
            if multiplied:
                stack.enter_context(_in_the_open(model))
                stack.enter_context(_Products(multiplied, see_product, inside, moves))
            yield
    finally:
        for handle in handles:
            handle.remove()


def is_called(layer: Layer) -> bool:
    """Whether a layer's module may be called with its input, as attention's output projection is not."""
    return op_type(layer.module) is not None


def _enter(layer: Layer, see: See, inside: set[Layer]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(layer, args[0] if args else next(iter(kwargs.values())))
        inside.add(layer)

    return hook


def _leave(layer: Layer, inside: set[Layer]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        inside.discard(layer)

    return hook


@contextlib.contextmanager
def _in_the_open(model: nn.Module) -> Iterator[None]:
    models: list[Any] = [module for module in model.modules() if hasattr(module, "set_experts_implementation")]
    before = [module.get_experts_implementation() for module in models]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for module in models:
            module.set_experts_implementation("eager")
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, names in reversed(list(zip(models, before, strict=True))):
            module.set_experts_implementation(names)


class _Products(TorchDispatchMode):
    """Sees matrix products whose second factor `[in, out]` is a layer's weight, or all experts' at once."""

    def __init__(self, layers: Sequence[Layer], see: See, inside: set[Layer], moves: Callable[[], int]) -> None:
        super().__init__()
        self._all, self._see, self._inside, self._moves = layers, see, inside, moves
        self._find()

    def _find(self) -> None:
        self._layers: dict[tuple, list[Layer]] = {}
        self._found_at = self._moves()
        for layer in self._all:
            own = [layer.values if layer.layout == "transposed" else layer.values.transpose(-1, -2)]
            if layer.parameter == "in_proj_weight":  # of attention, which multiplies parts of it by queries and by keys
                third = own[0].shape[1] // 3
                own += [own[0][:, a * third : b * third] for a, b in ((0, 1), (1, 3), (1, 2), (2, 3))]
            if layer.part is not None:
                stack = layer.weight.detach()
                own.append(stack if layer.layout == "transposed" else stack.transpose(-1, -2))
            for values in own:
                self._layers.setdefault(_memory(values), []).append(layer)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS:
            if self._moves() != self._found_at:
                self._find()
            x, weight = args[_PRODUCTS[func] :][:2]
            for layer in self._layers.get(_memory(weight), ()):
                if layer not in self._inside:
                    self._see(layer, x[layer.part] if x.dim() == 3 else x)
        return func(*args, **(kwargs or {}))


def _memory(tensor: Tensor) -> tuple:
    """What two views of the same numbers, laid out alike, have in common."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()
