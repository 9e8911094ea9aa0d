"""Cool-down on packed kernels: once masks are final, layers that are faster packed train packed."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from trisparse.prune.pruner import Pruner
from trisparse.sparse_ops import Linear24Train

_GAIN = 1.03  # how much faster packed has to be
_ROUNDS = 20
_ERROR = 0.02  # of the largest output; more is a wrong product, not rounding


class SparseCooldown:
    """Puts packed layers in the place of `nn.Linear` while an epoch trains, and takes them out again.

    Parameters stay the same objects, so optimizer, Pruner and checkpoints notice nothing. What a layer gains is
    measured once, for each shape, when the masks have become final.

    Args:
        model: the bare model.
        pruner: whose masks decide; only layers that they leave 2:4 take part.
        tokens: in a batch.
        dtype: of the packed values, that of autocast.

    Attributes:
        note: what was decided, for the report; None before that.
    """

    def __init__(self, model: nn.Module, pruner: Pruner, tokens: int, dtype: torch.dtype) -> None:
        self.model, self.pruner, self.tokens, self.dtype = model, pruner, tokens, dtype
        self.note: str | None = None
        self._packed: dict[str, Linear24Train] = {}

    @contextlib.contextmanager
    def epoch(self) -> Iterator[None]:
        """Packed layers are in place inside, if all masks are final at its start."""
        if self.note is None and self.pruner.masks_are_final:
            self._choose()
        dense = {name: self.model.get_submodule(name) for name in self._packed}
        try:
            for name, layer in self._packed.items():
                _put(self.model, name, layer.train(self.model.training))
            yield
        finally:
            for name, linear in dense.items():
                _put(self.model, name, linear)

    def _choose(self) -> None:
        fits = 0
        verdicts: dict[tuple, bool] = {}
        for name, mask in self.pruner.masks().items():
            linear = self.model.get_submodule(name)
            if not isinstance(linear, nn.Linear) or not _is_24(mask):
                continue
            fits += 1
            transposed = mask.shape[0] % 4 == 0 and _is_24(mask.t())
            key = tuple(mask.shape), transposed, linear.bias is not None
            if verdicts.get(key) is False:
                continue
            packed = Linear24Train.from_linear(linear, mask=mask, transposed=transposed, dtype=self.dtype)
            if key not in verdicts:
                verdicts[key] = is_faster(linear, packed, self.tokens)
            if verdicts[key]:
                self._packed[name] = packed
        dense = "; dense is faster for the others" if len(self._packed) < fits else ""
        self.note = f"sparse_cooldown: {len(self._packed)} of {fits} layers with 2:4 masks trained packed{dense}"


def is_faster(linear: nn.Linear, packed: Linear24Train, tokens: int) -> bool:
    """Whether forward and backward of a layer take less time packed, with the same result; never on a CPU."""
    if not linear.weight.is_cuda:
        return False
    x = torch.randn(tokens, linear.in_features, device=linear.weight.device, dtype=packed.dtype, requires_grad=True)
    grad = torch.randn(tokens, linear.out_features, device=x.device, dtype=x.dtype)

    def step(layer: nn.Module) -> tuple[Tensor, ...]:
        with torch.autocast(x.device.type, packed.dtype):
            y = layer(x)
        return y, *torch.autograd.grad(y, (x, *layer.parameters()), grad)

    y, grad_x, *_ = step(packed)
    want, want_x, *_ = step(linear)
    for ours, theirs in ((y, want), (grad_x, want_x)):
        if not bool((ours - theirs).abs().max() <= _ERROR * theirs.abs().max()):
            return False
    return _milliseconds(lambda: step(packed)) * _GAIN <= _milliseconds(lambda: step(linear))


def _milliseconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(_ROUNDS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def _is_24(mask: Tensor) -> bool:
    rows, cols = mask.shape
    return cols % 4 == 0 and bool((mask.reshape(rows, cols // 4, 4).sum(-1) <= 2).all())


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
