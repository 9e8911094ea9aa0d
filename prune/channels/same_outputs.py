"""Whether a model still gives what it gave: it is run on an example before and after a change, and compared."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.prune.errors import PruningError
from trisparse.prune.evaluating import evaluating
from trisparse.sparse_ops.library import no_autocast

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of the largest output; 16-bit types round more
_TOLERANCE_16 = 3e-2  # and of float32 where its products may be rounded like them
_PICTURE = 224  # pixels, high and wide
_LEAST = 1e-2  # what outputs are taken to come from at least: smaller ones are differences, and round like their terms


def check_example(example: Any) -> None:
    """PruningError for what can't be the inputs of a forward."""
    if example is not None and not isinstance(example, (Mapping, tuple, list)):
        raise PruningError(
            f"example: want a dict of keywords or a tuple of positions, got {type(example).__name__}; "
            "for a single tensor write (tensor,)"
        )


def own_example(model: Any) -> Any:
    """Inputs that a model of transformers has itself: texts, or pictures as large as its config says; else None."""
    return pictures(model, 2) if takes_pictures(model) else getattr(model, "dummy_inputs", None)


def takes_pictures(model: Any) -> bool:
    """Whether this is a model of transformers whose first input is pictures."""
    return getattr(model, "main_input_name", None) == "pixel_values"


def pictures(model: Any, count: int) -> dict[str, Tensor]:
    """Keywords of its forward: so many random pictures, as large as its config says."""
    size = getattr(model.config, "image_size", None)
    size = size if isinstance(size, (int, list, tuple)) else _PICTURE  # convolutions alone take pictures of any size
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    shape = count, getattr(model.config, "num_channels", 3), *sizes
    generator = torch.Generator().manual_seed(0)  # the caller's random numbers stay
    drawn = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    return {"pixel_values": drawn.to(next(model.parameters()).dtype)}


def outputs_of(model: nn.Module, example: Any) -> list[Tensor]:
    """All float tensors that the model gives for the example, in evaluation mode; none without an example.

    With them come those for a part of it, fewer texts of fewer tokens, if the model runs on such: what was taken for a
    constant may depend on these.
    """
    if example is None:
        return []
    found = _tensors(run(model, example))
    with contextlib.suppress(Exception):  # whatever a forward raises that counts on the example's sizes
        found += _tensors(run(model, _part(example)))
    return [t for t in found if t.is_floating_point()]


def _part(value: Any) -> Any:
    """The first half of tokens and of texts, in tensors of two dimensions and more."""
    if isinstance(value, Tensor):
        if value.dim() < 2:
            return value
        high, wide = (-(-size // 2) for size in value.shape[:2])
        return value[:high, :wide] if value.dim() < 4 else value[:high]  # of pictures the second are channels
    if isinstance(value, Mapping):
        return {key: _part(item) for key, item in value.items()}
    return tuple(map(_part, value)) if isinstance(value, (tuple, list)) else value


def run(model: nn.Module, example: Any) -> Any:
    """What the model gives for the example, in evaluation mode.

    Random numbers, which some models draw even then, are the same each time; those of the caller stay as they were. It
    runs without autocast, so that constants that are folded into weights are as exact as these.
    """
    device = next(model.parameters()).device
    moved: Any = _to(example, device)
    with evaluating(model), no_autocast(device), torch.random.fork_rng([device] if device.type == "cuda" else []):
        return model(**moved) if isinstance(moved, Mapping) else model(*moved)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _to(item, device) for key, item in value.items()}
    return tuple(_to(item, device) for item in value) if isinstance(value, (tuple, list)) else value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def _tolerance(dtype: torch.dtype) -> float:
    is_rough = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return _TOLERANCE_16 if is_rough else _TOLERANCE.get(dtype, _TOLERANCE_16)


def difference(before: list[Tensor], after: list[Tensor]) -> str:
    """How far outputs differ, if by more than rounding; infinities and NaN have to be where they were."""
    shapes = [[list(t.shape) for t in tensors] for tensors in (before, after)]
    if shapes[0] != shapes[1]:
        return f"its outputs were {shapes[0]} and are {shapes[1]}"
    for a, b in zip(before, after, strict=True):
        wide = torch.promote_types(a.dtype, torch.float32)
        x, y = a.to(wide), b.to(wide)
        off = torch.where((x == y) | (x.isnan() & y.isnan()), 0, (x - y).abs())
        size = torch.where(x.isfinite(), x, 0).abs()
        worst, largest = (float(t.max()) if t.numel() else 0.0 for t in (off, size))
        if not worst <= _tolerance(a.dtype) * max(_LEAST, largest):
            return f"its outputs differ by {worst:.2g}, the largest being {largest:.2g}"
    return ""
