"""What layers with packed weights share."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast computes with on the device of x, None where it is off."""
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else None


def sparing_integers(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What `Module.to` and its like apply to tensors, but bytes are moved, never converted."""

    def apply(tensor: Tensor) -> Tensor:
        result = fn(tensor)
        return result if tensor.is_floating_point() or result.dtype == tensor.dtype else tensor.to(result.device)

    return apply


def check_exporter(layer: str) -> None:
    """RuntimeError where a layer is exported to what has no operator for packed weights."""
    if torch.onnx.is_in_onnx_export() or torch.jit.is_tracing():
        raise RuntimeError(
            f"{layer}: ONNX and TorchScript have no operator for packed weights; use trisparse export IN OUT --format "
            "onnx, or trisparse.decompress(model) first"
        )


def warn_of_training(layer: str) -> None:
    """A packed layer is put into training mode: its weight stays as it is."""
    warnings.warn(
        f"{layer}: is packed for inference, and its weight does not train; call trisparse.decompress(model) before "
        "training",
        stacklevel=3,
    )
