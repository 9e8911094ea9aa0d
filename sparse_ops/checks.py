"""What every operator checks of its arguments."""

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_dtype(name: str, tensor: Tensor) -> None:
    """Raise TypeError for a dtype that the operators do not compute with."""
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name}: want {', '.join(str(d) for d in DTYPES)}, got {tensor.dtype}")


def check_device(**tensors: Tensor | Sequence[Tensor | None]) -> None:
    """Raise ValueError unless all tensors are on the device of the first."""
    named = [(k, t) for k, v in tensors.items() for t in ([v] if isinstance(v, Tensor) else v) if t is not None]
    for name, tensor in named:
        if tensor.device != named[0][1].device:
            raise ValueError(f"{name}: want all on {named[0][1].device} like {named[0][0]}, got {tensor.device}")


def check_lengths(**lists: Sequence | Tensor) -> None:
    """Raise ValueError unless all lists have one entry for the same number of layers."""
    (first, values), *others = lists.items()
    for name, other in others:
        if len(other) != len(values):
            raise ValueError(f"{name}: want {len(values)} entries like {first}, got {len(other)}")
