"""What an operator need do only once for one list of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Plan:
    """Device tables of one list of layers, one for each operator that is called with it.

    Pass the same plan with the same layers, shapes and dtypes: arguments are checked once and tables built
    once. Addresses are written anew when a storage has moved, as gradients do. Tables that a CUDA graph was
    captured with live as long as the plan.
    """

    def __init__(self) -> None:
        self._tables: dict[str, tuple[tuple[int, ...], list[Tensor]]] = {}
        self._captured: list[list[Tensor]] = []
        self._checked: set[str] = set()

    def is_checked(self, op: str) -> bool:
        """Whether this operator's arguments were checked before; from now on they were."""
        if op in self._checked:
            return True
        self._checked.add(op)
        return False

    def tables(
        self, op: str, make: Callable[[list[Tensor] | None], list[Tensor]], *operands: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """The operator's tables for operands at these addresses; none on the CPU.

        Args:
            op: name of the operator.
            make: builds the tables, or writes new addresses into those it is given.
            operands: what the tables point at.
        """
        first = next((t for tensors in operands for t in tensors if t is not None), None)
        if first is None or first.device.type == "cpu":
            return []
        addresses = tuple(0 if t is None else t.data_ptr() for tensors in operands for t in tensors)
        before, tables = self._tables.get(op, ((), None))
        if tables is None or addresses != before:
            tables = make(tables)
            self._tables[op] = addresses, tables
        if torch.cuda.is_current_stream_capturing() and not any(tables is kept for kept in self._captured):
            self._captured.append(tables)
        return tables
