"""Save and load compressed models in transformers' own format."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trisparse.prune.deploy.checkpoint_files import (
    INDEX,
    WEIGHTS,
    Headers,
    check_digests,
    check_layers,
    digest,
    read_config,
    read_headers,
    weight_files,
)  # fmt: skip
from trisparse.prune.deploy.layer_spec import Spec, describe, is_ours, note_in_config
from trisparse.prune.deploy.model_card import CardNotes, write_card
from trisparse.prune.deploy.replaced_folder import SAVED, replaced_folder
from trisparse.prune.deploy.saved_names import headers_in_model, is_transformers_model, layers_in_model
from trisparse.prune.deploy.spec_check import check_entry
from trisparse.prune.errors import PruningError, one_line
from trisparse.prune.files import atomic_write
from trisparse.prune.layers.modules import unwrap

_SIZE = re.compile(r"(?=.*[1-9])\d+(\.\d+)?\s*[KMGT]B", re.IGNORECASE)  # what huggingface_hub reads


def save_pretrained(
    model: nn.Module, folder: str | Path, max_shard_size: int | str = "5GB", overwrite: bool = False, *,
    metrics: Mapping[str, float] | None = None,
) -> None:  # fmt: skip
    """Save a transformers model, packed layers as packed tensors, in safetensors files and `config.json`.

    The config's `quantization_config` has `quant_method` "trisparse", the sizes of every layer that is not as the model
    makes it, and the files' digests. Files appear under their names only once all are written. A compressed model that
    the folder held, or what this function wrote there, goes; `overwrite` replaces any other checkpoint; other files
    stay. So does a `README.md` that somebody else wrote or changed; else it is a card of the model, with its zeros,
    bytes and formats, and `metrics` by their names.

    Raises:
        PruningError: no transformers model, one that another method quantized, a path that is a file, a size that is
            none, metrics that are no numbers, files of something else, or tensors that transformers writes otherwise
            than it would read them; then nothing is written.
    """
    check_shard_size(max_shard_size)
    notes = CardNotes({} if metrics is None else metrics)
    transformers_model(model)
    with replaced_folder(Path(folder), SAVED, overwrite) as half:
        write_pretrained(model, half, max_shard_size, notes)


def write_pretrained(model: nn.Module, half: Path, max_shard_size: int | str, notes: CardNotes | None = None) -> None:
    """The files of `save_pretrained`, into an empty folder."""
    bare: Any = transformers_model(model)
    note_in_config(bare)
    if not type(bare).__module__.startswith("transformers."):
        name = type(bare).__name__
        warnings.warn(
            f"{name} is no class of transformers: trisparse.from_pretrained will not find it; load by "
            f"{name}.from_pretrained, with trisparse imported",
            stacklevel=2,
        )
    bare.save_pretrained(half, max_shard_size=max_shard_size)
    config = read_config(half)
    if is_ours(config.get("quantization_config")):
        _check_written(bare, half)
        config["quantization_config"]["files"] = {path.name: digest(path) for path in weight_files(half)}
        atomic_write(half / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_card(bare, half, notes)


def _check_written(model: Any, folder: Path) -> None:
    """PruningError unless the files hold every layer as it will be looked for."""
    layers = describe(model)["layers"]
    try:
        check_layers(headers_in_model(model, read_headers(weight_files(folder)), layers), layers, whole=True)
    except PruningError as error:
        reason = str(error).removeprefix(f"{folder}: ")
        raise PruningError(
            f"model: transformers saves it so that it can't be loaded again ({reason}); nothing was written; call "
            "decompress(model) first, or compress with remove_channels=False (--keep_channels)"
        ) from None


def from_pretrained(folder: str | Path, **kwargs: Any) -> nn.Module:
    """Load what `save_pretrained` wrote, or any local transformers checkpoint, as the class that its config names.

    The Auto classes of transformers load the same folders once trisparse is imported. `kwargs` go to transformers.

    Raises:
        PruningError: a file that is missing, truncated, damaged or of another checkpoint, by name; tensors that no file
            holds, other than a pooler's, which encoders are published without; and whatever transformers raises while
            it loads.
    """
    folder = Path(folder)
    config = read_config(folder)
    entry = config.get("quantization_config")
    if is_ours(entry):
        check_entry(entry, str(folder / "config.json"))
    kind = model_class(folder, config)
    if is_ours(entry) or (folder / WEIGHTS).exists() or (folder / INDEX).exists():
        read_headers(weight_files(folder))  # damage gets its file's name; digests are compared while loading
    from trisparse.prune.deploy import hf_quantizer  # noqa: F401 (registers itself)

    try:
        model, info = kind.from_pretrained(folder, **{**kwargs, "output_loading_info": True})
        _check_complete(folder, model, info["missing_keys"])
        loaded: Any = (model, info) if kwargs.get("output_loading_info") else model
        return loaded
    except PruningError:
        raise
    except Exception as error:
        raise PruningError(f"{folder}: can't be loaded as a {kind.__name__}: {one_line(error)}") from error


def _check_complete(folder: Path, model: nn.Module, missing: Iterable[str]) -> None:
    """PruningError where the model would go on with random numbers."""
    lacking = sorted(name for name in missing if "pooler" not in name)
    if lacking:
        raise PruningError(
            f"{folder}: lacks {len(lacking)} tensors of a {type(model).__name__}, which would be random: "
            f"{', '.join(lacking[:3])}{', …' if len(lacking) > 3 else ''}"
        )


def check_folder(folder: Path) -> tuple[Headers, dict[str, Spec]]:
    """Check a compressed checkpoint's config and files; PruningError names what is wrong.

    Returns:
        The headers of the files and the layers that these hold as described, both by their names in the model.
    """
    entry, where = read_config(folder).get("quantization_config"), str(folder / "config.json")
    layers = check_entry(entry, where)
    assert isinstance(entry, dict)
    files, whole = weight_files(folder), "files" in entry
    headers = read_headers(files)
    if whole:
        check_digests(files, entry["files"])
    model = empty_model(folder)
    if model is not None:
        layers = layers_in_model(model, layers, whole, where)
        headers = headers_in_model(model, headers, layers)
    return headers, check_layers(headers, layers, whole)


def empty_model(folder: Path) -> nn.Module | None:
    """The model that a config names, without numbers; None where it can't be made, as a class of the user's own."""
    try:
        kind = model_class(folder, read_config(folder))
        with torch.device("meta"):
            return kind(kind.config_class.from_pretrained(folder))
    except Exception:  # whatever a config of another version makes it raise; the files can still be looked into
        return None


def model_class(folder: Path, config: dict[str, Any]) -> Any:
    """The class of transformers that a config names; PruningError if there is none, or if it is not the config's."""
    import transformers

    names, where = config.get("architectures"), folder / "config.json"
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    kind = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        hint = f"; a class of your own loads by its own from_pretrained: {name}.from_pretrained({str(folder)!r})"
        raise PruningError(
            f"{where}: architectures: want a class of transformers, got {names!r:.100}{hint if name else ''}"
        )
    own, found = getattr(kind.config_class, "model_type", None), config.get("model_type")
    if found is not None and found != own:
        raise PruningError(f"{where}: model_type: want {own!r} for a {name}, got {found!r:.60}")
    return kind


def transformers_model(model: nn.Module) -> nn.Module:
    """The bare model; PruningError if it is not one of transformers."""
    bare: Any = unwrap(model)
    if not is_transformers_model(bare):
        raise PruningError(
            f"model: want a transformers model, got {type(bare).__name__}; save others by their own means, or keep "
            "describe(model) beside state_dict() for compress_like"
        )
    return bare


def check_shard_size(size: Any) -> None:
    """PruningError for what is no size of a file."""
    is_text = isinstance(size, str) and _SIZE.fullmatch(size.strip()) is not None
    if not is_text and not (isinstance(size, int) and not isinstance(size, bool) and size > 0):
        raise PruningError(f"max_shard_size: want bytes or a text like '5GB', got {size!r:.60}")
