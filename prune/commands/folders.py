"""What commands that read one model folder and write another check before they load anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trisparse.prune.deploy.checkpoint_files import weight_files
from trisparse.prune.deploy.compress_checkpoint import small_files
from trisparse.prune.deploy.onnx_export import ONNX
from trisparse.prune.deploy.replaced_folder import check_folder_is_free
from trisparse.prune.errors import PruningError, one_line
from trisparse.prune.parser import Parser


def add_folders(parser: Parser, model: str) -> None:
    """Where a model is read from, and where another is written to."""
    parser.add_argument("input", metavar="MODEL", type=Path, help=model)
    parser.add_argument("output", metavar="OUT", type=Path, help="folder to write")


def add_overwrite(parser: Any) -> None:
    """To a parser or a group of its flags."""
    parser.add_argument("--overwrite", action="store_true", help="replace what something else wrote to OUT")


def check_folders(source: Path, target: Path, by: str, overwrite: bool) -> None:
    """Raise PruningError unless `target` is another folder than `source`, and free or written by `by` before."""
    if source.resolve() == target.resolve():
        raise PruningError(f"OUT: want another folder than MODEL, got {target}")
    there = next(path for path in (target, *target.absolute().parents) if path.exists())
    if not there.is_dir():
        raise PruningError(f"OUT: want a folder, but {there} is a file")
    copied = [path.name for path in small_files(source)] if source.is_dir() else []
    check_folder_is_free(target, by, overwrite, copied)


def check_device(name: str) -> None:
    """Raise PruningError unless torch can compute on a device of this name."""
    try:
        is_meta = torch.empty(0, dtype=torch.float32, device=name).is_meta
    except (RuntimeError, AssertionError, ValueError) as error:  # torch without CUDA asserts
        raise PruningError(f"--device: {name!r} can't be used: {one_line(error)}") from None
    if is_meta:
        raise PruningError("--device: want one that computes, got 'meta'")


def bytes_of_weights(folder: Path) -> int:
    """Of the files that hold them; ONNX and older checkpoints have files of their own kind."""
    others = [*folder.glob("pytorch_model*.bin"), *folder.glob(f"{ONNX}*")]
    found = weight_files(folder) if list(folder.glob("*.safetensors")) or not others else others
    return sum(path.stat().st_size for path in found)
