"""Matrices of which only blocks that hold something are stored: column vectors N x 1, and blocks N x M.

Format. The rows of a matrix, in runs that stay together, are put in an order and cut into groups of N. Of each group
those blocks are stored, one *slot* each, that are not all zero, by ascending column; groups with more slots come first,
and for vectors of four rows and more a group's slots are filled up to a multiple of 16, the depth of a tensor core.
Example, vectors 2 x 1, rows in runs of 1:

        0  0  5  0         order     [1, 3, 0, 2]      row 1 and row 3 share their columns, 0 and 2 too
        1  0  0  2         values    [[1, 3], [2, 4], [5, 6]]
        0  0  6  0         columns   [0, 3, 2]
        3  0  0  4         pointers  [0, 2, 3]         group 0 has slots 0 and 1, group 1 has slot 2

With the order left alone both groups would need columns 0, 2 and 3: six slots instead of three.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from trisparse.sparse_ops.blocks.group_rows import group_rows
from trisparse.sparse_ops.checks import check_dtype

STEP = 16  # slots of vectors that tensor cores take at once
HEIGHTS = (1, 2, 4, 8, 16, 32)  # of vectors; 1 is single weights
LOWEST = 4  # height for which GPUs have kernels; lower vectors are for CPUs, and unpacked elsewhere
SIDES = (16, 32, 64, 128)  # of blocks
SCHEMA = (  # a `PackedBlocks` among an operator's arguments
    "Tensor values, Tensor columns, Tensor pointers, Tensor order, Tensor slots_t, Tensor groups_t,"
    " Tensor pointers_t, int rows, int cols, int run, int longest"
)


class PackedBlocks(NamedTuple):
    """A matrix `[rows, cols]` in blocks `n x m`; the module's docstring has the format and an example.

    Attributes:
        values: `[slots, n, m]`.
        columns: int16 or int32 `[slots]`, the block column of each slot, -1 where it only fills up.
        pointers: int32 `[groups + 1]`, where the slots of each group begin.
        order: int32 `[groups * n / run]`, stored run i holds the rows from `order[i] * run` on.
        slots_t: int32, slots by block column, for the product with the transpose; empty if there is none.
        groups_t: int32, the groups of these slots.
        pointers_t: int32 `[block columns + 1]`, where the slots of each block column begin in `slots_t`.
        rows: of the dense matrix.
        cols: of the dense matrix.
        run: how many rows stay together, a divisor of n.
        longest: slots of the longest group.
    """

    values: Tensor
    columns: Tensor
    pointers: Tensor
    order: Tensor
    slots_t: Tensor
    groups_t: Tensor
    pointers_t: Tensor
    rows: int
    cols: int
    run: int
    longest: int

    @property
    def block(self) -> tuple[int, int]:
        return self.values.shape[1], self.values.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(part.nbytes for part in self if isinstance(part, Tensor))

    def to(self, convert: Callable[[Tensor], Tensor]) -> PackedBlocks:
        """The same with every tensor converted."""
        parts: list[Any] = [convert(part) if isinstance(part, Tensor) else part for part in self]
        return PackedBlocks(*parts)


def step_of(block: tuple[int, int]) -> int:
    """Of what the slots of a group are a multiple."""
    return STEP if block[1] == 1 and block[0] >= LOWEST else 1


def check_block(block: tuple[int, int]) -> None:
    """Raise ValueError for a block that no kernel multiplies."""
    n, m = block
    if not ((m == 1 and n in HEIGHTS) or (n in SIDES and m in SIDES)):
        raise ValueError(f"block: want (n, 1) with n in {HEIGHTS}, or both sides in {SIDES}, got {tuple(block)}")


@torch.no_grad()
def pack_blocks(
    weight: Tensor, block: tuple[int, int], *, run: int | None = None, transposed: bool = False
) -> PackedBlocks:
    """Store those blocks of a matrix that are not all zero.

    Args:
        weight: `[rows, cols]`; sides that the block does not divide are padded with zeros.
        block: `(n, 1)` with n = 1, 2, 4, 8, 16, 32, or n and m from 16, 32, 64, 128.
        run: rows that stay together, a divisor of n; with fewer than n, runs of similar columns are grouped
            (`group_rows`), so that fewer blocks are stored. For vectors only; n unless given.
        transposed: index the slots by column too, for the gradient of the input.

    Raises:
        ValueError: a shape, block or run that does not fit.
        TypeError: a dtype that does not.
    """
    check_block(block)
    check_dtype("weight", weight)
    if weight.dim() != 2:
        raise ValueError(f"weight: want [rows, cols], got {list(weight.shape)}")
    n, m = block
    run = n if run is None else run
    if run < 1 or n % run or (run != n and m != 1):
        raise ValueError(f"run: want a divisor of {n}, for blocks {n} itself, got {run}")
    (rows, cols), device = weight.shape, weight.device
    runs = pad(weight.detach(), (0, -cols % m, 0, -rows % n)).unflatten(0, (-1, run))
    order = torch.arange(len(runs), device=device)
    if run != n:
        order = group_rows((runs != 0).any(1), n // run)
    kept = (_grouped(runs, order, n, m) != 0).flatten(2).any(-1)
    longest_first = kept.sum(1).argsort(descending=True, stable=True)
    kept, order = kept[longest_first], order.view(-1, n // run)[longest_first].flatten()
    lengths, step = kept.sum(1), step_of(block)
    pointers = pad(((lengths + step - 1) // step * step).cumsum(0), (1, 0))
    group, column = kept.nonzero(as_tuple=True)
    slot = pointers[group] + kept.cumsum(1)[group, column] - 1
    slots = int(pointers[-1])
    values = weight.new_zeros(slots, n, m)
    values[slot] = _grouped(runs, order, n, m)[group, column]
    narrow = torch.int16 if kept.shape[1] < 1 << 15 else torch.int32
    columns = torch.full((slots,), -1, dtype=narrow, device=device)
    columns[slot] = column.to(narrow)
    # three, not one: TorchScript refuses buffers that are the same
    none = tuple(order.new_empty(0, dtype=torch.int32) for _ in range(3))
    longest = int(pointers.diff().max()) if len(lengths) else 0
    starts, order = pointers.to(torch.int32), order.to(torch.int32)
    matrix = PackedBlocks(values, columns, starts, order, none[0], none[1], none[2], rows, cols, run, longest)
    return with_transpose(matrix) if transposed else matrix


def with_transpose(matrix: PackedBlocks) -> PackedBlocks:
    """The same matrix with its slots indexed by column too."""
    column = matrix.columns.long()
    slot = (column >= 0).nonzero().flatten()
    slot = slot[column[slot].argsort(stable=True)]
    count = column[slot].bincount(minlength=-(-matrix.cols // matrix.block[1]))
    index = slot, _groups_of(matrix, slot), pad(count.cumsum(0), (1, 0))
    slots_t, groups_t, pointers_t = (part.to(torch.int32) for part in index)
    return matrix._replace(slots_t=slots_t, groups_t=groups_t, pointers_t=pointers_t)


def _groups_of(matrix: PackedBlocks, slots: Tensor) -> Tensor:
    return torch.searchsorted(matrix.pointers.long(), slots, right=True) - 1


def _grouped(runs: Tensor, order: Tensor, n: int, m: int) -> Tensor:
    """Runs of rows in an order, as blocks `[groups, block columns, n, m]`."""
    count, _, wide = runs.shape
    return runs[order].view(count * runs.shape[1] // n, n, wide // m, m).transpose(1, 2)


def places(matrix: PackedBlocks) -> tuple[Tensor, Tensor]:
    """Rows `[slots, n, 1]` and columns `[slots, 1, m]` of what is stored; what fills up has rows or columns outside."""
    n, m = matrix.block
    device = matrix.values.device
    group = _groups_of(matrix, torch.arange(len(matrix.columns), device=device))
    i = torch.arange(n, device=device)
    row = matrix.order.long()[group[:, None] * (n // matrix.run) + i // matrix.run] * matrix.run + i % matrix.run
    column = matrix.columns.long()
    column = torch.where(column < 0, -(-matrix.cols // m), column)
    return row[:, :, None], (column[:, None] * m + torch.arange(m, device=device))[:, None, :]


def unpack_blocks(matrix: PackedBlocks) -> Tensor:
    """Dense `[rows, cols]`: values where they were, +0 elsewhere. Nothing waits for the device."""
    n, m = matrix.block
    high, wide = -(-matrix.rows // n) * n, -(-matrix.cols // m) * m
    row, column = places(matrix)
    dense = matrix.values.new_zeros(high * (wide + m))  # a last block column takes what fills up
    dense = dense.scatter(0, (row * (wide + m) + column).flatten(), matrix.values.flatten())
    return dense.view(high, wide + m)[: matrix.rows, : matrix.cols].contiguous()


def _are_columns(matrix: PackedBlocks, wide: int, step: int | None) -> bool:
    """Whether every group has ascending block columns, and then perhaps -1, which fills up to a multiple of `step`.

    Without a step, since the groups are not known, only whether they are columns at all.
    """
    columns = matrix.columns.long()
    if bool(((columns < (0 if step == 1 else -1)) | (columns >= wide)).any()):
        return False
    if step is None or len(columns) < 2:
        return True
    before, after = columns[:-1], columns[1:]
    rises = ((after > before) & (before >= 0)) | (after < 0)
    starts = matrix.pointers.long()
    rises[starts[(starts > 0) & (starts < len(columns))] - 1] = True  # another group's
    return bool(rises.all())


_INDEX_DTYPES = {"columns": (torch.int16, torch.int32), "pointers": (torch.int32,), "order": (torch.int32,)}


def check_blocks(matrix: PackedBlocks) -> None:
    """Raise ValueError for a matrix that a kernel must not read; waits for the device."""
    check_block(matrix.block)
    n, m = matrix.block
    groups, step = -(-matrix.rows // n), step_of(matrix.block)
    slots, wide = len(matrix.values), -(-matrix.cols // m)
    for name, dtypes in _INDEX_DTYPES.items():
        if (found := getattr(matrix, name).dtype) not in dtypes:
            raise ValueError(f"{name}: want {' or '.join(map(str, dtypes))}, got {found}")
    are_pointers = (
        matrix.pointers.shape == (groups + 1,)
        and int(matrix.pointers[0]) == 0
        and int(matrix.pointers[-1]) == slots
        and not bool((matrix.pointers.diff() < 0).any() | (matrix.pointers % step != 0).any())
    )
    wrong = {
        "run": matrix.run < 1 or n % matrix.run != 0 or (m > 1 and matrix.run != n),
        "columns": matrix.columns.shape != (slots,) or not _are_columns(matrix, wide, step if are_pointers else None),
        "pointers": not are_pointers,
        "longest": matrix.longest != (int(matrix.pointers.diff().max()) if groups else 0),
    }
    runs = groups * n // max(matrix.run, 1)
    wrong["order"] = matrix.order.shape != (runs,) or not torch.equal(
        matrix.order.long().sort().values, torch.arange(runs, device=matrix.order.device)
    )
    bad = [name for name, is_wrong in wrong.items() if is_wrong]
    if bad:
        raise ValueError(f"{', '.join(bad)}: does not fit a matrix [{matrix.rows}, {matrix.cols}] in blocks {n} x {m}")
