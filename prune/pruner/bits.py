"""Bool tensors as bits, eight to a byte, the first in the lowest bit."""

import torch
from torch import Tensor

_WEIGHTS = (1, 2, 4, 8, 16, 32, 64, 128)


def pack_bits(mask: Tensor) -> Tensor:
    """uint8 `[ceil(numel / 8)]` on the CPU; the bits behind the last are zero.

    >>> pack_bits(torch.tensor([[True, False, True], [True, False, False]])).tolist()
    [13]
    """
    flat = mask.detach().flatten().cpu()
    padded = torch.zeros(-(-flat.numel() // 8) * 8, dtype=torch.uint8, device="cpu")
    padded[: flat.numel()] = flat
    return (padded.view(-1, 8) * torch.tensor(_WEIGHTS, dtype=torch.uint8, device="cpu")).sum(1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, like: Tensor) -> Tensor:
    """The mask that was packed, with the shape and device of `like`."""
    flat = (bits.cpu()[:, None] & torch.tensor(_WEIGHTS, dtype=torch.uint8, device="cpu")).ne(0).flatten()
    return flat[: like.numel()].view(like.shape).to(like.device)
