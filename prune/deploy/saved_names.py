"""What tensors are called in files: transformers renames some when it saves a model, and back when it loads one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from trisparse.prune.channels.chains import Found
from trisparse.prune.deploy.checkpoint_files import Headers, names_of
from trisparse.prune.deploy.layer_spec import Spec, is_of_kind, kind_of, misfit, tensors_of
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.modules import is_packable

_OF_PACKED = ("values", "bitmask", "columns", "pointers", "order", "bias")  # whatever a packed layer saves


def is_transformers_model(module: nn.Module) -> bool:
    """Whether transformers saves and loads it; imports nothing."""
    kinds = type(module).__mro__
    return any(c.__name__ == "PreTrainedModel" and c.__module__.startswith("transformers.") for c in kinds)


def transformers_models(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The outermost models of transformers in a module, with their names; itself if it is one."""
    found: list[str] = []
    for name, module in model.named_modules():
        if is_transformers_model(module) and not any(name.startswith(f"{outer}.") or not outer for outer in found):
            found.append(name)
            yield name, module


def names_in_files(model: Any, shapes: Mapping[str, Iterable[int]]) -> dict[str, str | None]:
    """Tensor of a model -> what it is called in files; None for one that is merged with others, split or turned."""
    from transformers.core_model_loading import revert_weight_conversion

    like: Any = {"dtype": torch.float32, "device": "meta"}
    tensors = {name: torch.empty(tuple(shape), **like) for name, shape in shapes.items()}
    written = {id(tensor): name for name, tensor in revert_weight_conversion(model, dict(tensors)).items()}
    return {name: written.get(id(tensor)) for name, tensor in tensors.items()}


def names_in_model(model: Any, files: Iterable[str], own: Iterable[str]) -> dict[str, str]:
    """Tensor in files -> what it is called in the model that reads them; without those that are merged or split.

    Args:
        files: names of all tensors there.
        own: names of all tensors that the model has, or is to have.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    made: dict[str, Any] = dict.fromkeys(own, True)
    found = {}
    for name in sorted(files, key=dot_natural_key):  # some renamings wait for another name to come first
        renamed, merged = rename_source_key(name, renamings, converters, model.base_model_prefix, made)
        if renamed not in made and name in made:
            renamed, merged = rename_source_key(name, [], [], model.base_model_prefix, made)
        if merged is None:
            found[name] = renamed
    return found


def layers_in_model(model: Any, layers: Mapping[str, Spec], whole: bool, where: str) -> dict[str, Spec]:
    """Layers of a config by their names in this model, which may be the base model of what was saved, or have one.

    Raises:
        PruningError: a layer that does not fit, none of them is there, or, if the config was saved with the `whole`
            model and this is its class, one that is not.
    """
    modules = dict(model.named_modules())
    complete = whole and type(model).__name__ in (model.config.architectures or ())
    found = {}
    for name, spec in layers.items():
        own = next((n for n in names_of(name, model.base_model_prefix) if n in modules), None)
        if own is None:
            if complete:
                raise PruningError(f"{where}: layers: {name}: a {type(model).__name__} has no such layer")
            continue  # a head that this class does without
        module: Any = modules[own]
        if not is_of_kind(spec, module):
            raise PruningError(f"{where}: layers: {name}: is no {kind_of(spec)} of a {type(model).__name__}")
        if trouble := misfit(spec, module):
            raise PruningError(f"{where}: layers: {name}: {trouble}")
        found[own] = spec
    if layers and not found:
        raise PruningError(f"{where}: layers: none of them is in a {type(model).__name__}: {next(iter(layers))}, …")
    return found


def headers_in_model(model: Any, headers: Headers, layers: Mapping[str, Spec]) -> Headers:
    """Headers of files by the names that their tensors have in a model, once its layers are as a config has them."""
    packed = [f"{name}.{key}" for name, spec in layers.items() for key in tensors_of(spec)]
    names = names_in_model(model, headers, [*model.state_dict(), *packed])
    return {renamed: headers[name] for name, renamed in names.items()}


def naming_obstacles(model: nn.Module, layers: Iterable[str]) -> dict[str, str]:
    """Layer -> why it stays whole, of those whose tensors, packed ones too, would not come back from files."""
    found: dict[str, str] = {}
    for name, part in transformers_models(model):
        prefix = f"{name}." if name else ""
        own = [layer.removeprefix(prefix) for layer in layers if layer.startswith(prefix)]
        found |= {prefix + layer: reason for layer, reason in _naming_obstacles(part, own).items()}
    return found


def _naming_obstacles(model: Any, layers: list[str]) -> dict[str, str]:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    written = names_in_files(model, shapes)
    merged = {layer for layer in layers for name in ("weight", "bias") if written.get(f"{layer}.{name}", "") is None}
    found = dict.fromkeys(merged, "transformers merges or splits its weight in files")
    free = [layer for layer in layers if layer not in merged and is_packable(model.get_submodule(layer))]
    packed = {f"{layer}.{name}": (1,) for layer in free for name in _OF_PACKED}
    shapes = {name: shape for name, shape in shapes.items() if name.rpartition(".")[0] not in free} | packed
    written = names_in_files(model, shapes)
    files = [name for name in written.values() if name is not None]
    read = names_in_model(model, files, shapes)
    for layer in free:
        names = [f"{layer}.{name}" for name in _OF_PACKED]
        if any(read.get(written[name] or "") != name for name in names):
            found[layer] = "transformers renames its tensors in files and does not find them again"
    return found


def that_can_be_saved(model: nn.Module, found: Found) -> Found:
    """The same, but chains stay that a checkpoint of a transformers model has no words for."""
    if not hasattr(getattr(model, "config", None), "save_pretrained"):
        return found
    chains = []
    merged = naming_obstacles(model, {side.layer for chain in found.chains for side in chain.sides})
    for chain in found.chains:
        inside = [side.layer for side in chain.sides if side.layer in merged]
        why = f"stays: {inside[0]}: {merged[inside[0]]}" if inside else ""
        chains.append(chain._replace(obstacle=chain.obstacle or why))
    return found._replace(chains=chains)
