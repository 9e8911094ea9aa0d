"""Layers that multiply only with what the masks keep while the model trains, where that is faster here."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.kernels.cpu.launch import runs_packed
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.layer import Layer
from trisparse.prune.pruner.group import PrunedGroup
from trisparse.prune.timing import Times, TimingCache, in_turns
from trisparse.sparse_ops import (
    LinearMasked,
    MaskedBlocks,
    MaskedChannels,
    mask_linear,
    masked_blocks,
    masked_channels,
    unmask_linear,
)
from trisparse.sparse_ops.blocks.masked_blocks import height_of
from trisparse.sparse_ops.blocks.masked_channels import channel_dim

MODES = ("auto", "on", "off")
_FASTER = 1.03  # than dense, forward and backward
_DENSITIES = (0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)  # times are of the next one up
_MOST_TOKENS = 4096  # that times are taken with
_LEAST = 1 << 23  # weights times tokens, below which the calls take as long as the products


class SparseTraining:
    """Enters layers while a Pruner is attached, and chooses at its events which of them multiply what is kept.

    A structure that is older than the masks keeps more than they do, and so is right too.

    Args:
        model: that the layers are of.
        groups: of the Pruner.
        mode: `auto` takes what is faster by measurement, `on` whatever there is a way for, `off` nothing.

    Attributes:
        dense: name of each layer that multiplies with all of its weight -> why.
        is_due: nothing was chosen since layers were entered; how many tokens they get shows in their first step.
        notes: what came of it, for a report.
    """

    def __init__(self, model: nn.Module, groups: Sequence[PrunedGroup], mode: str) -> None:
        if mode not in MODES:
            raise PruningError(f"sparse_training: want {', '.join(MODES)}, got {mode!r:.60}")
        self.model, self.groups, self.mode = model, groups, mode
        self.dense: dict[str, str] = {}
        self.is_due = False
        self.notes: list[str] = []
        self._entered: dict[int, LinearMasked] = {}
        self._resumed: Sequence[str] | None = None

    def enter(self, step: int) -> None:
        """Make layers such as can multiply what is kept; those do that did when a state was saved."""
        if self.mode == "off":
            return
        is_compiled = any(
            module._compiled_call_impl is not None or "_orig_mod" in module._modules for module in self.model.modules()
        )
        for group in self.groups:
            for layer in group.layers:
                reason = "the model is compiled" if is_compiled else _obstacle(layer)
                if reason:
                    self.dense[layer.name] = reason
                else:
                    self._entered[id(layer.module)] = mask_linear(layer.module)  # type: ignore[arg-type]
        self._begin(step)

    def resume(self, sparse: Sequence[str] | None, step: int) -> None:
        """Masks came from a state, with what `state` gave then: training is to round as it did."""
        for layer in self._entered.values():
            layer.kept = None
        self._resumed = sparse
        self._begin(step)

    def _begin(self, step: int) -> None:
        self.is_due = bool(self._entered)
        if self._resumed is not None and self._entered:
            self.update(step, self._resumed)
            self._resumed = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy has entered no layers, and will choose those that are chosen here."""
        return {**vars(self), "_entered": {}, "dense": {}, "is_due": False, "_resumed": self.state}

    @property
    def state(self) -> Sequence[str] | None:
        """Names of the layers that multiply what is kept; None before anything was chosen."""
        return self._resumed if not self._entered else None if self.is_due else self.sparse

    def leave(self) -> None:
        """Make all of them plain layers again."""
        for layer in self._entered.values():
            unmask_linear(layer)
        self._entered.clear()
        self.dense.clear()
        self.is_due = False

    @torch.no_grad()
    def update(self, step: int, sparse: Sequence[str] | None = None) -> None:
        """Choose anew, for the masks in force after this many steps; `sparse` names the layers to choose."""
        self.is_due = False
        for group in self.groups:
            if not group.active:
                continue
            masks, blocks = group.masks(step)
            for layer, mask, block in zip(group.layers, masks, blocks, strict=True):
                masked = self._entered.get(id(layer.module))
                if masked is None:
                    continue
                if layer.pattern.kind == "column":
                    mask, block = mask.t(), block[::-1]
                if sparse is not None:
                    reason = "" if layer.name in sparse else "dense was faster when this was saved"
                else:
                    density = float(mask.sum()) / max(mask.numel(), 1)
                    reason = "" if self.mode == "on" else _slower(masked, block, density)
                # looking for what is kept takes longer than counting it
                masked.kept = None if reason else _find(mask, block, layer.weight.dtype)
                if reason:
                    self.dense[layer.name] = reason
                else:
                    self.dense.pop(layer.name, None)
        self.notes = self._told()

    def _told(self) -> list[str]:
        sparse = len(self.sparse)
        if not sparse:
            return []
        reasons: dict[str, list[str]] = {}
        for name, reason in self.dense.items():
            reasons.setdefault(reason, []).append(name)
        return [
            f"in training {sparse} of {sparse + len(self.dense)} pruned layers multiplied what is kept alone",
            *(f"in training dense: {', '.join(names)}: {reason}" for reason, names in reasons.items()),
        ]

    @property
    def sparse(self) -> list[str]:
        """Names of the layers that multiply what is kept."""
        named = {id(layer.module): layer.name for group in self.groups for layer in group.layers}
        return [named[key] for key, layer in self._entered.items() if layer.kept is not None and key in named]


def _obstacle(layer: Layer) -> str:
    """Why a layer can't multiply what is kept, or an empty string."""
    module, weight = layer.module, layer.weight
    if type(module) is not nn.Linear or layer.layout != "linear" or layer.parameter != "weight":
        return f"it is a {type(module).__name__}, not nn.Linear itself"
    if layer.pattern.kind == "fused":
        return "its heads are not blocks of its weight"
    if "forward" in vars(module):
        return "its forward was replaced"
    if layer.rows.group is not None:
        return "its weight is spread over processes"
    if weight.device.type != "cpu":
        return f"it is on {weight.device.type}, and only CPUs multiply what is kept"
    if type(weight) is not nn.Parameter:
        return f"its weight is a {type(weight).__name__}"
    return ""


def _find(mask: Tensor, block: tuple[int, int], dtype: torch.dtype) -> MaskedBlocks | MaskedChannels:
    """What a mask of units of this block keeps."""
    shape = mask.shape[0] * block[0], mask.shape[1] * block[1]
    is_channels = channel_dim(shape, block) is not None
    return masked_channels(mask, block) if is_channels else masked_blocks(mask, block, dtype)


def _slower(layer: LinearMasked, block: tuple[int, int], kept: float) -> str:
    """Why a layer had better multiply all of its weight, or an empty string."""
    if not layer.tokens:
        return "its forward was not called in training mode"
    density = next((d for d in _DENSITIES if kept <= d), None)
    if density is None:
        return "too much of it is kept"
    if layer.weight.numel() * layer.tokens < _LEAST:
        return "it is too small to gain"
    rows, cols = layer.weight.shape
    dim = channel_dim((rows, cols), block)
    if dim is None and not runs_packed(layer.computed or layer.weight.dtype):
        return f"there is no kernel for {str(layer.computed or layer.weight.dtype).removeprefix('torch.')} here"
    tokens = min(1 << round(math.log2(layer.tokens)), _MOST_TOKENS)
    own, dtype = layer.weight.dtype, layer.computed or layer.weight.dtype
    unit = [(1, cols), (rows, 1)][dim] if dim is not None else (height_of(block), 1)
    key = f"training {rows}x{cols} {own} in {dtype} {unit[0]}x{unit[1]} of {density} T={tokens}"
    cache = TimingCache(None, layer.weight.device)
    times = cache.get(key)
    if times is None:
        times = time_steps(rows, cols, unit, density, tokens, own, dtype)
        cache.put(key, times)
    gain = times["dense_ms"] / times["packed_ms"]
    return "" if gain >= _FASTER else f"dense is faster here ({gain:.2f} times as fast with {density:.0%} kept)"


@torch.enable_grad()
def time_steps(
    rows: int,
    cols: int,
    unit: tuple[int, int],
    density: float,
    tokens: int,
    weight_dtype: torch.dtype,
    dtype: torch.dtype,
) -> Times:
    """Milliseconds of forward and backward of one layer, all of it and what a random mask keeps of it, in turns."""
    generator = torch.Generator().manual_seed(0)  # the caller's random numbers stay as they are

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")

    dense = nn.Linear(cols, rows, device="meta").to_empty(device="cpu").to(weight_dtype)
    dense.bias.data.zero_()
    grid = rows // unit[0], cols // unit[1]
    mask = torch.rand(grid, generator=generator, dtype=torch.float32, device="cpu") < density
    wide = mask.repeat_interleave(unit[0], 0).repeat_interleave(unit[1], 1)
    dense.weight.data = (draw(rows, cols) * wide).to(weight_dtype)
    masked = mask_linear(copy.deepcopy(dense))
    masked.kept = _find(mask, unit, weight_dtype)
    x, grad = draw(tokens, cols).to(dtype).requires_grad_(), draw(tokens, rows).to(dtype)

    def step(layer: nn.Linear) -> None:
        with torch.autocast("cpu", dtype, enabled=dtype is not weight_dtype):
            y = layer(x)
        torch.autograd.grad(y, (x, layer.weight, layer.bias), grad)

    for layer in (dense, masked):
        step(layer)
    dense_ms, packed_ms = in_turns(lambda: step(dense), lambda: step(masked))
    return {"dense_ms": dense_ms, "packed_ms": packed_ms, "equal": True}
