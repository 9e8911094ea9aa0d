"""What is zero in any model, and which pattern its zeros have."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trisparse.prune.deploy.compress import PACKED, decompress
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.census import count_parameters, unprunable_notes
from trisparse.prune.layers.modules import find_head, unwrap
from trisparse.prune.layers.shards import is_sharded
from trisparse.prune.layers.weights import named_weights
from trisparse.prune.pruner.report import SparsityReport
from trisparse.prune.pruner.report_table import LayerRow

_HEIGHTS = (64, 32, 16, 8, 4, 2)  # of blocks, the highest that all zeros lie in is taken
_NM = ((1, 4), (2, 8), (1, 2), (2, 4), (4, 8))  # the sparsest, and of these the one with the smallest groups, is taken


@torch.no_grad()
def report(model: nn.Module) -> SparsityReport:
    """Zeros of every weight that can be pruned, counted, with the pattern that they show.

    Args:
        model: any; of one that was compressed, the dense weights that its layers stand for are looked at, in a copy.

    Returns:
        A report as `Pruner.report` gives. `pattern_verified` and `complete` are None: nobody says what they were to be.

    Raises:
        PruningError: no model, one without such weights, or one whose weights are spread over processes.
    """
    bare = unwrap(model)
    if packed := sum(isinstance(module, PACKED) for module in bare.modules()):
        bare = decompress(copy.deepcopy(bare))
    rows, seen = [], set()
    for weight in named_weights(bare):
        if weight.tensor is None or (id(weight.tensor), weight.part) in seen:
            continue
        if is_sharded(weight.tensor):
            raise PruningError(f"{weight.name}: is spread over processes; pruner.report() counts there")
        seen.add((id(weight.tensor), weight.part))
        tensor = weight.tensor if weight.part is None else weight.tensor[weight.part]
        matrix = _matrix(tensor.detach(), weight.layout)
        zeros = int((tensor == 0).sum())
        rows.append(LayerRow(weight.name, pattern_of(matrix), tuple(tensor.shape), tensor.numel(), zeros, 0, True))
    if not any(row.weights for row in rows):
        raise PruningError("model: has no weight that can be pruned")
    matmul_zeros, matmul, all_zeros, everything = count_parameters(bare)
    pruned = [row for row in rows if row.zeros] or rows
    head = find_head(bare)
    return SparsityReport(
        layers=tuple(rows),
        pruned_layers=sum(row.zeros for row in pruned) / sum(row.weights for row in pruned),
        matmul_gemm_conv=matmul_zeros / matmul,
        all_parameters=all_zeros / everything,
        pattern_verified=None,
        complete=None,
        head=head[0] if head and not any(row.zeros and row.name == head[0] for row in rows) else None,
        notes=(*([f"compressed: {packed} layers are packed"] if packed else []), *unprunable_notes(bare)),
    )


def _matrix(weight: Tensor, layout: str) -> Tensor:
    """`[out, in]`, of a convolution `[out, taps · in]` with the inputs fastest."""
    if layout.startswith("conv"):
        taps = weight.flatten(2)
        return (taps.permute(0, 2, 1) if layout == "conv" else taps.permute(1, 2, 0)).flatten(1)
    return weight.t() if layout == "transposed" else weight


def pattern_of(matrix: Tensor) -> str:
    """The coarsest pattern whose units all zeros of `[out, in]` lie in: `1x1` for single ones, `dense` without any."""
    zero = matrix == 0
    count = int(zero.sum())
    rows, cols = matrix.shape
    if not count:
        return "dense"
    if int(zero.all(1).sum()) * cols == count:
        return "1xchannel"
    if int(zero.all(0).sum()) * rows == count:
        return "channelx1"
    for n in _HEIGHTS:
        for m in (n, 1) if n > 2 else (1,):
            if rows % n == 0 and cols % m == 0:
                units = zero.view(rows // n, n, cols // m, m).all(3).all(1)
                if int(units.sum()) * n * m == count:
                    return f"{n}x{m}"
    for n, m in _NM:
        if cols % m == 0 and int((~zero).view(rows, cols // m, m).sum(2).max()) <= n:
            return f"{n}:{m}"
    return "1x1"
