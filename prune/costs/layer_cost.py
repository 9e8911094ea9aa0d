"""What one linear layer costs when a share of it is pruned: time on this machine, bytes, or multiplications."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trisparse.kernels.cpu.launch import runs_packed
from trisparse.kernels.layouts_24 import packed_size
from trisparse.prune.config.patterns import Pattern
from trisparse.prune.layers.layer import Layer
from trisparse.prune.speed_model import expected_gain, expected_gain_on_cpu
from trisparse.prune.timing import Times, TimingCache, clock_for, in_turns, time_pair
from trisparse.sparse_ops import Linear24, LinearBlocks
from trisparse.sparse_ops.blocks.masked_blocks import height_of
from trisparse.sparse_ops.blocks.packed_blocks import LOWEST, SIDES, step_of
from trisparse.sparse_ops.two_four.layout_24 import layout_24

SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)  # of a layer that is pruned, at which it is looked at
_HALF = (torch.float16, torch.bfloat16)
_FASTER, _NEVER_BELOW = 1.03, 0.97  # than dense, as `compress` takes a packed format


def packed_block(pattern: Pattern, weight: Tensor) -> tuple[int, int] | None:
    """The vectors or blocks that units are packed in; None where there is no such format for them here."""
    n, m = pattern.n, pattern.m
    if pattern.kind != "block" or (not weight.is_cuda and not runs_packed(weight.dtype)):
        return None
    if n == m and n in SIDES:
        return n, m
    height = height_of((n, m))
    return None if weight.is_cuda and height < LOWEST else (height, 1)


def has_format(layer: Layer) -> bool:
    """Whether there is a smaller form of the layer for what its pattern leaves, on its device."""
    pattern, weight = layer.pattern, layer.weight
    if pattern.kind in ("row", "column"):
        return True
    if not pattern.is_nm:
        return packed_block(pattern, weight) is not None
    fits = weight.dtype in _HALF if weight.is_cuda else runs_packed(weight.dtype)
    return pattern.is_24 and fits and matrix_of(layer)[1] % 4 == 0


def bytes_of(layer: Layer, share: float) -> float:
    """Of the weight in the smallest format that its pattern allows."""
    rows, cols, size = *matrix_of(layer), layer.weight.element_size()
    dense = float(rows * cols * size)
    if not has_format(layer) or (layer.pattern.is_nm and share < 1):
        return dense
    if layer.pattern.kind in ("row", "column"):
        return dense * (1 - share)
    if layer.pattern.is_nm:
        _, elements = packed_size(rows, cols, layout_24(layer.weight.device), size)
        return float(min(elements * size, dense))
    n, m = block = packed_block(layer.pattern, layer.weight) or (1, 1)
    groups, wide = rows / n, cols / m
    slots = groups * (wide * (1 - share) + (step_of(block) - 1) / 2)  # groups are filled up
    return min(slots * (n * m * size + (2 if wide < 1 << 15 else 4)) + 8 * groups + 4, dense)


def times_of(layer: Layer, share: float, tokens: Sequence[int], is_measured: bool) -> dict[int, tuple[float, float]]:
    """Tokens -> milliseconds dense, and with this share pruned in the format that is the faster for all of them.

    For layers that have a format; without measuring, as parts of the dense time.
    """
    found = {count: _pair(layer, share, count, is_measured) for count in tokens}
    gains = [dense / packed for dense, packed in found.values()]
    if statistics.geometric_mean(gains) < _FASTER or min(gains) < _NEVER_BELOW:
        return {count: (dense, dense) for count, (dense, _) in found.items()}
    return found


def matrix_of(layer: Layer) -> tuple[int, int]:
    """Rows and columns of a linear layer's product."""
    rows, cols = layer.shape
    return (cols, rows) if layer.layout == "transposed" else (rows, cols)


def _pair(layer: Layer, share: float, tokens: int, is_measured: bool) -> tuple[float, float]:
    rows, cols = matrix_of(layer)
    weight, pattern = layer.weight, layer.pattern
    if not is_measured:
        return 1.0, 1 / _expected(layer, share, rows, cols, tokens)
    block = packed_block(pattern, weight)
    what = f"{block[0]}x{block[1]}" if block else "2:4" if pattern.is_nm else f"{pattern.kind}s"
    key = f"budget {rows}x{cols} {weight.dtype} {what} without {share} T={tokens}"
    cache = TimingCache(None, weight.device)
    times = cache.get(key)
    if times is None:
        times = _measured(layer, share, rows, cols, tokens)
        cache.put(key, times)
    return times["dense_ms"], times["packed_ms"] if times["equal"] else times["dense_ms"]


def _expected(layer: Layer, share: float, rows: int, cols: int, tokens: int) -> float:
    gain = expected_gain if layer.weight.is_cuda else expected_gain_on_cpu
    size, pattern = layer.weight.element_size(), layer.pattern
    if pattern.kind in ("row", "column"):
        return 1 / max(1 - share, 0.01)
    block = packed_block(pattern, layer.weight)
    kind = "2:4" if block is None else "vectors" if block[1] == 1 else "blocks"
    stored = 0.5 if block is None else 1 - share
    return gain(kind, block or (1, 1), stored, int(bytes_of(layer, share)), rows, cols, tokens, size)


@torch.no_grad()
def _measured(layer: Layer, share: float, rows: int, cols: int, tokens: int) -> Times:
    draw, weight = _random(layer), layer.weight
    if layer.pattern.kind in ("row", "column"):
        kept = max(round((rows if layer.pattern.kind == "row" else cols) * (1 - share)), 1)
        small = _linear(draw(kept, cols) if layer.pattern.kind == "row" else draw(rows, kept))
        dense, x = _linear(draw(rows, cols)), draw(tokens, cols)
        part = x[:, : small.in_features].contiguous()
        for layer_here, its in ((dense, x), (small, part)):
            layer_here(its)
        dense_ms, packed_ms = in_turns(lambda: dense(x), lambda: small(part), clock_for(weight.device))
        return {"dense_ms": dense_ms, "packed_ms": packed_ms, "equal": True}
    pruned = _pruned(layer, share)
    return time_pair(pruned, _packed(layer, pruned), draw(tokens, cols))


@torch.no_grad()
def packed_copy(layer: Layer, share: float) -> nn.Module | None:
    """A packed layer of its size with random weights of which this share is pruned; None where channels go."""
    return None if layer.pattern.kind in ("row", "column") else _packed(layer, _pruned(layer, share))


def _random(layer: Layer) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)  # the caller's random numbers stay as they are
    device, dtype = layer.weight.device, layer.weight.dtype

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu").to(device, dtype)

    return draw


def _linear(weight: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], len(weight), device="meta").eval()
    made.weight, made.bias = nn.Parameter(weight), nn.Parameter(weight.new_zeros(len(weight)))
    return made


def _pruned(layer: Layer, share: float) -> nn.Linear:
    rows, cols = matrix_of(layer)
    weight = _random(layer)(rows, cols)
    if layer.pattern.is_nm:
        weight.view(rows, -1, 4)[..., 2:] = 0
        return _linear(weight)
    n, m = packed_block(layer.pattern, layer.weight) or (1, 1)
    mask = torch.ones(-(-rows // n), -(-cols // m), dtype=torch.float32, device="cpu")
    order = torch.randperm(mask.numel(), generator=torch.Generator().manual_seed(0), device="cpu")
    mask.view(-1)[order[: round(share * mask.numel())]] = 0
    mask = mask.to(weight)
    return _linear(weight * mask.repeat_interleave(n, 0)[:rows].repeat_interleave(m, 1)[:, :cols])


def _packed(layer: Layer, pruned: nn.Linear) -> nn.Module:
    if layer.pattern.is_nm:
        return Linear24.from_linear(pruned).eval()
    return LinearBlocks.from_linear(pruned, packed_block(layer.pattern, layer.weight) or (1, 1)).eval()
