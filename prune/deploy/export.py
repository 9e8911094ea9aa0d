"""Export a compressed model for programs that know nothing of packed layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.prune.channels.shrinking import restored
from trisparse.prune.deploy.checkpoint import check_shard_size, transformers_model
from trisparse.prune.deploy.formats import unpack_layer
from trisparse.prune.deploy.layer_spec import check_config, spec_of, with_configs
from trisparse.prune.deploy.onnx_export import check_packages, write_onnx
from trisparse.prune.deploy.replaced_folder import EXPORTED, replaced_folder
from trisparse.prune.errors import PruningError

FORMATS = ("dense", "onnx")
_GONE = {
    "sparse-bitmask": "compressed-tensors reads it up to 0.14 only, and transformers 5 wants 0.15, which fills layers "
    "with random numbers",
}


@torch.no_grad()
def export(
    model: nn.Module, folder: str | Path, format: str, max_shard_size: int | str = "5GB", overwrite: bool = False,
    example: Any = None,
) -> None:  # fmt: skip
    """Save a transformers model so that programs without trisparse can load it; the model stays as it is.

    `dense` is a plain checkpoint, removed channels back as zeros. `onnx` is `model.onnx` with `config.json`: packed
    layers dense with their zeros, removed channels gone; `example` are its inputs, a model of text has its own. What
    this function wrote to the folder before goes; `overwrite` replaces any other checkpoint; other files stay.

    Raises:
        PruningError: another format, no transformers model, one that another method quantized or that torch can't
            export, or a folder with files of something else; then nothing is written.
    """
    check_format(format)
    check_shard_size(max_shard_size)
    check_config(transformers_model(model))
    with replaced_folder(Path(folder), EXPORTED, overwrite) as half:
        write_export(model, half, max_shard_size, format, example)


@torch.no_grad()
def write_export(
    model: nn.Module, half: Path, max_shard_size: int | str = "5GB", format: str = "dense", example: Any = None
) -> None:
    """The files of `export`, into an empty folder."""
    bare: Any = transformers_model(model)
    check_config(bare)
    with _without_notes(bare):
        if format == "onnx":
            write_onnx(bare, half, example)
            bare.config.save_pretrained(half)
            return
        bare.save_pretrained(half, state_dict=_dense_state(bare), max_shard_size=max_shard_size)


def check_format(format: str) -> None:
    """PruningError for a format that is not written."""
    if format not in FORMATS:
        reason = f"; {_GONE[format]}" if format in _GONE else ""
        raise PruningError(f"format: want {' or '.join(FORMATS)}, got {format!r}{reason}")
    if format == "onnx":
        check_packages()


@contextlib.contextmanager
def _without_notes(model: nn.Module) -> Iterator[None]:
    """Configs that say nothing of packed layers, for a while."""
    parts = with_configs(model)
    notes = [part.config.__dict__.pop("quantization_config", None) for part in parts]
    quantizers = [part.__dict__.pop("hf_quantizer", None) for part in parts]  # it would have its own state written
    try:
        yield
    finally:
        for part, note, quantizer in zip(parts, notes, quantizers, strict=True):
            if note is not None:
                part.config.quantization_config = note
            if quantizer is not None:
                part.hf_quantizer = quantizer


def _dense_state(model: nn.Module) -> dict[str, Tensor]:
    state = dict(model.state_dict())
    for name, layer in model.named_modules():
        if spec_of(layer) is None:
            continue
        for key in [key for key in state if key.startswith(f"{name}.")]:
            del state[key]
        dense = restored(layer) if hasattr(layer, "full_channels") else unpack_layer(layer)
        state |= {f"{name}.{key}": value for key, value in dense.state_dict().items()}
    return state
