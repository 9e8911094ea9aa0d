"""What layers with packed weights share."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.sparse_ops.activations import ACTIVATIONS
from trisparse.sparse_ops.library import is_seen


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast computes with on the device of x, None where it is off."""
    kind = x.device.type
    on = kind != "meta" and torch.is_autocast_enabled(kind)  # is_autocast_available: no compiler traces it in 2.11
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


class DirectModule(nn.Module):
    """Calls a kernel for CPUs past the dispatcher and its checks, where the weight is as it was at the last call.

    Small products take microseconds, and so would all that is looked at here if it were looked at at leisure.
    """

    activation = "none"
    _direct: tuple[Any, Callable[[Tensor], Tensor] | None] = None, None

    def activate(self, activation: str) -> None:
        """Apply this to what the product gives: `none`, `relu`, `gelu` or `gelu_tanh`. No part of a `state_dict`."""
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: want {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.activation, self._direct = activation, (None, None)

    def prepared(self) -> Callable[[Tensor], Tensor] | None:
        """The product for `[..., in]`; None where there is none. Raises ValueError for a weight that is damaged."""
        raise NotImplementedError

    def direct(
        self, x: Tensor, dtype: torch.dtype, weight: Tensor, bias: Tensor | None, *index: Tensor
    ) -> Tensor | None:
        """The product with x `[..., in]`; None where the operator has to make it.

        Args:
            x: what is multiplied.
            dtype: of the weight's values.
            weight: holds them.
            bias: may be None.
            index: integers that the kernel trusts, so that it is prepared anew if something has written to them.
        """
        if (
            is_seen(x, weight)
            or x.dtype is not dtype
            or torch.autograd.forward_ad._current_level >= 0
            or torch.is_autocast_enabled("cpu")
            or not weight.is_contiguous()  # the kernel would read a copy, which does not follow the weight
            or not (bias is None or bias.is_contiguous())
            or (
                torch.is_grad_enabled()
                and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad))
            )
        ):
            return None
        key: Any = [weight.data_ptr(), bias is None or bias.data_ptr()]
        for part in index:
            key += part.data_ptr(), part.is_inference() or part._version
        was, product = self._direct
        if key != was:
            product = self.prepared()
            self._direct = key, product
        return None if product is None else product(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._direct = None, None  # would keep memory that the weight leaves
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_direct"}  # of this process alone
