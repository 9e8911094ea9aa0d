"""The files of a checkpoint: which they are, their digests, and what is wrong with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trisparse.prune.deploy.layer_spec import Spec, full_weight, tensors_of
from trisparse.prune.errors import PruningError

_DTYPES = {torch.uint8: "U8", torch.int16: "I16", torch.int32: "I32"}
_FLOATS = ("F16", "BF16", "F32", "F64")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"  # transformers takes the first, if it is there
Headers = dict[str, tuple[Path, list[int], str]]


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder; PruningError if there is none, or if it cannot be read."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise PruningError(f"{folder}: want a folder with config.json, found none") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PruningError(f"{path}: cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise PruningError(f"{path}: want an object, got {type(config).__name__}")
    entry = config.get("quantization_config")
    if entry is not None and not isinstance(entry, dict):
        raise PruningError(f"{path}: quantization_config: want an object, got {entry!r:.60}")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers reads of a folder; PruningError if one is missing or elsewhere."""
    index, names = folder / INDEX, [WEIGHTS]
    if index.is_file() and not (folder / WEIGHTS).is_file():
        try:
            names = list(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PruningError(f"{index}: cannot be read: {error!r:.100}") from None
        if not names:
            raise PruningError(f"{index}: weight_map: want names of files, found none")
    for name in names:
        if not isinstance(name, str) or "\0" in name:
            raise PruningError(f"{index}: weight_map: want names of files, got {name!r:.60}")
        if Path(name).name != name:
            raise PruningError(f"{index}: weight_map: {name!r:.100}: points outside the folder; want a file in it")
        if not (folder / name).is_file():
            raise PruningError(f"{folder / name}: is missing; copy the whole folder again")
    return [folder / name for name in sorted(set(names))]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            found.update(chunk)
    return found.hexdigest()


def read_headers(files: Sequence[Path]) -> Headers:
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


def names_of(layer: str, prefix: str) -> tuple[str, str, str]:
    """How a layer may be called: as the config has it, in the base model alone, and in a model around that."""
    return layer, layer.removeprefix(f"{prefix}."), f"{prefix}.{layer}"


def check_digests(files: Sequence[Path], digests: Mapping[str, str]) -> None:
    """PruningError unless these are the files, all of them, that were saved with a config."""
    found = {path.name: path for path in files}
    if found.keys() != digests.keys():
        raise PruningError(
            f"{files[0].parent}: holds {', '.join(sorted(found))}, but config.json was saved with "
            f"{', '.join(sorted(digests))}; copy the whole folder again"
        )
    for name, path in found.items():
        if digest(path) != digests[name]:
            raise PruningError(
                f"{path}: is not the file that was saved with this config (SHA-256 differs); copy it again"
            )


def check_layers(headers: Headers, layers: Mapping[str, Spec], whole: bool) -> dict[str, Spec]:
    """Compare what files hold with what their config says of layers.

    Args:
        headers: of the files, by the names that tensors have in the model.
        layers: of the config, by their names in the model.
        whole: every layer is as described. Otherwise it may be dense, where a dense model shares its config object with
            a compressed one.

    Returns:
        All layers that are there as described.

    Raises:
        PruningError: naming the file and the tensor.
    """
    found = {}
    for layer, spec in layers.items():
        if whole or not _is_as_made(headers, layer, spec):
            _check_layer(headers, layer, spec)
            found[layer] = spec
    return found


def _is_as_made(headers: Headers, layer: str, spec: Spec) -> bool:
    """Whether files hold a layer dense and in full that its config describes otherwise."""
    name, full = full_weight(spec)
    own = tensors_of(spec).get(name)
    is_other = own is None or own[0] != full
    return is_other and f"{layer}.{name}" in headers and headers[f"{layer}.{name}"][1] == full


def _check_layer(headers: Headers, layer: str, spec: Spec) -> None:
    folder = next((path.parent for path, *_ in headers.values()), Path())
    for name, (shape, dtype) in tensors_of(spec).items():
        key = f"{layer}.{name}"
        if key not in headers:
            raise PruningError(f"{folder}: {key}: no file holds it, config.json wants {shape}")
        path, found, kind = headers[key]
        wanted = _FLOATS if dtype is None else (_DTYPES[dtype],)
        if found != shape or kind not in wanted:
            raise PruningError(f"{path}: {key}: want {shape} {' or '.join(wanted)}, got {found} {kind}")
