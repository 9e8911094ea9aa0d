"""Teaches transformers' `from_pretrained` to load compressed models. Importing this file registers it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from trisparse.prune.deploy.checkpoint_files import check_digests, check_layers, names_of, read_headers
from trisparse.prune.deploy.layer_spec import METHOD, PackedTensors, Spec, describe, misfit, shrunken
from trisparse.prune.deploy.obstacles import check_numbers
from trisparse.prune.deploy.spec_check import check_entry
from trisparse.prune.errors import PruningError
from trisparse.prune.pruner.layers import op_type, replace_module


@register_quantization_config(METHOD)
class TrisparseConfig(QuantizationConfigMixin):
    """The entry `quantization_config` of a compressed model's config."""

    def __init__(self, **entry: Any) -> None:
        self.quant_method: Any = METHOD
        self.entry = {**entry, "quant_method": METHOD}

    def to_dict(self) -> dict[str, Any]:
        """Without digests, which hold for the files they were read with."""
        return {key: copy.deepcopy(value) for key, value in self.entry.items() if key != "files"}


@register_quantizer(METHOD)
class TrisparseQuantizer(HfQuantizer):
    """Puts layers that a file can be read into in the place of those that the model makes, then packed ones."""

    is_trainable = False
    is_compileable = True

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        if not self.pre_quantized:
            raise PruningError("quantization_config: trisparse compresses pruned models, use trisparse.compress")

    def is_serializable(self) -> bool:
        return True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        config: Any = self.quantization_config
        files = [Path(file) for file in kwargs["checkpoint_files"] or []]
        where = str(files[0].parent / "config.json") if files else "config.json"
        layers = check_entry(config.entry, where)
        if files:
            headers, digests = read_headers(files), config.entry.get("files")
            if digests is not None:
                check_digests(files, digests)
            held = check_layers(headers, layers, model.base_model_prefix, digests is not None)
            layers = {name: layers[name] for name in held}
        for name, spec in _places(model, layers, where):
            layer: Any = model.get_submodule(name)
            dense = spec["format"] == "dense"
            replace_module(model, name, shrunken(layer, spec) if dense else PackedTensors(spec, layer.weight.dtype))
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for name, tensors in [(n, m) for n, m in model.named_modules() if isinstance(m, PackedTensors)]:
            check_numbers(tensors, f"{name}.")
            try:
                replace_module(model, name, tensors.layer())
            except RuntimeError as error:
                lines = [line.strip() for line in str(error).splitlines()]
                raise PruningError(f"{name}: its tensors are damaged: {lines[-1]}") from None
        config: Any = self.quantization_config
        config.entry = describe(model)  # by the names that its layers have in this class
        if not config.entry["layers"]:
            self.remove_quantization_config(model)  # all was dense: a model that shared its config object
        return model


def _places(model: Any, layers: dict[str, Spec], where: str) -> Iterator[tuple[str, Spec]]:
    """The layers by their names in this model, which may be the base model of what was saved, or have one."""
    modules = dict(model.named_modules())
    found = 0
    for name, spec in layers.items():
        own = next((n for n in names_of(name, model.base_model_prefix) if n in modules), None)
        if own is None:
            continue  # a head that this class does without
        module: Any = modules[own]
        if op_type(module) != "Linear":
            raise PruningError(f"{where}: layers: {name}: is no linear layer of a {type(model).__name__}")
        if trouble := misfit(spec, module):
            raise PruningError(f"{where}: layers: {name}: {trouble}")
        found += 1
        yield own, spec
    if layers and not found:
        raise PruningError(f"{where}: layers: none of them is in a {type(model).__name__}: {next(iter(layers))}, …")
