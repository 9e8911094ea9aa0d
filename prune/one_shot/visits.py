"""Modules that are on a device while they run, one at a time, and else where they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from trisparse.prune.errors import PruningError, one_line


class _Away(NamedTuple):
    """A tensor of a module, its numbers at home, and its version when they were copied."""

    tensor: Tensor
    home: Tensor
    version: int


class Visits:
    """Brings modules to a device for each call, with what they are called with, and what they give back home.

    Args:
        modules: none inside another; called one after the other.
        device: where to.

    Attributes:
        moves: how often numbers went to the device or back, so that whoever knows an address knows that it is old.

    Raises:
        PruningError: a device that can't be used.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device | str) -> None:
        try:
            self._device = torch.device(device)
            usable = not torch.empty(0, dtype=torch.float32, device=self._device).is_meta
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:  # torch without CUDA asserts
            raise PruningError(f"device: {device!r} can't be used: {one_line(error)}") from None
        if not usable:
            raise PruningError("device: want one that computes, got 'meta'")
        self._modules = list(modules)
        self._away: dict[nn.Module, list[_Away]] = {}
        self.moves = 0

    @contextlib.contextmanager
    def on_call(self) -> Iterator[None]:
        """While the context lasts, a call brings its module."""
        handles = []
        for module in self._modules:
            enter, leave = self._call_hooks()
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module in list(self._away):  # a call that was interrupted
                self._send_home(module)

    @contextlib.contextmanager
    def staying(self, module: nn.Module) -> Iterator[None]:
        """Keep one of the modules on the device; what changed of it there comes home with it."""
        self._bring(module)
        try:
            yield
        finally:
            self._send_home(module)

    def _call_hooks(self) -> tuple[Any, Any]:
        there: dict[int, tuple[Tensor, Tensor]] = {}  # what is one tensor here is one there
        brought = False

        def move(tensor: Tensor) -> Tensor:
            if id(tensor) not in there:
                there[id(tensor)] = tensor, tensor.to(self._device, copy=True)
            return there[id(tensor)][1]

        def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
            nonlocal brought
            brought = module not in self._away
            if brought:
                self._bring(module)
            return tree_map_only(Tensor, move, (args, kwargs))

        def leave(module: nn.Module, args: Any, output: Any) -> Any:
            home = next((away.home.device for away in self._away[module]), torch.device("cpu"))
            if brought:
                self._send_home(module)
            here = {id(copied): tensor for tensor, copied in there.values()}
            for tensor, copied in there.values():
                if copied._version:  # the module wrote to what it was given
                    tensor.copy_(copied)
            back = tree_map_only(Tensor, lambda found: here[id(found)] if id(found) in here else found.to(home), output)
            there.clear()
            return back

        return enter, leave

    def _bring(self, module: nn.Module) -> None:
        self.moves += 1
        away = self._away[module] = []
        for tensor in (*module.parameters(), *module.buffers()):
            home, tensor.data = tensor.data, tensor.data.to(self._device, copy=True)
            away.append(_Away(tensor, home, tensor._version))

    def _send_home(self, module: nn.Module) -> None:
        self.moves += 1
        for tensor, home, version in self._away.pop(module):
            there, tensor.data = tensor.data, home
            if tensor._version != version:
                home.copy_(there)
