"""Export to ONNX: packed layers as dense ones with their zeros, without the channels that were removed."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.prune.channels.same_outputs import check_example, own_example
from trisparse.prune.deploy.formats import unpack_layer
from trisparse.prune.deploy.layer_spec import is_packed, spec_of
from trisparse.prune.errors import PruningError, one_line
from trisparse.prune.layers.modules import replace_module, unwrap

ONNX = "model.onnx"


@torch.no_grad()
def write_onnx(model: nn.Module, folder: Path, example: Any = None) -> None:
    """Write `model.onnx` into a folder; the model stays as it is.

    The first two dimensions of inputs of two and more, texts and tokens, are free.

    Args:
        model: compressed or not.
        folder: where.
        example: inputs, keywords or positions; a transformers model of text has its own.

    Raises:
        PruningError: onnx or onnxscript is not installed, there is no example, or torch can't export the model.
    """
    check_packages()
    check_example(example)
    bare: Any = unwrap(model)
    example = own_example(bare) if example is None else example
    if example is None:
        raise PruningError(
            f"example: want inputs of the model to export it by; a {type(bare).__name__} has none itself"
        )
    dense = copy.deepcopy(bare).eval()
    for name, layer in list(dense.named_modules()):
        spec = spec_of(layer)
        if spec is not None and is_packed(spec):
            replace_module(dense, name, unpack_layer(layer, full=False))
    if hasattr(getattr(dense, "config", None), "return_dict"):
        dense.config.return_dict = True
    args, kwargs = ((), dict(example)) if isinstance(example, Mapping) else (tuple(example), {})
    free = {name: _free(value) for name, value in kwargs.items()} if kwargs else tuple(map(_free, args))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own making
            program = torch.onnx.export(
                dense, args, kwargs=kwargs, dynamo=True, dynamic_shapes=free, verbose=False, optimize=True
            )
        assert program is not None
        program.save(folder / ONNX)
    except Exception as error:
        raise PruningError(f"format: torch can't export a {type(bare).__name__} to onnx: {one_line(error)}") from error


def check_packages() -> None:
    """PruningError unless torch's exporter is there."""
    if lacking := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise PruningError(f"format: onnx needs {' and '.join(lacking)}; pip install 'trisparse[onnx]'")


def _free(value: Any) -> dict[int, Any] | None:
    """Which dimensions of an input are free: not those of one, which torch takes for fixed."""
    if not isinstance(value, Tensor) or value.dim() < 2:
        return None
    return {dim: torch.export.Dim.DYNAMIC for dim in range(2) if value.shape[dim] > 1}
