"""What an operator need do only once for one list of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class _Known(NamedTuple):
    """Addresses and forms of each list of operands, their dtypes, and the tables made for them."""

    addresses: list[list[int]]
    forms: list[list]
    dtypes: list[torch.dtype | None]
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
        self,
        op: str,
        make: Callable[[list[Tensor] | None, list[list[int]]], list[Tensor]],
        *operands: Sequence[Tensor | None],
    ) -> list[Tensor]:
        """The operator's tables for these operands; none where plain torch runs.

        Args:
            op: name of the operator.
            make: builds the tables, or writes new addresses into those it is given; gets the addresses of all operands.
            operands: what the tables point at.
        """
        every = [t for tensors in operands for t in tensors]
        first = next((t for t in every if t is not None), None)
        if first is None or not self._is_for_kernels(first.device):
            return []
        addresses = [[0 if t is None else t.data_ptr() for t in tensors] for tensors in operands]
        dtypes = [None if t is None else t.dtype for t in every]
        known = self._known.get(op)
        if known is None or addresses != known.addresses or dtypes != known.dtypes:
            forms = self._forms(known, operands, addresses)
            same = known is not None and forms == known.forms and dtypes == known.dtypes
            known = _Known(addresses, forms, dtypes, make(known.tables if known and same else None, addresses))
            if _is_capturing(first.device):  # the copy to the device runs only when the graph does
                self._captured.append(known.tables)
                return known.tables
            self._known[op] = known
        if _is_capturing(first.device) and not any(known.tables is kept for kept in self._captured):
            self._captured.append(known.tables)
        return known.tables

    @staticmethod
    def _forms(
        known: _Known | None, operands: Sequence[Sequence[Tensor | None]], addresses: list[list[int]]
    ) -> list[list]:
        """Shapes and strides; of a list that lies where it lay they are what they were."""
        forms = []
        for i, (tensors, now) in enumerate(zip(operands, addresses, strict=True)):
            stays = known is not None and i < len(known.addresses) and now == known.addresses[i]
            forms.append(
                known.forms[i] if known and stays else [None if t is None else (t.shape, t.stride()) for t in tensors]
            )
        return forms

    def _is_for_kernels(self, device: torch.device) -> bool:
        return device.type == "cuda"


def _is_capturing(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()
