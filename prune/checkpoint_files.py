"""The files of a checkpoint: digests, what is wrong with them, and writing them so that nothing is half there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from trisparse.prune.errors import PruningError
from trisparse.prune.layer_spec import Spec, tensors_of

_DTYPES = {torch.uint8: "U8", torch.int16: "I16", torch.int32: "I32"}
_FLOATS = ("F16", "BF16", "F32", "F64")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder; PruningError if there is none, or if it cannot be read."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PruningError(f"{folder}: want a folder with config.json, found none") from None
    except (OSError, ValueError) as error:
        raise PruningError(f"{path}: cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise PruningError(f"{path}: want an object, got {type(config).__name__}")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a folder's index names, or its only one; PruningError if one is missing."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        names = {"model.safetensors"}
    else:
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PruningError(f"{index}: cannot be read: {error!r}") from None
    for name in sorted(names):
        if Path(name).name != name or not (folder / name).is_file():
            raise PruningError(f"{folder / name}: is missing; copy the whole folder again")
    return [folder / name for name in sorted(names)]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: Any) -> str:
    found = hashlib.sha256()
    while chunk := file.read(1 << 24):
        found.update(chunk)
    return found.hexdigest()


def read_headers(files: list[Path]) -> dict[str, tuple[Path, list[int], str]]:
    """Tensor name -> its file, shape and safetensors dtype; PruningError names a file that is truncated or damaged."""
    from safetensors import SafetensorError, safe_open

    found = {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (it has no iterator)
                    part = file.get_slice(name)
                    found[name] = path, list(part.get_shape()), part.get_dtype()
        except (SafetensorError, OSError) as error:
            raise PruningError(f"{path}: is truncated or damaged ({error}); copy it again") from None
    return found


def check_files(files: list[Path], digests: dict[str, str], layers: dict[str, Spec]) -> None:
    """Raise PruningError, naming the file and the tensor, unless the files are those that were written for `layers`."""
    headers = read_headers(files)
    for path in files:
        want = digests.get(path.name)
        if want is not None and digest(path) != want:
            raise PruningError(
                f"{path}: is not the file that was saved with this config (SHA-256 differs); copy it again"
            )
    for layer, spec in layers.items():
        for name, (shape, dtype) in tensors_of(spec).items():
            key = f"{layer}.{name}"
            if key not in headers:
                raise PruningError(f"{files[0].parent}: {key}: no file holds it, config.json wants {shape}")
            path, found, kind = headers[key]
            wanted = _FLOATS if dtype is None else (_DTYPES[dtype],)
            if found != shape or kind not in wanted:
                raise PruningError(f"{path}: {key}: want {shape} {' or '.join(wanted)}, got {found} {kind}")


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write to; if all goes well its files replace those of `folder`, the config last."""
    if folder.exists() and not folder.is_dir():
        raise PruningError(f"{folder}: want a folder, found a file")
    folder.parent.mkdir(parents=True, exist_ok=True)
    half = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    half.mkdir()
    try:
        yield half
        folder.mkdir(exist_ok=True)
        written = sorted(half.iterdir(), key=lambda path: path.name == "config.json")
        stale = {path for pattern in _WEIGHTS for path in folder.glob(pattern)} - {folder / p.name for p in written}
        for path in written:
            os.replace(path, folder / path.name)
        for path in stale:  # weights of another checkpoint would be read instead of these
            path.unlink()
    finally:
        shutil.rmtree(half, ignore_errors=True)
