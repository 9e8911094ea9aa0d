"""Let an optimizer's own step hooks drive a Pruner."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any

import torch

from trisparse.prune.choosing.lasso import checked_rate
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.layer import Layer
from trisparse.prune.layers.left_out import listed
from trisparse.prune.layers.modules import exact
from trisparse.prune.pruner.copies import Copies, optimizer_chain
from trisparse.prune.pruner.group import PrunedGroup
from trisparse.prune.pruner.masked_adamw import MaskedAdamW

_BY_HAND = "call pruner.observe() and pruner.step() around its step instead"


class Attachment:
    """A Pruner on an optimizer's hooks, until `detach()` or the end of the `with` block.

    Args:
        optimizer: a `torch.optim.Optimizer`, or a wrapper that has it as `.optimizer`, `.base_optimizer` or `.base`.
        groups: what the Pruner prunes.
        observe: its `observe`.
        step: its `step`.
        broke_off: told, before the next `observe`, of an optimizer step that raised after the last one.
        on_detach: told of this attachment once the hooks are gone.
        unfinished: says what is still to come, or nothing.

    Raises:
        PruningError: an optimizer without step hooks, without one of the pruned weights, or without a learning rate
            that group lasso needs, or another Pruner on them.

    Attributes:
        name: class of the optimizer, in brackets that of what it wraps, for messages.
    """

    def __init__(
        self,
        optimizer: Any,
        groups: Sequence[PrunedGroup],
        observe: Callable[..., None],
        step: Callable[..., None],
        broke_off: Callable[[], None],
        on_detach: Callable[[Attachment], None],
        unfinished: Callable[[], str],
    ) -> None:
        self._groups, self._observe, self._step, self._broke_off = groups, observe, step, broke_off
        self._on_detach, self._unfinished = on_detach, unfinished
        self._running: FrameType | None = None  # the optimizer's step that was observed and has not ended
        self._inner = 0  # steps inside that one that have not ended
        chain = optimizer_chain(optimizer)
        if not isinstance(chain[-1], torch.optim.Optimizer):
            raise PruningError(
                f"attach: {type(chain[-1]).__name__} is no torch.optim.Optimizer and has no step hooks; {_BY_HAND}"
            )
        self._optimizer = chain[-1]  # wrappers such as accelerate's have no hooks that fire
        self.name = "(".join(type(level).__name__ for level in chain) + ")" * (len(chain) - 1)
        self._steps_seen = 0
        self._skips = False
        held = self._learning_rates()
        # a lock on frozen weights has nothing to do, and nobody to do it for
        locked = {layer for group in groups if group.config.is_lock for layer in group.layers}
        missing = [
            layer
            for layer in self._layers
            if id(layer.weight) not in held and not (layer in locked and not layer.weight.requires_grad)
        ]
        if missing:
            frozen = [exact(layer.name) for layer in missing if not layer.weight.requires_grad]
            raise PruningError(
                f"attach: {type(self._optimizer).__name__} does not hold {listed([layer.name for layer in missing])}; "
                + (
                    "all are frozen, as beside adapters: prune them at once by prune_once before, and hold the zeros "
                    "by pruning_type: pattern_lock"
                    if len(frozen) == len(self._layers)
                    else f"add to excluded_op_names those that are frozen: {frozen}"
                    if frozen
                    else "build it over the parameters of the model that the Pruner was given, or where another "
                    "optimizer holds them attach none: call pruner.observe() before the first of them steps and "
                    "pruner.step() after the last"
                )
            )
        if self._shrinks:
            for layer in self._layers:
                checked_rate(layer.name, held[id(layer.weight)])
        self._check_alone()
        self._copies = Copies(chain)
        self._copies.find(groups)
        if isinstance(self._optimizer, MaskedAdamW):
            self._optimizer.serve(groups)
        self._handles = [
            self._optimizer.register_step_pre_hook(self._before),
            self._optimizer.register_step_post_hook(self._after),
        ]

    @property
    def _layers(self) -> list[Layer]:
        return [layer for group in self._groups for layer in group.layers]

    def _check_alone(self) -> None:
        """Two Pruners would each undo what the other keeps."""
        mine = {id(layer.weight) for layer in self._layers}
        for other in self.beside():
            for layer in other._layers:
                if id(layer.weight) in mine:
                    raise PruningError(
                        f"attach: another Pruner on this {type(self._optimizer).__name__} prunes {layer.name} "
                        "already; detach() it first"
                    )

    def beside(self) -> list[Attachment]:
        """Those of other Pruners on the same optimizer."""
        owners = [getattr(hook, "__self__", None) for hook in self._optimizer._optimizer_step_pre_hooks.values()]
        return [owner for owner in owners if isinstance(owner, Attachment) and owner is not self]

    @property
    def _shrinks(self) -> bool:
        return any(group.config.reg_type is not None for group in self._groups)

    def _learning_rates(self) -> dict[int, Any]:
        """By id of the parameter, None where there is none; read anew, since loading a state replaces the groups."""
        return {id(p): group.get("lr") for group in self._optimizer.param_groups for p in group["params"]}

    @staticmethod
    def _others_write(optimizer: torch.optim.Optimizer) -> bool:
        """Whether a subclass's own step, or another hook, may have written to weights that MaskedAdamW masked."""
        if not isinstance(optimizer, MaskedAdamW):
            return False
        is_own_step = inspect.unwrap(type(optimizer).step) is not inspect.unwrap(MaskedAdamW.step)
        return is_own_step or len(optimizer._optimizer_step_post_hooks) > 1

    def _before(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if self._running is not None:
            if _is_running(self._running):  # a subclass's step calls super().step(), which has hooks of its own
                self._inner += 1
                return
            self._running = None
            self._broke_off()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is not None:
            raise PruningError(
                "step: step(closure) computes its gradients too late to be scored; call backward() and then step(), "
                "by an optimizer that needs no closure"
            )
        # a fused optimizer under GradScaler is stepped with scaled gradients, also when they overflowed
        found_inf = getattr(optimizer, "found_inf", None)
        self._skips = found_inf is not None and bool(found_inf != 0)
        if not self._skips:
            scale = getattr(optimizer, "grad_scale", None)
            self._observe(grad_scale=1.0 if scale is None else float(scale))
        self._running, self._inner = sys._getframe(1), 0

    def _after(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if self._inner:
            self._inner -= 1
            return
        self._running = None
        if not self._skips:
            rates = self._learning_rates() if self._shrinks else {}
            self._copies.find(self._groups)
            if self._others_write(optimizer):
                for group in self._groups:
                    group.is_masked = False
            self._step(lr=lambda layer: rates[id(layer.weight)])
        self._steps_seen += 1

    def detach(self) -> None:
        """Remove the hooks; the masks stay as they are, and are no longer held."""
        for handle in self._handles:
            handle.remove()
        self._running = None  # of a step that raised: it would keep what that step had at hand
        for group in self._groups:
            group.copies = []
        if isinstance(self._optimizer, MaskedAdamW) and self._optimizer.groups is self._groups:
            self._optimizer.serve(())  # but not when another Pruner came after a first detach()
        self._on_detach(self)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()
        if kind is not None:
            return
        if not self._steps_seen:
            raise PruningError(
                f"attach: {type(self._optimizer).__name__} made no step inside the with block; "
                f"is another optimizer stepped, or its hooks bypassed? {_BY_HAND}"
            )
        if left := self._unfinished():
            warnings.warn(left, stacklevel=2)


def _is_running(frame: FrameType) -> bool:
    """Whether the function of this frame has called, over any number of others, the one that asks."""
    caller: FrameType | None = sys._getframe(1)
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is frame
