"""What the frozen teacher says of every training example, kept so that it runs once and not once an epoch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from torch import Tensor


class TeacherCache:
    """Hidden states of all examples one after the other, without padding, if there are any, and their logits.

    They lie on the device, where a batch is gathered without a wait for it; or, if they would take more than `limit`
    bytes, in a memory-mapped file that vanishes with the process.

    Args:
        lengths: tokens of each example, without padding.
        device: of the batches.
        folder: where the file would be made.
        limit: bytes; default half of what is free on the device, shared among the processes on a CPU.

    Attributes:
        hidden: `[tokens of all examples, hidden]`, once something was put.
        logits: `[examples, classes]`.
    """

    def __init__(
        self, lengths: Sequence[int], device: torch.device, folder: Path | None = None, limit: int | None = None
    ) -> None:
        self.device = device
        self._tokens = sum(lengths)
        counts = torch.tensor(lengths, dtype=torch.int64, device="cpu")
        self._starts = (counts.cumsum(0) - counts).to(device)
        self._folder = folder
        self._limit = free_bytes(device) // 2 if limit is None else limit
        self.hidden: Tensor | None = None
        self.logits: Tensor | None = None

    @property
    def is_on_disk(self) -> bool:
        return self.hidden is not None and self._bytes(self.hidden) > self._limit

    def put(self, index: Tensor, mask: Tensor, hidden: Tensor | None, logits: Tensor) -> None:
        """Keep the outputs of a batch.

        Args:
            index: int64 `[batch]`, which examples these are.
            mask: bool `[batch, tokens]`, False on padding.
            hidden: `[batch, tokens, hidden]`, or None for all batches.
            logits: `[batch, classes]`.
        """
        if self.logits is None:
            self.logits = logits.new_zeros(len(self._starts), logits.shape[1])
        self.logits[index] = logits
        if hidden is None:
            return
        if self.hidden is None:
            self.hidden = self._storage(hidden)
        self.hidden[self._places(index, mask)[mask].to(self.hidden.device)] = hidden[mask].to(self.hidden.device)

    def get(self, index: Tensor, mask: Tensor) -> tuple[Tensor | None, Tensor]:
        """Hidden states `[batch, tokens, hidden]`, zero on padding, if there are any, and logits `[batch, classes]`."""
        assert self.logits is not None
        if self.hidden is None:
            return None, self.logits[index]
        places = self._places(index, mask).clamp_(min=0).to(self.hidden.device)
        return self.hidden[places].to(self.device) * mask[..., None], self.logits[index]

    def _places(self, index: Tensor, mask: Tensor) -> Tensor:
        """Row of `hidden` for each token of a batch, on whichever side its padding is."""
        return self._starts[index][:, None] + mask.cumsum(1) - 1

    def _bytes(self, hidden: Tensor) -> int:
        return self._tokens * hidden.shape[-1] * hidden.element_size()

    def _storage(self, like: Tensor) -> Tensor:
        shape = (self._tokens, like.shape[-1])
        if self._bytes(like) <= self._limit:
            return like.new_zeros(shape)
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".teacher") as file:
            # a mapped file lives on without its name, so that nothing is left behind however the run ends
            flat = torch.from_file(file.name, shared=True, size=shape[0] * shape[1], dtype=like.dtype)
        return flat.view(shape)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device; on a CPU, this process's share of it, for each has a cache of its own."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
