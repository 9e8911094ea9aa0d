"""Gradients of embeddings without a new table for every step.

torch's gradient of an embedding is as large as its table, allocated and cleared anew for every step, of which a batch
writes a few hundred rows. On a CPU the fresh pages of BERT's 47 MB cost a tenth of a step once products are sparse.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

_LARGE = 2**22  # bytes; from 2**25 on glibc gives freed memory back, and every page of the next table is a fresh one


@contextlib.contextmanager
def kept_embedding_gradients(model: nn.Module) -> Iterator[None]:
    """While it is open, large embeddings of `model` write their gradient into one dense table, made once.

    A backward pass clears the rows that the last one wrote, and no others. Whoever reads `weight.grad` between backward
    and step finds torch's own gradient, bit for bit where one pass made it; the next pass writes over it.
    """
    found = [m for m in model.modules() if isinstance(m, nn.Embedding) and _is_large(m)]
    handles = [weight.register_post_accumulate_grad_hook(_Table()) for weight in {m.weight for m in found}]
    for module in found:
        module.sparse = True
    try:
        yield
    finally:
        for module in found:
            module.sparse = False
        for handle in handles:
            handle.remove()


def _is_large(module: nn.Embedding) -> bool:
    weight = module.weight
    is_plain = not (module.sparse or module.scale_grad_by_freq)  # torch has no sparse gradient by frequency
    return is_plain and weight.requires_grad and weight.device.type == "cpu" and weight.nbytes >= _LARGE


class _Table:
    """Puts the sparse gradient of one weight into a dense table that outlives the step."""

    def __init__(self) -> None:
        self.dense: torch.Tensor | None = None
        self.rows: torch.Tensor | None = None  # that were written; None: any

    @torch.no_grad()
    def __call__(self, weight: torch.Tensor) -> None:
        gradient = weight.grad
        assert gradient is not None
        if not gradient.is_sparse:  # a second backward added to the table, or the weight is a linear layer's too
            self.rows = None
            return
        if self.dense is None:
            self.dense = torch.zeros_like(weight)
        elif self.rows is None:
            self.dense.zero_()
        else:
            self.dense.index_fill_(0, self.rows, 0.0)
        self.rows = gradient._indices()[0]
        weight.grad = self.dense.index_add_(0, self.rows, gradient._values())
