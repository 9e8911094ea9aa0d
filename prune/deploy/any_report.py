"""What is zero in any model, and which pattern its zeros have."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trisparse.prune.deploy.compress import PACKED, decompress
from trisparse.prune.deploy.zero_pattern import BY_CHANCE, pattern_of
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.census import count_parameters, unprunable_notes
from trisparse.prune.layers.foreign import foreign_weight
from trisparse.prune.layers.left_out import listed
from trisparse.prune.layers.modules import bare_modules, find_head, unwrap
from trisparse.prune.layers.shards import is_sharded
from trisparse.prune.layers.weights import named_weights
from trisparse.prune.pruner.report import SparsityReport
from trisparse.prune.pruner.report_table import LayerRow


@torch.no_grad()
def report(model: nn.Module) -> SparsityReport:
    """Zeros of every weight that can be pruned, counted, with the pattern that they show.

    Args:
        model: any; of one that was compressed, the dense weights that its layers stand for are looked at, in a copy.

    Returns:
        A report as `Pruner.report` gives. A pattern is what all zeros but a hundredth lie in; `extra_zeros` are the
        others, and layers with fewer than a hundredth of zeros are dense. `pattern_verified` and `complete` are None:
        nobody says what they were to be.

    Raises:
        PruningError: no model, one without such weights, or one whose weights are spread over processes or hold no
            numbers.
    """
    bare = unwrap(model)
    if packed := sum(isinstance(module, PACKED) for module in bare.modules()):
        bare = decompress(copy.deepcopy(bare))
    foreign = {name: reason for name, module in bare_modules(bare) if (reason := foreign_weight(module))}
    rows, seen = [], set()
    computed = [0, 0]  # zeros and numbers of weights that are no parameters
    for weight in named_weights(bare):
        tensor = getattr(weight.module, weight.parameter, None)  # a parametrized one is computed
        if not isinstance(tensor, Tensor) or weight.name in foreign:
            continue
        if is_sharded(tensor):
            raise PruningError(f"{weight.name}: is spread over processes; pruner.report() counts there")
        if isinstance(tensor, nn.parameter.UninitializedParameter) or tensor.is_meta:
            raise PruningError(f"{weight.name}: its weight holds no numbers (uninitialized, or on the meta device)")
        place = id(weight.module if weight.tensor is None else weight.tensor), weight.part
        if tensor.numel() == 0 or place in seen:
            continue
        seen.add(place)
        row = _row(weight.name, tensor.detach() if weight.part is None else tensor[weight.part], weight.layout)
        rows.append(row)
        if weight.tensor is None:
            computed = [computed[0] + row.zeros, computed[1] + row.weights]
    if not rows:
        why = next((f"{name} {reason}" for name, reason in foreign.items()), "nothing in it multiplies")
        raise PruningError(f"model: has no weight whose zeros can be counted: {why}")
    matmul_zeros, matmul, all_zeros, everything = count_parameters(bare)
    sparse = [row for row in rows if row.pattern != "dense"]
    pruned, head = sparse or rows, find_head(bare)
    notes = [f"compressed: {packed} layers are packed"] if packed else []
    if not computed[1]:  # else what they are computed from would be called dense
        notes += unprunable_notes(bare)
    notes += [f"not counted: {listed(list(foreign))}, which {next(iter(foreign.values()))}"] if foreign else []
    return SparsityReport(
        layers=tuple(rows),
        pruned_layers=sum(row.zeros for row in pruned) / sum(row.weights for row in pruned),
        matmul_gemm_conv=(matmul_zeros + computed[0]) / (matmul + computed[1]),
        all_parameters=all_zeros / everything,
        pattern_verified=None,
        complete=None,
        head=head[0] if head and head[0] not in [row.name for row in sparse] else None,
        notes=tuple(notes),
    )


def _row(name: str, tensor: Tensor, layout: str) -> LayerRow:
    view = _view(tensor, layout)
    zeros = int((tensor == 0).sum())
    pattern, inside = pattern_of(view) if zeros >= BY_CHANCE * tensor.numel() else ("dense", 0)
    return LayerRow(name or "model", pattern, tuple(tensor.shape), tensor.numel(), zeros, zeros - inside, True)


def _view(weight: Tensor, layout: str) -> Tensor:
    """`[out, taps, in]`; a linear layer has one tap."""
    if layout.startswith("conv"):
        taps = weight.flatten(2)
        return taps.permute(0, 2, 1) if layout == "conv" else taps.permute(1, 2, 0)
    return (weight.t() if layout == "transposed" else weight).unsqueeze(1)
