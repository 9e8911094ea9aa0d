"""What an operator need do only once for one list of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class _Known(NamedTuple):
    addresses: tuple[int, ...]
    forms: tuple
    tables: list[Tensor]


class Plan:
    """Checks made and device tables built for one list of layers, for each operator that is called with it.

    Pass the same plan only with the same layers, blocks and settings: then arguments are checked once. Tables
    follow the operands: where storages have moved, as gradients do, addresses are written anew, and where a
    shape, stride or dtype changed everything is. Tables that a CUDA graph was captured with live as long as
    the plan.
    """

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._captured: list[list[Tensor]] = []
        self._checked: set[str] = set()

    def check(self, op: str, check: Callable[[], None]) -> None:
        """Check this operator's arguments, unless they have passed before."""
        if op not in self._checked:
            check()
            self._checked.add(op)

    def tables(
        self, op: str, make: Callable[[list[Tensor] | None], list[Tensor]], *operands: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """The operator's tables for these operands; none where plain torch runs.

        Args:
            op: name of the operator.
            make: builds the tables, or writes new addresses into those it is given.
            operands: what the tables point at.
        """
        every = [t for tensors in operands for t in tensors]
        first = next((t for t in every if t is not None), None)
        if first is None or not self._is_for_kernels(first.device):
            return []
        addresses = tuple(0 if t is None else t.data_ptr() for t in every)
        known = self._known.get(op)
        if known is None or addresses != known.addresses or _forms(every) != known.forms:
            forms = _forms(every)
            same = known is not None and forms == known.forms
            known = _Known(addresses, forms, make(known.tables if known and same else None))
            if _is_capturing(first.device):  # the copy to the device runs only when the graph does
                self._captured.append(known.tables)
                return known.tables
            self._known[op] = known
        if _is_capturing(first.device) and not any(known.tables is kept for kept in self._captured):
            self._captured.append(known.tables)
        return known.tables

    def _is_for_kernels(self, device: torch.device) -> bool:
        return device.type == "cuda"


def _forms(every: Sequence[Tensor | None]) -> tuple:
    return tuple(None if t is None else (t.dtype, t.shape, t.stride()) for t in every)


def _is_capturing(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()
