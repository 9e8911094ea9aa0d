"""Export a compressed model to formats that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.prune.deploy.checkpoint import check_shard_size, transformers_model
from trisparse.prune.deploy.formats import unpack_layer
from trisparse.prune.deploy.layer_spec import check_config, spec_of
from trisparse.prune.deploy.replaced_folder import replaced_folder
from trisparse.prune.errors import PruningError

FORMATS = ("dense", "sparse-bitmask")
_LEAST_ZEROS = 0.2  # share below which a bitmask saves little


@torch.no_grad()
def export(model: nn.Module, folder: str | Path, format: str, max_shard_size: int | str = "5GB") -> None:
    """Save a transformers model so that programs without trisparse can load it; the model stays as it is.

    `dense` is a plain checkpoint, removed channels back as zeros. `sparse-bitmask` is that of compressed-tensors up to
    0.12: each pruned layer as `compressed`, its weights that are not zero, row after row; `bitmask` uint8
    `[rows, cols / 8 rounded up]`, bit j of a byte for its column j; `row_offsets`, where rows begin; `shape`.

    Raises:
        PruningError: another format, no transformers model, or one that another method quantized.
    """
    if format not in FORMATS:
        raise PruningError(f"format: want {' or '.join(FORMATS)}, got {format!r}")
    bare: Any = transformers_model(model)
    check_shard_size(max_shard_size)
    check_config(bare)
    state = _dense_state(bare)
    entry: dict[str, Any] | None = None
    if format == "sparse-bitmask":
        names = _replace_by_bitmasks(bare, state)
        entry = {"quant_method": "compressed-tensors", "format": "dense", "quantization_status": "compressed"}
        entry["sparsity_config"] = {
            "format": format,
            "sparsity_structure": "unstructured",
            "targets": names,
            "ignore": [],
        }
    own = bare.config.__dict__.pop("quantization_config", None)
    quantizer = bare.__dict__.pop("hf_quantizer", None)  # it would have its own state written
    try:
        if entry is not None:
            bare.config.quantization_config = entry
        with replaced_folder(Path(folder)) as half:
            bare.save_pretrained(half, state_dict=state, max_shard_size=max_shard_size)
    finally:
        bare.config.__dict__.pop("quantization_config", None)
        if own is not None:
            bare.config.quantization_config = own
        if quantizer is not None:
            bare.hf_quantizer = quantizer


def _dense_state(model: nn.Module) -> dict[str, Tensor]:
    state = dict(model.state_dict())
    for name, layer in model.named_modules():
        if spec_of(layer) is None:
            continue
        for key in [key for key in state if key.startswith(f"{name}.")]:
            del state[key]
        dense = unpack_layer(layer)
        state |= {f"{name}.{key}": value for key, value in dense.state_dict().items()}
    return state


def _replace_by_bitmasks(model: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Put bitmasks in the place of sparse weights of linear layers; their names."""
    names = []
    for name, layer in model.named_modules():
        is_linear = type(layer) is nn.Linear or (spec_of(layer) or {}).get("conv1d") is False
        weight = state.get(f"{name}.weight")
        if not is_linear or weight is None or float((weight == 0).float().mean()) < _LEAST_ZEROS:
            continue
        kept = state.pop(f"{name}.weight") != 0
        counts = kept.sum(1)
        bits = nn.functional.pad(kept, (0, -kept.shape[1] % 8)).unflatten(1, (-1, 8))
        state[f"{name}.shape"] = torch.tensor(weight.shape)
        state[f"{name}.compressed"] = weight[kept]
        state[f"{name}.bitmask"] = (bits << torch.arange(8, device=bits.device)).sum(-1).to(torch.uint8)
        state[f"{name}.row_offsets"] = counts.cumsum(0) - counts
        names.append(name)
    return names
