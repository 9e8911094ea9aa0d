"""Weights that are spread over processes: which rows this one holds, and the few things that processes exchange.

FSDP2 cuts a weight along one of its axes into pieces of ceil(rows / processes) rows. Pruning wants whole units in a
piece, so that axis has to be the rows of the pattern's unit view, and the pieces a multiple of the unit's height.
Everything here works alike on whole weights, where there is nothing to exchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trisparse.prune.errors import PruningError
from trisparse.sparse_ops.choosing.select_sharded import concat_ranks


@dataclass(frozen=True)
class Rows:
    """The rows `[first, first + count)` of `total` that this process holds, `chunk` on every rank but the last.

    `group` is None for a whole weight; `replicas` are the processes that hold the same rows, None if there are none.
    """

    first: int
    count: int
    total: int
    chunk: int
    group: Any = None
    replicas: Any = None

    def of_units(self, height: int) -> Rows:
        """The same for units of so many rows each."""
        sizes = (self.first // height, self.count // height, self.total // height, -(-self.chunk // height))
        return Rows(*sizes, self.group, self.replicas)

    def of(self, whole: Tensor) -> Tensor:
        """This process's rows of a tensor that has all of them."""
        return whole[self.first : self.first + self.count]

    def misfit(self, height: int) -> str | None:
        """Why units of this height are not whole on every process, or None."""
        if self.chunk % height and self.chunk < self.total:
            return f"{self.chunk} output rows on a process are no multiple of {height}"
        return None


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor; torch.distributed need not be there."""
    return hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same storage."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def spread_like(mine: Tensor, weight: Tensor) -> Tensor:
    """A DTensor of what each process holds, if the weight is one, else the tensor."""
    if not is_sharded(weight):
        return mine
    from torch.distributed.tensor import DTensor

    mesh, placements = weight.device_mesh, weight.placements  # type: ignore[attr-defined]
    return DTensor.from_local(mine, mesh, placements, shape=weight.shape, stride=weight.stride())


def rows_of(name: str, weight: Tensor, axis: int) -> Rows:
    """How a weight is spread over processes along the axis of its rows.

    Raises:
        PruningError: it is cut along another axis, or along two.
    """
    total = weight.shape[axis]
    if not is_sharded(weight):
        return Rows(0, total, total, total)
    from torch.distributed.tensor import Replicate, Shard

    mesh, placements = weight.device_mesh, weight.placements  # type: ignore[attr-defined]
    cuts = [i for i, placement in enumerate(placements) if not isinstance(placement, Replicate)]
    replicated = [i for i in range(len(placements)) if i not in cuts]
    if len(cuts) > 1 or any(type(placements[i]) is not Shard or placements[i].dim != axis for i in cuts):
        raise PruningError(
            f"{name}: its weight is spread over processes as {placements}; its units are whole only if dimension "
            f"{axis} alone is cut: give fully_shard a shard_placement_fn that returns Shard({axis}), or add the layer "
            "to excluded_op_names"
        )
    replicas = mesh.get_group(replicated[0]) if replicated else None
    if not cuts:
        return Rows(0, total, total, total, None, replicas)
    group = mesh.get_group(cuts[0])
    chunk = -(-total // group.size())
    first = min(group.rank() * chunk, total)
    return Rows(first, min(first + chunk, total) - first, total, chunk, group, replicas)


def data_parallel_group(model: nn.Module) -> Any:
    """The processes that train copies of the model under DistributedDataParallel, or None."""
    for module in model.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            return module.process_group
    return None


def reshard(model: nn.Module) -> None:
    """Put sharded parameters back in their modules; FSDP2 leaves whole ones there after an evaluation."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def check_wrappers(model: nn.Module) -> None:
    """Raise PruningError for a model in FSDP1's wrapper, which has no weights of its layers but one flat tensor."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    from torch.distributed.fsdp import FullyShardedDataParallel

    for name, module in model.named_modules():
        if isinstance(module, FullyShardedDataParallel):
            raise PruningError(
                f"{name or 'model'}: is wrapped in FullyShardedDataParallel, which flattens weights; shard it by "
                "torch's fully_shard instead"
            )


def count_zeros(tensor: Tensor) -> int:
    """Zeros in a tensor, over all processes that hold a part of it."""
    mine = local(tensor)
    if "float8" in str(mine.dtype):  # which torch can't count
        mine = mine.to(torch.float16)
    zeros = mine.numel() - int(torch.count_nonzero(mine))
    if is_sharded(tensor):
        from torch.distributed.tensor import Replicate

        for i, placement in enumerate(tensor.placements):  # type: ignore[attr-defined]
            if not isinstance(placement, Replicate):
                (zeros,) = Exchange(tensor.device_mesh.get_group(i)).sum([zeros])  # type: ignore[attr-defined]
    return zeros


class Exchange:
    """What the processes of one group tell each other; without a group, each call gives back what it got."""

    def __init__(self, group: Any) -> None:
        self.group = group

    def sum(self, numbers: Sequence[int]) -> list[int]:
        """Sums over all processes."""
        if self.group is None:
            return list(numbers)
        total = torch.tensor(list(numbers), device=_device(self.group))
        dist.all_reduce(total, group=self.group)
        return total.tolist()

    def any(self, flags: Tensor) -> Tensor:
        """Which flags are set on some process: bool, in place."""
        if self.group is not None:
            numbers = flags.to(torch.uint8)
            dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self.group)
            flags.copy_(numbers)
        return flags

    def finite(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """None in place of each gradient that is infinite or NaN somewhere on some process."""
        present = [grad for grad in grads if grad is not None]
        if self.group is None or not present:
            return list(grads)
        broken = self.any(torch.stack([~grad.isfinite().all() for grad in present])).tolist()
        verdicts = iter(broken)
        return [None if grad is None or next(verdicts) else grad for grad in grads]

    def agree(self, number: int) -> bool:
        """Whether all processes have the same number, of 63 bits."""
        if self.group is None:
            return True
        pair = torch.tensor([number, -number], device=_device(self.group))
        dist.all_reduce(pair, dist.ReduceOp.MAX, group=self.group)
        return pair.tolist() == [number, -number]

    def concat(self, mine: Tensor) -> Tensor:
        """What all processes have, one after the other: `[n]` each, of any n, to one `[sum of n]`."""
        return mine if self.group is None else concat_ranks(mine, self.group)

    def all_rows(self, mine: Tensor, rows: Rows) -> Tensor:
        """All rows of a tensor `[rows.count, ...]`, of which each process holds its own."""
        return self.concat(mine.flatten()).view(rows.total, *mine.shape[1:])


def _device(group: Any) -> torch.device:
    """Where the group's backend sums numbers."""
    return torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")
