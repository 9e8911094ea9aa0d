"""Examples as tokens, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from trisparse.prune.data.arguments import DataArguments
from trisparse.prune.data.rows import Example
from trisparse.prune.data.tasks import Task


def tokenize(examples: Sequence[Example], task: Task, tokenizer: Any, max_length: int) -> list[Example]:
    """Token features of each example, with `labels` and its `index`."""
    texts = [[example[c] for example in examples] for c in task.columns]
    encoded = tokenizer(*texts, truncation=True, max_length=max_length)
    return [
        {**{k: v[i] for k, v in encoded.items()}, "labels": example["label"], "index": i}
        for i, example in enumerate(examples)
    ]


class EpochSampler(Sampler[int]):
    """A shuffle that depends on seed and epoch alone, so that a resumed run sees the same batches."""

    def __init__(self, lengths: Sequence[int], seed: int, batch_size: int, group_by_length: bool) -> None:
        self.lengths = list(lengths)
        self.seed = seed
        self.batch_size = batch_size
        self.group_by_length = group_by_length
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.group_by_length:
            from transformers.trainer_pt_utils import get_length_grouped_indices

            return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))
        return iter(torch.randperm(len(self.lengths), generator=generator, device="cpu").tolist())


def make_loader(
    features: Sequence[Example],
    tokenizer: Any,
    data: DataArguments,
    batch_size: int,
    sampler: EpochSampler | None = None,
    multiple: int | None = None,
) -> DataLoader:
    """Batches of padded tensors, with the examples' `index`; `multiple` of tokens to pad to.

    On a GPU a process of its own pads the next batches meanwhile, in memory that the GPU can copy from by itself.
    """
    from transformers import DataCollatorWithPadding

    padding = "max_length" if data.pad_to_max_length else "longest"
    collate = DataCollatorWithPadding(
        tokenizer, padding=padding, max_length=data.max_length, pad_to_multiple_of=multiple
    )
    # a loader draws a seed whenever it starts; from a generator of its own, so that dropout is not moved on by it
    own = torch.Generator()
    ahead: dict[str, Any] = {}
    if torch.cuda.is_available():
        ahead = {"num_workers": 1, "persistent_workers": True, "prefetch_factor": 8, "pin_memory": True}
    return DataLoader(features, batch_size, sampler=sampler, collate_fn=collate, generator=own, **ahead)  # type: ignore
