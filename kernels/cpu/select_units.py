"""Launches `select_units.cpp`."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trisparse.kernels.cpu.launch import function_of, structure

SHIFT = 18  # below the leading bits of a key, which are its bin: sign, exponent and 5 of the mantissa
BINS = 1 << (32 - SHIFT)
_Layer = structure("Units", ("scores", "mask"), ("count", "place", "prune"))


def fits(scores: Sequence[Tensor], masks: Sequence[Tensor]) -> bool:
    """Whether there is a kernel, and all lies in one piece on a CPU, the scores in fp32."""
    return (
        function_of("count_units") is not None
        and all(s.dtype == torch.float32 and s.is_cpu and s.is_contiguous() and not s.is_neg() for s in scores)
        and all(mask.is_cpu and mask.is_contiguous() for mask in masks)
    )


class CompiledUnits:
    """Units of layers that `fits`, read and pruned where they lie.

    Attributes:
        histogram: int64 `[layers, BINS]`, how many keys are in each bin; the first has those that are gone.
    """

    def __init__(self, scores: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        self._scores, self._masks = scores, masks
        self._known, self._places = torch.tensor([-1], dtype=torch.int32, device="cpu"), [0] * len(scores)
        self.histogram = torch.empty(len(scores), BINS, dtype=torch.int64, device="cpu")
        self._call("count_units", self.histogram, None)

    def collect(self, first: int, last: int) -> list[Tensor]:
        """Keys of each layer in these bins, both included, in the order of their units."""
        counts = self.histogram[:, first : last + 1].sum(1).tolist()
        known = torch.empty(1 + sum(counts), dtype=torch.int32, device="cpu")
        places = [0, *itertools.accumulate(counts)][:-1]
        self._call("collect_units", known[1:], torch.tensor([first, last], device="cpu"), places)
        if first == last:  # where most layers end, so that `prune` need not look for them again
            known[0], self._known, self._places = first, known, places
        return list(known[1:].split(counts))

    def prune(self, counts: Sequence[int]) -> None:
        """Write masks so that so many units of each layer are gone, the lowest; what is gone stays so."""
        self._call("prune_units", self.histogram, self._known, self._places, counts)

    def _call(
        self, name: str, tensor: Tensor, other: Tensor | None, places: Sequence[int] = (), prune: Sequence[int] = ()
    ) -> None:
        function: Any = function_of(name)
        none = [0] * len(self._scores)
        rows = [
            (score.data_ptr(), mask.data_ptr(), score.numel(), place, count)
            for score, mask, place, count in zip(self._scores, self._masks, places or none, prune or none, strict=True)
        ]
        layers = (_Layer * len(rows))(*rows)
        address = 0 if other is None else other.data_ptr()
        function(ctypes.addressof(layers), tensor.data_ptr(), address, len(rows), torch.get_num_threads())
