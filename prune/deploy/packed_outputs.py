"""Whether a model gives the same once its layers are packed, and what is undone where it does not."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from trisparse.prune.channels.same_outputs import difference, outputs_of
from trisparse.prune.costs.fold_activations import fold_activations, unfold_activations
from trisparse.prune.deploy.compression_report import CompressionReport
from trisparse.prune.deploy.formats import matrix_of, unpack_layer
from trisparse.prune.errors import one_line
from trisparse.prune.layers.modules import replace_module


def outputs_before(model: nn.Module, example: Any, report: CompressionReport) -> list[Tensor]:
    """What the model gives on the example; nothing where it can't be run, which the report says."""
    try:
        return outputs_of(model, example)
    except Exception as error:  # whatever a forward raises that wants other inputs
        report.add_note(f"outputs not compared: example: the model does not run on it ({one_line(error)})")
        return []


def _trouble(model: nn.Module, before: list[Tensor], example: Any) -> str:
    """What is different about the model's outputs, or an empty string."""
    try:
        return difference(before, outputs_of(model, example))
    except Exception as error:  # whatever a forward raises that wants its own layers
        return one_line(error)


def keep_if_equal(model: nn.Module, before: list[Tensor], example: Any, report: CompressionReport) -> bool:
    """Unpack all layers again if outputs changed."""
    trouble = _trouble(model, before, example)
    report.verified = True
    if not trouble:
        return True
    report.add_note(f"no layer is packed: the model does not do the same with packed layers ({trouble})")
    for row in report.layers:
        if row.format != "dense":
            dense = unpack_layer(model.get_submodule(row.name), full=False)
            replace_module(model, row.name, dense)
            row.format, row.bytes_after = "dense", matrix_of(dense).nbytes
            row.measured, row.expected, row.reason = {}, {}, "packed, the model's outputs change"
    return False


def fold_if_equal(model: nn.Module, before: list[Tensor], example: Any, report: CompressionReport) -> None:
    """Let packed layers apply what follows them, unless outputs change."""
    folded = set(fold_activations(model))
    if folded and (trouble := _trouble(model, before, example)):
        unfold_activations(model)
        report.add_note(f"activations stay modules of their own: folded into products, {trouble}")
        return
    for row in report.layers:
        if row.name in folded:
            row.reason += f"; applies the {cast(Any, model.get_submodule(row.name)).activation} that follows"
