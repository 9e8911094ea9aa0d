"""Save and load compressed models in transformers' own format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from trisparse.prune.checkpoint_files import check_files, digest, read_config, replaced_folder, weight_files
from trisparse.prune.errors import PruningError
from trisparse.prune.files import atomic_write
from trisparse.prune.layer_spec import METHOD, note_in_config
from trisparse.prune.layers import unwrap
from trisparse.prune.spec_check import check_entry


def save_pretrained(model: nn.Module, folder: str | Path, max_shard_size: int | str = "5GB") -> None:
    """Save a transformers model, packed layers as packed tensors, in safetensors files and `config.json`.

    The config's `quantization_config` has `quant_method` "trisparse", the sizes of every layer that is not as the model
    makes it, and the files' digests. Files appear under their names only once all are written.

    Raises:
        PruningError: no transformers model, or a path that is a file.
    """
    bare: Any = transformers_model(model)
    folder = Path(folder)
    note_in_config(bare)
    with replaced_folder(folder) as half:
        bare.save_pretrained(half, max_shard_size=max_shard_size)
        config = read_config(half)
        if config.get("quantization_config", {}).get("quant_method") == METHOD:
            config["quantization_config"]["files"] = {path.name: digest(path) for path in weight_files(half)}
            atomic_write(half / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def from_pretrained(folder: str | Path, **kwargs: Any) -> nn.Module:
    """Load what `save_pretrained` wrote, or any local transformers checkpoint, as the class that its config names.

    The Auto classes of transformers load the same folders once trisparse is imported. `kwargs` go to transformers.

    Raises:
        PruningError: a file that is missing, truncated, damaged or of another checkpoint, by name.
    """
    import transformers

    from trisparse.prune import hf_quantizer  # noqa: F401 (registers itself)

    folder = Path(folder)
    config = read_config(folder)
    if config.get("quantization_config", {}).get("quant_method") == METHOD:
        check_folder(folder)
    names = config.get("architectures") or []
    kind = getattr(transformers, names[0], None) if names else None
    if kind is None:
        raise PruningError(f"{folder / 'config.json'}: architectures: want a class of transformers, got {names}")
    return kind.from_pretrained(folder, **kwargs)


def check_folder(folder: Path) -> dict[str, Any]:
    """Check a compressed checkpoint's config and files, and return the config; PruningError names what is wrong."""
    config = read_config(folder)
    entry = config.get("quantization_config")
    layers = check_entry(entry, str(folder / "config.json"))
    assert isinstance(entry, dict)
    check_files(weight_files(folder), entry.get("files", {}), layers)
    return config


def transformers_model(model: nn.Module) -> nn.Module:
    """The bare model; PruningError if it is not one of transformers."""
    bare: Any = unwrap(model)
    if not (hasattr(bare, "save_pretrained") and hasattr(getattr(bare, "config", None), "save_pretrained")):
        raise PruningError(f"model: want a transformers model, got {type(bare).__name__}; use state_dict() for others")
    return bare
