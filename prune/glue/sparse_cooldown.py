"""Cool-down on packed kernels: once masks are final, layers that are faster packed train packed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.prune.layers.modules import replace_module
from trisparse.prune.pruner.pruner import Pruner
from trisparse.prune.timing import clock_for, in_turns, replayed
from trisparse.sparse_ops import Linear24Train, LinearMasked

_GAIN = 1.03  # how much faster packed has to be
_ERROR = 0.02  # of the largest output; more is a wrong product, not rounding


class SparseCooldown:
    """Puts packed layers in the place of `nn.Linear` while an epoch trains, and takes them out again.

    Parameters stay the same objects, so optimizer, Pruner and checkpoints notice nothing. What a layer gains is
    measured once, for each shape, at the first epoch whose masks are final.

    Args:
        model: the bare model.
        pruner: whose masks decide; only layers that they leave 2:4 take part.
        tokens: in a batch.
        dtype: that autocast computes with.

    Attributes:
        names: the layers that train packed; None until that is decided. Set it to go on as a run before did.
    """

    def __init__(self, model: nn.Module, pruner: Pruner, tokens: int, dtype: torch.dtype) -> None:
        self.model, self.pruner, self.tokens, self.dtype = model, pruner, tokens, dtype
        self.names: list[str] | None = None
        self._packed: dict[str, Linear24Train] | None = None

    @contextlib.contextmanager
    def epoch(self) -> Iterator[None]:
        """Packed layers are in place inside, if all masks are final at its start."""
        if self._packed is None and self.pruner.masks_are_final:
            self._packed = self._pack()
            self.names = list(self._packed)
        packed = self._packed or {}
        dense = {name: self.model.get_submodule(name) for name in packed}
        try:
            for name, layer in packed.items():
                replace_module(self.model, name, layer.train(self.model.training))
            yield
        finally:
            for name, linear in dense.items():
                replace_module(self.model, name, linear)

    def note(self) -> str:
        """What was decided, for the report."""
        if self._packed is None:
            return (
                "sparse_cooldown: no epoch began with final masks, so none trained packed; lengthen --cooldown_epochs"
            )
        dense = "" if self._packed else "; dense is faster here"
        count = f"{len(self._packed)} of {len(self._candidates())}"
        return f"sparse_cooldown: {count} layers with 2:4 masks trained packed{dense}"

    def _candidates(self) -> dict[str, Tensor]:
        """Linear layers with 2:4 masks; one with hooks or a frozen weight stays as it is."""
        found = {}
        for name, mask in self.pruner.masks().items():
            layer = self.model.get_submodule(name)
            plain = (
                type(layer) in (nn.Linear, LinearMasked) and not layer._forward_hooks and not layer._forward_pre_hooks
            )
            if plain and all(p.requires_grad for p in layer.parameters()) and _is_24(mask):
                found[name] = mask
        return found

    def _pack(self) -> dict[str, Linear24Train]:
        packed: dict[str, Linear24Train] = {}
        verdicts: dict[tuple, bool] = {}
        for name, mask in self._candidates().items():
            linear: Any = self.model.get_submodule(name)
            transposed = mask.shape[0] % 4 == 0 and _is_24(mask.t())
            # not masked: as in a dense cool-down, the Pruner zeroes what is pruned after the step
            layer = Linear24Train.from_linear(linear, mask=mask, transposed=transposed, masked=False)
            key = tuple(mask.shape), transposed, linear.bias is not None
            if self.names is None and key not in verdicts:
                verdicts[key] = is_faster(linear, layer, self.tokens, self.dtype)
            if verdicts[key] if self.names is None else name in self.names:
                packed[name] = layer
        return packed


def is_faster(linear: nn.Linear, packed: Linear24Train, tokens: int, dtype: torch.dtype) -> bool:
    """Whether forward and backward of a layer take less time packed, with the same results; never on a CPU."""
    device = linear.weight.device
    if device.type != "cuda":
        return False
    generator = torch.Generator(device).manual_seed(0)  # the run's own random numbers stay as they are

    def noise(width: int) -> Tensor:
        return torch.randn(tokens, width, device=device, dtype=dtype, generator=generator)

    x, grad = noise(linear.in_features).requires_grad_(), noise(linear.out_features)

    def step(layer: nn.Module) -> tuple[Tensor, ...]:
        with torch.autocast(device.type, dtype):
            y = layer(x)
        return y, *torch.autograd.grad(y, (x, *layer.parameters()), grad)

    for ours, theirs in zip(step(packed), step(linear), strict=True):
        if not bool((ours - theirs).abs().max() <= _ERROR * theirs.abs().max()):
            return False
    # replayed, since a loop hides the Python of a step
    calls = replayed(lambda: step(linear), device)[0], replayed(lambda: step(packed), device)[0]
    dense_ms, packed_ms = in_turns(*calls, clock_for(device))
    return packed_ms * _GAIN <= dense_ms


def _is_24(mask: Tensor) -> bool:
    rows, cols = mask.shape
    return cols % 4 == 0 and bool((mask.reshape(rows, cols // 4, 4).sum(-1) <= 2).all())
